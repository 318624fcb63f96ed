"""All packages in one environment: what the core promises in their name, what they offer, and what happens without one."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points, metadata, requires, version
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import pytest
from packaging.requirements import Requirement

import nnsight
from nnsight._core import plugins

SIBLINGS = {extra: f"nnsight-{extra}" for extra in ("hf", "vllm", "diffusers", "remote")}
EXAMPLE = "nnsight-example-family"

#: Offers that import vLLM, which is too large, and of too many builds, to come with its plugin.
SERVED_BY_VLLM = {("families", "VLLM"), ("import_aliases", "nnsight.modeling.vllm")}

#: What the core says that its siblings bring: (kind, name, distribution).
PROMISED = [
    (kind, name, entry["distribution"])
    for entry in json.loads(files("nnsight._core").joinpath("directory.json").read_text()).values()
    for kind, names in entry.items()
    if kind != "distribution"
    for name in names
]


def installed() -> dict[str, Any]:
    return {plugin.distribution: plugin for plugin in nnsight.plugins()}


def test_every_plugin_is_found_and_can_be_used() -> None:
    found = installed()
    assert {*SIBLINGS.values(), EXAMPLE} <= set(found)
    assert {title: plugin.problem for title, plugin in found.items() if plugin.problem} == {}
    table = repr(nnsight.plugins())
    assert all(f"{plugin.distribution} {plugin.version}" in table for plugin in found.values())
    assert "LanguageModel" in table and "CharacterModel" in table


def test_a_family_of_somebody_elses_is_a_name_of_nnsight() -> None:
    from nnsight_example.family import CharacterModel as itself

    from nnsight import CharacterModel

    assert nnsight.CharacterModel is CharacterModel is itself
    assert installed()[EXAMPLE].offers["families"] == {"CharacterModel": "nnsight_example.family:CharacterModel"}


def had(kind: str, name: str) -> None:
    """Look up what is offered; what needs vLLM, which is installed by hand and not here, says how to install it."""
    if (kind, name) in SERVED_BY_VLLM and find_spec("vllm") is None:
        with pytest.raises(
            plugins.BrokenPluginError, match=r"vLLM is not installed.*pip install 'nnsight-vllm\[cuda\]'"
        ):
            plugins.lookup(kind, name)
    else:
        assert plugins.lookup(kind, name) is not None


@pytest.mark.parametrize(
    ("kind", "name", "distribution"), PROMISED, ids=[f"{kind}-{name}" for kind, name, _ in PROMISED]
)
def test_a_promised_name_is_there_or_says_whose_it_will_be(kind: str, name: str, distribution: str) -> None:
    if name in installed()[distribution].offers[kind]:
        had(kind, name)
    else:
        with pytest.raises(
            nnsight.PluginError, match=f"{distribution} .* has no .*{name}.* yet: pip install --upgrade"
        ):
            plugins.lookup(kind, name)


def test_what_the_siblings_offer_is_promised() -> None:
    # Otherwise, where a sibling is missing, nobody could say what to install.
    promised = {(kind, name) for kind, name, _ in PROMISED}
    offered = {
        (kind, name)
        for distribution, plugin in installed().items()
        if distribution in SIBLINGS.values()
        for kind, names in plugin.offers.items()
        if kind != "travels_by_reference"
        for name in names
    }
    assert offered <= promised


def test_everything_that_is_offered_can_be_had() -> None:
    for plugin in nnsight.plugins():
        for kind, names in plugin.offers.items():
            for name in names:
                had(kind, name)


# -- metadata --------------------------------------------------------------------------------------------------------


def needed(distribution: str, extra: str = "") -> list[Requirement]:
    lines = [Requirement(line) for line in requires(distribution) or ()]
    return [need for need in lines if need.marker is None or need.marker.evaluate({"extra": extra})]


def test_each_extra_of_the_core_is_a_sibling() -> None:
    extras = set(metadata("nnsight-core").get_all("Provides-Extra") or ())
    assert extras == {*SIBLINGS, "all", "testing"}
    always = {str(need) for need in needed("nnsight-core")}
    for extra, distribution in SIBLINGS.items():
        assert {need.name for need in needed("nnsight-core", extra) if str(need) not in always} == {distribution}
    everything = {need.name for need in needed("nnsight-core", "all") if str(need) not in always}
    assert everything == set(SIBLINGS.values())


@pytest.mark.parametrize("distribution", [*SIBLINGS.values(), EXAMPLE])
def test_each_plugin_works_with_this_core_and_says_where_it_ends(distribution: str) -> None:
    (core,) = [need for need in needed(distribution) if need.name == "nnsight-core"]
    assert core.specifier.contains(nnsight.__version__)
    assert not core.specifier.contains("999"), "a plugin that claims every future core cannot be refused by one"


@pytest.mark.parametrize("distribution", ["nnsight-core", *SIBLINGS.values()])
def test_versions_in_code_and_metadata_agree(distribution: str) -> None:
    module = importlib.import_module("nnsight" if distribution == "nnsight-core" else distribution.replace("-", "_"))
    assert module.__version__ == version(distribution)
    assert "nnsight" in str(metadata(distribution)["Summary"]) or distribution == "nnsight-core"


def test_asking_what_is_there_imports_nothing_heavy() -> None:
    code = """
import sys, nnsight
names = [name for plugin in nnsight.plugins() for kind in plugin.offers.values() for name in kind]
assert "LanguageModel" in names
print(*sorted(name for name in sys.modules if "." not in name))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not {"transformers", "accelerate", "diffusers", "vllm", "ray", "httpx"} & set(done.stdout.split())


# -- without one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make one distribution look uninstalled."""

    def without(distribution: str) -> None:
        left = [entry for entry in entry_points(group="nnsight") if entry.dist and entry.dist.name != distribution]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: left)
        for path in [path for path in sys.modules if path.startswith("nnsight.modeling")]:
            monkeypatch.delitem(sys.modules, path)
        plugins.forget()

    yield without
    monkeypatch.undo()
    plugins.forget()


@pytest.mark.parametrize(("extra", "distribution"), SIBLINGS.items())
def test_without_a_sibling_its_names_say_what_to_install(extra: str, distribution: str, without: Any) -> None:
    without(distribution)
    assert distribution not in installed() and EXAMPLE in installed()
    for kind, name, owner in PROMISED:
        if owner == distribution:
            with pytest.raises(nnsight.MissingPluginError, match=rf'pip install "nnsight-core\[{extra}\]"'):
                plugins.lookup(kind, name)
    assert nnsight.CharacterModel.__name__ == "CharacterModel"


def test_without_a_sibling_imports_say_what_to_install(without: Any) -> None:
    without("nnsight-hf")
    with pytest.raises(ImportError, match=r"nnsight-hf, which is not installed: pip install"):
        from nnsight import LanguageModel  # noqa: F401
    with pytest.raises(ImportError, match=r"pip install"):
        import nnsight.modeling.language  # noqa: F401


def test_without_the_example_its_name_is_unknown(without: Any) -> None:
    without(EXAMPLE)
    with pytest.raises(AttributeError, match="CharacterModel"):
        nnsight.CharacterModel


# -- paths of earlier releases ---------------------------------------------------------------------------------------

OLD = {
    "nnsight:LanguageModel": "nnsight_hf.language:LanguageModel",
    "nnsight:NNsight": "nnsight._core.model:NNsight",
    "nnsight:Envoy": "nnsight._core.envoy:Envoy",
    "nnsight:save": "nnsight._core.saved:save",
    "nnsight.intervention.envoy:Envoy": "nnsight:Envoy",
    "nnsight.intervention.tracing.globals:Object": "torch:Tensor",
    "nnsight.intervention.tracing.tracer:Tracer": "nnsight:Tracer",
    "nnsight.intervention.interleaver:Interleaver": "nnsight.plugin:Interleaver",
    "nnsight.intervention.batching:Batchable": "nnsight.plugin:Batchable",
    "nnsight.modeling.base:NNsight": "nnsight:NNsight",
    "nnsight.modeling.language:LanguageModel": "nnsight:LanguageModel",
}


@pytest.mark.parametrize(("path", "target"), OLD.items(), ids=OLD)
def test_a_path_that_libraries_import_leads_to_the_thing_itself(path: str, target: str) -> None:
    # In an interpreter of its own: here others have imported much of it already.
    def line(where: str, name: str) -> str:
        module, _, attribute = where.partition(":")
        return f"from {module} import {attribute} as {name}"

    code = f"{line(path, 'old')}\n{line(target, 'new')}\nassert old is new"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
