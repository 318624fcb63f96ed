"""The package is found by the core as a plugin, and says what it offers."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

import nnsight
import nnsight_diffusers
from nnsight_diffusers import plugin


def test_the_entry_point_is_declared_and_loads_the_plugin_module() -> None:
    (entry,) = entry_points(group="nnsight", name="diffusers")
    assert entry.dist is not None and entry.dist.name == "nnsight-diffusers"
    assert entry.load() is plugin


def test_the_core_finds_it_and_finds_nothing_wrong() -> None:
    (found,) = [one for one in nnsight.plugins() if one.distribution == "nnsight-diffusers"]
    assert (found.name, found.version, found.problem) == ("diffusers", nnsight_diffusers.__version__, None)
    assert list(found.offers["families"]) == ["DiffusionModel"]


def test_the_family_is_one_class_under_all_its_names() -> None:
    from nnsight.modeling.diffusion import DiffusionModel as earlier

    from nnsight import DiffusionModel

    assert DiffusionModel is earlier is nnsight_diffusers.DiffusionModel


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    said = "import sys, nnsight, nnsight_diffusers; nnsight.plugins(); print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_version_in_the_code_is_the_version_installed() -> None:
    assert nnsight_diffusers.__version__ == version("nnsight-diffusers")
