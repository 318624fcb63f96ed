"""Models that are the same at both ends, and a server that has them: for what is to be the same here and there.

The small models of transformers' architectures are those of nnsight-hf's own tests, the pipeline is of nnsight-diffusers'.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnsight import DiffusionModel, LanguageModel, NNsight, TransformersModel, VisionLanguageModel
from nnsight.testing import MLP, Transformer, seeded

HERE = Path(__file__).parent
TOY = "nnsight/toy-landmarks"
sys.path.append(str(HERE.parent / "packages" / "nnsight-hf" / "tests"))

CHAT = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'image' %}MARK {% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


def mlp() -> NNsight:
    return NNsight(seeded(MLP))


def transformer() -> NNsight:
    return NNsight(seeded(Transformer))


def toy() -> LanguageModel:
    return LanguageModel(TOY, dispatch=True)


def seeing() -> VisionLanguageModel:
    from seers import SEERS

    seer = SEERS["gemma3"]
    processor = seer.processor()
    processor.chat_template = CHAT.replace("MARK", seer.mark)
    return VisionLanguageModel(seer.module(), processor=processor)


def reading() -> TransformersModel:
    import heads

    return TransformersModel(heads.module("bert-text"), **heads.parts("bert-text"))


def drawing() -> DiffusionModel:
    # By its file: nnsight-hf's tests have a module of that name too.
    file = HERE.parent / "packages" / "nnsight-diffusers" / "tests" / "checkpoints.py"
    spec = importlib.util.spec_from_file_location("pipelines", file)
    assert spec is not None and spec.loader is not None
    pipelines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipelines)
    return DiffusionModel(pipelines.folder("stable-diffusion"), dispatch=True)


@contextmanager
def serving(store: Path, *names: str, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve models of this file, confined, without keys; gives the address."""
    line = [sys.executable, "-m", "nnsight", "serve", *(f"{name}={Path(__file__).stem}:{name}" for name in names)]
    process: subprocess.Popen[Any] = subprocess.Popen(
        [*line, "--open", "--port", "0", "--store", str(store), "--threads", "1", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
    )
    try:
        yield process.stdout.readline().split(" at ")[1].split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
