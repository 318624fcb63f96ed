"""Tensor parallelism: what `parallel_checks.py` finds in two processes, one test for each of its checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import parallel_checks
import pytest
import torch
import transformers
from packaging.version import Version

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="older transformers spread models in another way"
)

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


class Config:
    """What transformers 5.23 says about a model that it has spread."""

    ep_size, pp_size, fsdp_size, dp_replicate_size = 1, 1, 1, 1


class Mesh:
    def size(self) -> int:
        return 2


def test_a_model_that_is_spread_in_another_way_is_refused() -> None:
    from nnsight_hf.parallel import sharding_of

    module = torch.nn.Linear(2, 2)
    assert sharding_of(module) is None
    module._device_mesh = Mesh()
    with pytest.raises(NotImplementedError, match="Install transformers 5.23 or later, or load without `tp_plan`"):
        sharding_of(module)
    module.config = type("Config", (), {"distributed_config": Config()})
    Config.fsdp_size = 2
    with pytest.raises(NotImplementedError, match=r"sharded as data \(fsdp_size=2\)"):
        sharding_of(module)


class Odd(torch.nn.Module):
    """A model that cannot be made of its configuration alone."""

    def __init__(self, config: object, more: object) -> None:
        super().__init__()
        self.config, self.linear = config, torch.nn.Linear(2, 2)
        self.dummy_inputs = {"input_ids": torch.ones(1, 3)}


def test_a_model_whose_twin_cannot_be_made_says_why_nothing_was_measured() -> None:
    from nnsight_hf.probe import Probe

    probe = Probe(Odd(Config(), None), group=None)
    assert probe.modules() == {} and probe.operation("linear.source.torch_0", "output") == {}
    assert "missing 1 required positional argument: 'more'" in probe.why
