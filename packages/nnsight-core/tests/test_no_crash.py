"""Torch's errors, raised anywhere in a trace and a thousand times in a row, are Python exceptions and never a crash.

Each test runs `crash_bodies.py` in a process of its own, since what it looks for would end the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import crash_bodies
import pytest

SCRIPT = Path(crash_bodies.__file__)


def _run(rounds: int, chief: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", str(SCRIPT), str(rounds), str(chief)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_torch_errors_everywhere_a_thousand_times_in_a_row() -> None:
    done = _run(10, 500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{10 * len(crash_bodies.EVERYWHERE) + 500 * len(crash_bodies.CHIEF)} errors\n"


def test_torch_errors_with_c_stack_traces_shown() -> None:
    done = _run(6, 30, TORCH_SHOW_CPP_STACKTRACES="1", TORCH_DISABLE_ADDR2LINE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith(" errors\n")


@pytest.mark.parametrize("raises", crash_bodies.EVERYWHERE, ids=lambda f: f.__name__)
def test_the_error_is_torchs_own_and_the_model_is_usable(raises) -> None:
    crash_bodies.check(raises, 7)
    before = crash_bodies.model._module(crash_bodies.X)
    with crash_bodies.model.trace(crash_bodies.X) as tracer:
        result = tracer.result
    assert (result == before).all()
