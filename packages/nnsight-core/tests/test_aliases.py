"""Import paths of earlier releases: each gives our own object, and nothing is importable that was not promised."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from fresh_python import in_fresh_python

import nnsight
from nnsight._core import aliases, legacy

ALIASES = [(path, name, target) for path, names in aliases.TABLE.items() for name, target in names.items()]


@pytest.mark.parametrize("path, name, target", ALIASES)
def test_every_alias_is_one_of_our_objects(path, name, target):
    module, _, attribute = target.partition(":")
    ours = getattr(importlib.import_module(module), attribute)
    assert getattr(importlib.import_module(path), name) is ours


@pytest.mark.parametrize("path", aliases.TABLE)
def test_no_alias_hides_a_file(path):
    root = Path(aliases.__file__).parents[2] / path.replace(".", "/")
    assert not root.exists() and not root.with_suffix(".py").exists()


def test_forms_of_import():
    import nnsight.util as direct
    from nnsight.intervention.tracing import globals as inner
    from nnsight.util import fetch_attr

    from nnsight import util

    assert direct is util is sys.modules["nnsight.util"] is nnsight.util
    assert fetch_attr is legacy.fetch_attr
    assert inner.Object is torch.Tensor
    assert nnsight.intervention.tracing.globals is inner


def test_names_are_loaded_when_they_are_used():
    code = """
import sys, nnsight.util
assert "nnsight._core.legacy" not in sys.modules
assert "WrapperModule" in dir(nnsight.util) and nnsight.util.__all__ == ["fetch_attr", "WrapperModule"]
nnsight.util.WrapperModule
assert "nnsight._core.legacy" in sys.modules
import nnsight.intervention.envoy
assert nnsight.intervention.__path__ == [] and not hasattr(nnsight.intervention.envoy, "__path__")
"""
    done = in_fresh_python(code)
    assert done.returncode == 0, done.stderr


def test_modules_of_an_old_package_are_found_without_importing_them_first():
    code = "import nnsight; print(nnsight.intervention.tracing.globals.Globals.cache.clear())"
    done = in_fresh_python(code)
    assert done.stdout.strip() == "None", done.stderr


def test_what_was_not_promised_is_not_there():
    for path in ("nnsight.intervention.nothing", "nnsight.util.nothing", "nnsight.envoy", "nnsight.schema.request"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(path)
        assert importlib.util.find_spec("nnsight.intervention.nothing") is None
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from nnsight.util import nothing  # noqa: F401
    with pytest.raises(AttributeError, match=r"module 'nnsight\.intervention' has no attribute 'nothing'"):
        _ = nnsight.intervention.nothing
    assert not hasattr(nnsight.util, "__wrapped__")


def test_installing_twice_is_installing_once():
    before = list(sys.meta_path)
    aliases.install()
    assert sys.meta_path == before


def test_fetch_attr_follows_a_path():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU()))
    assert legacy.fetch_attr(model, "1.0") is model[1][0] is legacy.fetch_attr(model, ".1.0")
    assert legacy.fetch_attr(model, "") is model
    with pytest.raises(AttributeError):
        legacy.fetch_attr(model, "1.7")


def test_wrapper_module_passes_its_input_on():
    module, value = legacy.WrapperModule(), torch.ones(2)
    assert module(value) is value
    assert module(value, 3) == ((value, 3), {})
    assert module(key=value) == ((), {"key": value})


def test_clearing_the_source_cache_reads_changed_files_again(tmp_path):
    import linecache

    from nnsight.intervention.tracing.globals import Globals

    file = tmp_path / "changing.py"
    file.write_text("old = 1\n")
    assert linecache.getline(str(file), 1) == "old = 1\n"
    file.write_text("brand_new = 2\n")
    Globals.cache.clear()
    assert linecache.getline(str(file), 1) == "brand_new = 2\n"


@pytest.mark.parametrize("memory", legacy.MEMORIES)
def test_clearing_the_source_cache_empties_every_memory(memory):
    mapping = aliases.resolve(memory)
    mapping["what was made of a source"] = None
    legacy.Globals.cache.clear()
    assert mapping == {}
