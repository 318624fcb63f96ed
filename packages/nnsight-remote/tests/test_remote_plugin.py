"""The package is found by the core as a plugin, and what it offers can be had."""

from __future__ import annotations

from importlib.metadata import entry_points, version

import nnsight
import nnsight_remote
from nnsight._core import plugins
from nnsight_remote import plugin


def test_the_entry_point_is_declared_and_loads_the_plugin_module() -> None:
    (entry,) = entry_points(group="nnsight", name="remote")
    assert entry.dist is not None and entry.dist.name == "nnsight-remote"
    assert entry.load() is plugin


def test_the_core_finds_it_and_finds_nothing_wrong() -> None:
    (found,) = [one for one in nnsight.plugins() if one.distribution == "nnsight-remote"]
    assert (found.name, found.version, found.problem) == ("remote", nnsight_remote.__version__, None)
    for kind, names in found.offers.items():
        for name in names:
            assert plugins.lookup(kind, name) is not None


def test_the_version_in_the_code_is_the_version_installed() -> None:
    assert nnsight_remote.__version__ == version("nnsight-remote")
