"""What a host does before jobs come, so that they do not wait for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from nnsight_remote.server import large_pages
from nnsight_remote.server.rehearsal import Rehearsal

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def collapses() -> bool:
    """Whether this kernel makes large pages when it is asked to."""
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    return sys.platform == "linux" and release >= (6, 1) and HUGE.exists() and "[never]" not in HUGE.read_text()


def test_the_rehearsal_runs_a_block_and_leaves_nothing_behind():
    rehearsal = Rehearsal()
    before = torch.get_rng_state()
    runs = []
    rehearsal._model._module.register_forward_hook(lambda *args: runs.append(1))
    rehearsal.play()
    rehearsal.play()
    assert len(runs) == 2 and torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not collapses(), reason="the kernel makes no large pages")
def test_memory_is_gathered_into_large_pages_and_keeps_what_it_holds():
    # In a process of its own: that of the tests has memory of many kinds.
    program = """
        import torch
        from nnsight_remote.server.large_pages import gather

        def large():
            with open("/proc/self/smaps_rollup") as file:
                return next(int(line.split()[1]) << 10 for line in file if line.startswith("AnonHugePages:"))

        numbers = torch.arange(8_000_000)
        done = gather()  # how much it is depends on what the machine has left in large pages
        assert 0 < done <= large(), (done, large())
        assert torch.equal(numbers, torch.arange(8_000_000))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_where_the_kernel_makes_none_nothing_happens(monkeypatch):
    monkeypatch.setattr(large_pages, "_MADV_COLLAPSE", 12345)  # advice that no kernel knows
    assert large_pages.gather() == 0
