"""Tensor parallelism: what `parallel_checks.py` finds in two processes, one test for each of its checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import parallel_checks
import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Run the checks that are asked for, all in the same two processes."""
    wanted = [item.callspec.params["check"] for item in request.session.items if "found" in item.fixturenames]
    folder, out = tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("found")
    for kind in parallel_checks.KINDS:
        parallel_checks.save(folder / kind, kind)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(HERE / "parallel_checks.py"), str(folder), str(out), *wanted]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.timeout(300)
@pytest.mark.parametrize("check", parallel_checks.CHECKS)
def test_in_two_processes(check: str, found: Path) -> None:
    for rank in (0, 1):
        said = (found / f"{check}.{rank}").read_text()
        assert said == "", f"rank {rank}:\n{said}"
