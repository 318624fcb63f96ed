"""What is timed on a diffusion pipeline: the same text of a block is run by ours and by the peer.

Here the ratios are of whole times: "bare" is the plain pipeline with a forward hook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pipeline
from models import Subject

_PROMPT, _SEED = "a red circle", 7


def _denoise(subject: Subject, count: int, contender: str) -> dict[str, Callable[[], Any]]:
    from nnsight.modeling.diffusion import DiffusionModel

    plain = subject.net.plain
    model = DiffusionModel(str(subject.net.folder), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)

    def bare() -> list[Tensor]:
        kept: list[Tensor] = []
        handle = plain.unet.register_forward_hook(lambda module, args, output: kept.append(output[0]))
        try:
            plain(_PROMPT, num_inference_steps=count, generator=torch.Generator("cpu").manual_seed(_SEED))
        finally:
            handle.remove()
        return kept

    def block() -> list[Tensor]:
        kept = []
        with model.generate(_PROMPT, num_inference_steps=count, seed=_SEED) as tracer:
            for _ in tracer.iter[:]:
                kept.append(model.unet.output[0].save())
        return kept

    values = torch.stack(block())
    assert len(values) == count, f"{len(values)} steps of {count} were read"
    pipeline.same_for_all(f"denoised-{count}", values)
    return {"bare": bare, contender: block}


#: By the name of the work.
MAKERS: dict[str, Callable[[Subject, int, str], dict[str, Callable[[], Any]]]] = {"denoise, output read": _denoise}
