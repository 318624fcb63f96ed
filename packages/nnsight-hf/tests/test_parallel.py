"""Tensor parallelism: what `parallel_checks.py` finds in two processes, one test for each of its checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import parallel_checks
import pytest
import torch

from nnsight_hf.parallel import sharding_of

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


RANK_ONE_LEAVES = """
import sys, torch, torch.distributed as dist
from nnsight import LanguageModel, RanksError

dist.init_process_group("gloo")
model = LanguageModel(sys.argv[1], tp_plan="auto", dispatch=True)
with torch.no_grad(), model.trace(torch.tensor([[5, 6, 7]])):
    model.lm_head.output
if dist.get_rank() == 0:
    try:
        with torch.no_grad(), model.trace(torch.tensor([[5, 6, 7]])):
            model.lm_head.output
    except RanksError as error:
        print("said:", error)
"""


def test_a_rank_whose_script_is_over_leaves_nobody_waiting(tmp_path: Path) -> None:
    parallel_checks.save(tmp_path / "llama", "llama")
    script = tmp_path / "script.py"
    script.write_text(RANK_ONE_LEAVES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), str(tmp_path / "llama")], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (
        "said: Rank 0 opens a run of `model` (script.py, line 11) and waits for rank 1 to do the same, but its process"
        in (done.stdout)
    )


class Config:
    """What transformers 5.23 says about a model that it has spread."""

    ep_size, pp_size, fsdp_size, dp_replicate_size = 1, 1, 1, 1


class Mesh:
    def size(self) -> int:
        return 2


def test_a_model_that_is_spread_in_another_way_is_refused() -> None:
    module = torch.nn.Linear(2, 2)
    assert sharding_of(module) is None
    module._device_mesh = Mesh()
    with pytest.raises(NotImplementedError, match="Install transformers 5.23 or later, or load without `tp_plan`"):
        sharding_of(module)
    module.config = type("Config", (), {"distributed_config": Config()})
    Config.fsdp_size = 2
    with pytest.raises(NotImplementedError, match=r"sharded as data \(fsdp_size=2\)"):
        sharding_of(module)
