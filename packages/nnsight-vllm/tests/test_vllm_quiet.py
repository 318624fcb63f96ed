"""What vLLM says through this package: what is wrong, and not how it is made."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnsight import VLLM
from nnsight_vllm import quiet


@pytest.fixture
def said():
    """What is said in vLLM's log, from warnings on, whatever its handlers are."""
    records = []

    class Heard(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler, loggers = Heard(), [logging.getLogger(name) for name in ("vllm", "vllm.somewhere", *quiet.OURS)]
    quiet.reduce()
    for log in loggers[1:]:
        log.addHandler(handler)
        log.setLevel(logging.WARNING)
    yield records
    for log in loggers[1:]:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def test_the_tree_is_built_in_silence_and_errors_are_heard(llama, said, capfd):
    VLLM(str(llama.folder), dtype="float32", max_model_len=64)
    assert said == [] and "WARNING" not in capfd.readouterr().out
    log = logging.getLogger("vllm.somewhere")
    with quiet.silence():
        log.warning("not heard")
        log.error("heard")
    log.warning("heard again")
    assert said == ["heard", "heard again"]


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, several in quiet.OURS.items() for words in several]
)
def test_what_is_our_own_doing_is_left_out_and_nothing_else(name, words, said):
    log = logging.getLogger(name)
    log.warning("%s, and so on", words)
    log.warning("something else")
    log.error("%s, and so on", words)
    assert said == ["something else", f"{words}, and so on"]


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, several in quiet.OURS.items() for words in several]
)
def test_relies_on_how_messages_of_vllm_begin(name, words):
    spec = importlib.util.find_spec(name)
    assert spec is not None and f'"{words}' in Path(spec.origin).read_text()


def test_a_level_that_somebody_chose_is_left(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    quiet.reduce()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    monkeypatch.delenv("VLLM_LOGGING_LEVEL")
    quiet.reduce()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "WARNING"


def test_relies_on_the_first_group_of_processes_changing_how_tracebacks_look():
    # In a process of its own, since this one has a group already.
    code = "import sys, torch.distributed as dist; before = sys.excepthook; "
    code += (
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1); print(sys.excepthook is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
