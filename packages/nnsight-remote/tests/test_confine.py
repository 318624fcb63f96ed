"""What a process can still do within its walls."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nnsight_remote.server.confine import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

CASTS = """
import torch
from nnsight_remote.server.confine import Confinement, Walls

Walls(Confinement(), devices=False).close_in(limits_are_final=True)
for kind in (torch.float16, torch.bfloat16, torch.int8):
    torch.randn(64).to(kind)
print("cast")
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_numbers_are_cast_whatever_the_processor_can_do(capability):
    # Some of torch's kernels look into /proc/cpuinfo the first time: which ones, depends on the instructions that it uses.
    given = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    told = subprocess.run([sys.executable, "-c", CASTS], env=given, capture_output=True, text=True, timeout=100)
    assert told.stdout == "cast\n", told.stderr
