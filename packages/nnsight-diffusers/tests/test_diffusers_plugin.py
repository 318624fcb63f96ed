"""The package is found by the core as a plugin, and says of itself that it offers nothing."""

from __future__ import annotations

from importlib.metadata import entry_points, version

import nnsight
import nnsight_diffusers
from nnsight_diffusers import plugin


def test_the_entry_point_is_declared_and_loads_the_plugin_module() -> None:
    (entry,) = entry_points(group="nnsight", name="diffusers")
    assert entry.dist is not None and entry.dist.name == "nnsight-diffusers"
    assert entry.load() is plugin


def test_the_core_finds_it_and_finds_nothing_wrong_or_offered() -> None:
    (found,) = [one for one in nnsight.plugins() if one.distribution == "nnsight-diffusers"]
    assert (found.name, found.version, found.problem) == ("diffusers", nnsight_diffusers.__version__, None)
    assert not any(found.offers.values())


def test_the_version_in_the_code_is_the_version_installed() -> None:
    assert nnsight_diffusers.__version__ == version("nnsight-diffusers")
