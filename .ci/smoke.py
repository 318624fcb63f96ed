"""Try the built distributions, in an environment that holds nothing else: `nox -s build` runs this.

Looks for what only packaging can break: files that a wheel forgot, metadata that says something else than the code,
entry points that lead nowhere. Takes the names of the distributions.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import Distribution, distribution, entry_points
from pathlib import Path

import torch


def import_name(package: str) -> str:
    return "nnsight" if package == "nnsight-core" else package.replace("-", "_")


def check_core() -> None:
    import nnsight

    heavy = {"transformers", "accelerate", "diffusers", "vllm"} & set(sys.modules)
    assert not heavy, f"importing nnsight imports {heavy}"
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with nnsight.NNsight(net).trace(torch.ones(1, 3)) as tracer:
        result = tracer.result
    assert torch.equal(result, net(torch.ones(1, 3))), "a trace that changes nothing changes the result"


def check_wheel(wheel: Distribution) -> None:
    name = import_name(wheel.name)
    module = importlib.import_module(name)
    shipped = {str(path) for path in wheel.files or ()}
    assert Path(module.__file__ or "").is_relative_to(sys.prefix), f"{name} comes from {module.__file__}"
    assert module.__version__ == wheel.version, f"{name} says {module.__version__}, its metadata {wheel.version}"
    assert f"{name}/py.typed" in shipped, f"{wheel.name} ships no py.typed"
    assert any(path.endswith("licenses/LICENSE") for path in shipped), f"{wheel.name} ships no license"
    assert not any("tests" in Path(path).parts for path in shipped), f"{wheel.name} ships its tests"


def check_plugins(packages: list[str]) -> None:
    import nnsight

    declared = {entry.dist.name for entry in entry_points(group="nnsight") if entry.dist}
    expected = set(packages) - {"nnsight-core"}
    assert declared == expected, f"entry points are declared by {declared}, expected {expected}"
    problems = {plugin.distribution: plugin.problem for plugin in nnsight.plugins() if plugin.problem}
    assert not problems, f"plugins that cannot be used: {problems}"


if __name__ == "__main__":
    check_core()
    for package in sys.argv[1:]:
        check_wheel(distribution(package))
    check_plugins(sys.argv[1:])
    print(f"smoke test: {len(sys.argv) - 1} distributions import, agree with their metadata and are found")
