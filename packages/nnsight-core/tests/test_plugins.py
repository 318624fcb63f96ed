"""Plugins, with distributions made for the test: metadata and modules in a folder on `sys.path`, as pip leaves them."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import sys
import textwrap
import threading
import warnings
from importlib.resources import files
from pathlib import Path

import pytest
from fresh_python import in_fresh_python

import nnsight
import nnsight._version as _version
from nnsight._core import directory, plugins
from nnsight._core.errors import MissingPluginError, NNsightWarning, PluginError
from nnsight._core.plugins import BrokenPluginError

OFFER = """
from nnsight.plugin import hookimpl

@hookimpl
def {hook}():
    return {names!r}
"""

# Where a test gives the core another version, plugins that are really installed are refused too, and rightly.
OTHERS_ARE_REFUSED = pytest.mark.filterwarnings("ignore:the plugin .* cannot be used:nnsight.NNsightWarning")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution: `install("nnsight-a", modules={"a_entry": "..."}, requires=[...])`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def install(distribution, modules, version="1.0", requires=(), entry=None):
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in requires), ""]))
        short = distribution.rpartition("-")[2]
        (folder / "entry_points.txt").write_text(f"[nnsight]\n{short} = {entry or next(iter(modules))}\n")
        for name, source in modules.items():
            path = tmp_path / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        plugins.forget()

    yield install
    for name in set(sys.modules) - known:
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)
    plugins.forget()


@pytest.fixture
def toy(install):
    """A plugin in order, with one family in a module of its own."""
    install(
        "nnsight-toy",
        {
            "toy_entry": OFFER.format(hook="families", names={"ToyModel": "toy_model:ToyModel"}),
            "toy_model": "class ToyModel: pass",
        },
    )


def problem_of(distribution):
    """What is wrong with a plugin; the warning about it is part of the promise."""
    with pytest.warns(NNsightWarning, match=f"the plugin {distribution} .* cannot be used"):
        return str(next(one for one in plugins.plugins() if one.distribution == distribution).problem)


def test_a_family_is_a_name_of_nnsight_and_is_imported_when_it_is_used(toy):
    assert "ToyModel" in plugins.offered("families")
    assert "toy_entry" in sys.modules and "toy_model" not in sys.modules
    from nnsight import ToyModel

    assert ToyModel is sys.modules["toy_model"].ToyModel
    assert nnsight.ToyModel is ToyModel is plugins.lookup("families", "ToyModel")


def test_importing_nnsight_looks_for_no_plugin():
    code = """
        import sys, nnsight
        hasattr(nnsight, "_repr_html_"), hasattr(nnsight, "__wrapped__")
        from nnsight import _core, util
        assert "pluggy" not in sys.modules, "pluggy was imported"
        plugins = sys.modules.get("nnsight._core.plugins")
        assert plugins is None or plugins._plugins is None, "plugins were searched for"
    """
    done = in_fresh_python(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr


def test_the_list_shows_what_is_there(toy, install):
    install("nnsight-b", {"b_entry": "raise RuntimeError('no such device')"}, version="0.3.1")
    with pytest.warns(NNsightWarning):
        found = plugins.plugins()
    ours = {one.distribution: one for one in found}
    assert (ours["nnsight-toy"].name, ours["nnsight-toy"].version) == ("toy", "1.0")
    assert dict(ours["nnsight-toy"].offers["families"]) == {"ToyModel": "toy_model:ToyModel"}
    assert isinstance(ours["nnsight-b"].problem, RuntimeError)
    table = [" ".join(line.split()) for line in repr(found).splitlines()]
    assert "nnsight-toy 1.0 families: ToyModel" in table
    assert "nnsight-b 0.3.1 cannot be used: RuntimeError: no such device" in table
    assert "ToyModel" in repr(ours["nnsight-toy"])
    assert repr(plugins.Plugins()) == "no plugins are installed"


def test_two_plugins_that_claim_one_name(toy, install):
    names = {"ToyModel": "b_model:ToyModel", "OtherModel": "b_model:OtherModel"}
    install("nnsight-b", {"b_entry": OFFER.format(hook="families", names=names), "b_model": "class OtherModel: pass"})
    with pytest.raises(PluginError, match=r"'ToyModel' is claimed by nnsight-b 1\.0 and by nnsight-toy 1\.0"):
        _ = nnsight.ToyModel
    assert nnsight.OtherModel.__name__ == "OtherModel"
    assert "b_entry" in sys.modules and "toy_model" not in sys.modules


@OTHERS_ARE_REFUSED
def test_a_plugin_for_another_core_is_refused_without_importing_it(toy, install, monkeypatch):
    monkeypatch.setattr(_version, "__version__", "2.3.0")
    install("nnsight-old", {"old_entry": "raise SystemError('imported')"}, requires=["torch", "nnsight_core>=1,<2"])
    problem = problem_of("nnsight-old")
    assert "made for nnsight-core <2,>=1, and nnsight-core 2.3.0 is installed" in problem
    assert "pip install --upgrade nnsight-old nnsight-core" in problem
    assert "old_entry" not in sys.modules
    assert nnsight.ToyModel.__name__ == "ToyModel"


@OTHERS_ARE_REFUSED
@pytest.mark.parametrize(
    "requirement",
    ["nnsight-core>=2,<3", "nnsight-core", "nnsight-core<1; extra == 'ancient'", "nnsight-core~=2.3.0.dev1"],
)
def test_a_plugin_for_this_core_is_taken(install, requirement, monkeypatch):
    monkeypatch.setattr(_version, "__version__", "2.3.0")
    install(
        "nnsight-new", {"new_entry": OFFER.format(hook="backends", names={"far": "new_entry"})}, requires=[requirement]
    )
    assert plugins.lookup("backends", "far") is sys.modules["new_entry"]


def test_a_broken_plugin_costs_only_itself(toy, install):
    install("nnsight-bad", {"bad_entry": "import no_such_library"})
    problem = problem_of("nnsight-bad")
    assert "no_such_library" in problem
    assert nnsight.ToyModel.__name__ == "ToyModel"
    # What it would have offered nobody knows: a name that nobody has may be its own.
    with pytest.raises(BrokenPluginError, match=r"'BadModel'.*nnsight-bad 1\.0 .*no_such_library") as caught:
        from nnsight import BadModel  # noqa: F401
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(BrokenPluginError, match="nnsight-bad"):
        plugins.lookup("backends", "bad")
    with pytest.raises(ImportError, match="nnsight-bad"):
        importlib.import_module("nnsight.modeling.bad")
    assert not hasattr(nnsight, "BadModel")


@pytest.mark.parametrize(
    "source, problem",
    [
        (OFFER.format(hook="families", names=["A"]), "families returns list, not a mapping"),
        (OFFER.format(hook="families", names={"A": "a b"}), "families gives 'a b' for 'A'.*'module:attribute'"),
        (OFFER.format(hook="families", names={"A": 3}), "families gives 3 for 'A'"),
        (OFFER.format(hook="import_aliases", names={"torch.toy": "toy"}), "'torch.toy'; import paths"),
        (
            OFFER.format(hook="import_aliases", names={"nnsight.util": "toy"}),
            "claims 'nnsight.util'.* nnsight-core itself",
        ),
        (OFFER.format(hook="famlies", names={}), "famlies"),
        ("from nnsight import SomethingOfAPlugin", "while they are being found"),
        ("raise KeyError('odd')", "odd"),
    ],
)
def test_a_plugin_that_breaks_the_rules(install, toy, source, problem):
    install("nnsight-rule", {"rule_entry": source})
    assert re.search(problem, problem_of("nnsight-rule"))
    assert nnsight.ToyModel.__name__ == "ToyModel"


def test_a_plugin_cannot_claim_a_name_of_the_core(install, monkeypatch):
    monkeypatch.setattr(nnsight, "__all__", ["Tracery"], raising=False)
    install("nnsight-grab", {"grab_entry": OFFER.format(hook="families", names={"Tracery": "grab_entry"})})
    assert "claims 'Tracery'" in problem_of("nnsight-grab")


@pytest.mark.parametrize(
    "target, problem",
    [("toy_gone:Model", "No module named 'toy_gone'"), ("toy_entry:Gone", "Gone"), ("toy_heavy:A", "no accelerator")],
)
def test_what_is_offered_and_cannot_be_imported(install, target, problem):
    install(
        "nnsight-toy",
        {
            "toy_entry": OFFER.format(hook="families", names={"ToyModel": target}),
            "toy_heavy": "raise RuntimeError('no accelerator')",
        },
    )
    with pytest.raises(
        BrokenPluginError, match=rf"nnsight-toy 1\.0 offers.*'ToyModel' as {target}.*{problem}"
    ) as caught:
        _ = nnsight.ToyModel
    assert caught.value.__cause__ is not None


@pytest.fixture
def owned(monkeypatch):
    """A directory of first-party names in which nnsight-own, behind the extra `own`, has some of every kind."""
    owner = directory.Owner("own", "nnsight-own")
    names = [("families", "OwnModel"), ("import_aliases", "nnsight.modeling.own"), ("backends", "own")]
    monkeypatch.setattr(directory, "_owners", lambda: dict.fromkeys(names, owner))


def test_a_missing_plugin_of_ours_names_what_to_install(owned):
    line = 'pip install "nnsight-core[own]"'
    with pytest.raises(MissingPluginError) as attribute:
        _ = nnsight.OwnModel
    with pytest.raises(MissingPluginError) as imported:
        from nnsight import OwnModel  # noqa: F401
    with pytest.raises(MissingPluginError) as module:
        importlib.import_module("nnsight.modeling.own")
    with pytest.raises(MissingPluginError) as member:
        from nnsight.modeling import own  # noqa: F401
    with pytest.raises(MissingPluginError) as backend:
        plugins.lookup("backends", "own")
    for caught in (attribute, imported, module, member, backend):
        assert str(caught.value).endswith(f"is in nnsight-own, which is not installed: {line}")
        assert isinstance(caught.value, ImportError)


def test_a_plugin_that_was_installed_since_is_found(owned, install, tmp_path):
    with pytest.raises(MissingPluginError):
        _ = nnsight.OwnModel
    forget, plugins.forget = plugins.forget, lambda: None  # a process does not know that pip was run beside it
    try:
        install("nnsight-own", {"own_entry": OFFER.format(hook="families", names={"OwnModel": "own_entry:hookimpl"})})
    finally:
        plugins.forget = forget
    assert nnsight.OwnModel is sys.modules["own_entry"].hookimpl


def test_a_plugin_of_ours_that_is_too_old_or_broken(owned, install):
    install("nnsight_own", {"own_entry": OFFER.format(hook="families", names={"OwnModel": "own_entry"})}, version="0.1")
    with pytest.raises(
        PluginError, match=r"nnsight_own 0\.1 has no backend 'own' yet: pip install --upgrade nnsight-own"
    ):
        plugins.lookup("backends", "own")


def test_a_broken_plugin_of_ours_says_so_by_name(owned, install):
    install("nnsight-own", {"own_entry": "import no_such_library"}, version="0.1")
    problem_of("nnsight-own")
    with pytest.warns(NNsightWarning), pytest.raises(BrokenPluginError, match=r"'OwnModel'.*nnsight-own 0\.1.*no_such"):
        _ = nnsight.OwnModel


def test_an_entry_module_may_import_what_the_core_has(install):
    source = "from nnsight import plugin, util\n" + OFFER.format(hook="backends", names={"far": "far_entry:plugin"})
    install("nnsight-far", {"far_entry": source})
    assert plugins.lookup("backends", "far") is sys.modules["nnsight.plugin"]


def test_names_that_nobody_has(toy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AttributeError, match="module 'nnsight' has no attribute 'Nothing'"):
            _ = nnsight.Nothing
        with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
            from nnsight import Nothing  # noqa: F401
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("nnsight.modeling.nothing")
        with pytest.raises(PluginError, match=r"no plugin offers the model family 'Nothing'; there are .*ToyModel"):
            plugins.lookup("families", "Nothing")


def test_import_paths_of_a_plugin_are_its_own_modules(install):
    paths = {
        "nnsight.modeling.toy": "toy_package",
        "nnsight.toy_tools": "toy_package.tools",
        "nnsight.toy_six": "toy_entry:SIX",
    }
    install(
        "nnsight-toy",
        {
            "toy_entry": OFFER.format(hook="import_aliases", names=paths) + "\nSIX = 6\n",
            "toy_package.__init__": "LOADS = []",
            "toy_package.tools": "from toy_package import LOADS\nLOADS.append(__name__)",
        },
        entry="toy_entry",
    )
    import nnsight.modeling.toy as old
    import toy_package

    assert old is toy_package is sys.modules["nnsight.modeling.toy"] is nnsight.modeling.toy
    assert toy_package.__spec__.name == "toy_package"
    from nnsight.modeling.toy import LOADS, tools
    from nnsight.modeling.toy.tools import LOADS as again

    from nnsight import toy_six, toy_tools

    assert toy_tools is tools is sys.modules["toy_package.tools"]
    assert again is LOADS == ["toy_package.tools"]
    assert toy_six == 6
    for missing in ("nnsight.toy_six", "nnsight.modeling.toy.nothing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(missing)


def test_threads_may_ask_at_once(toy):
    found, gate = [], threading.Barrier(8)

    def ask():
        gate.wait()
        found.append(nnsight.ToyModel)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and set(found) == {nnsight.ToyModel}


CONTENT = json.loads(files("nnsight._core").joinpath("directory.json").read_text())


@pytest.mark.parametrize("extra", CONTENT)
def test_the_directory_knows_what_to_install(extra):
    distribution = CONTENT[extra]["distribution"]
    named = [(kind, name) for kind, names in CONTENT[extra].items() if kind != "distribution" for name in names]
    assert all(directory.owner(kind, name) == (extra, distribution) for kind, name in named) and named
    if any(one.distribution == distribution for one in plugins.plugins()):
        pytest.skip(f"{distribution} is installed here; its own tests check that it offers these")
    for kind, name in named:
        with pytest.raises(MissingPluginError) as caught:
            plugins.lookup(kind, name)
        assert str(caught.value).endswith(f'pip install "nnsight-core[{extra}]"')


def test_the_directorys_extras_exist():
    try:
        metadata = importlib.metadata.metadata("nnsight-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nnsight-core runs from a source tree here")
    assert set(CONTENT) <= set(metadata.get_all("Provides-Extra") or ())


def test_nothing_in_the_cores_code_names_a_plugin():
    names = {entry["distribution"] for entry in CONTENT.values()}
    names |= {name.replace("-", "_") for name in names}
    for path in Path(plugins.__file__).parents[1].rglob("*.py"):
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            used = []
            if isinstance(node, ast.Import):
                used = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                used = [node.module or ""]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                used = [node.value]
            assert not [name for text in used for name in names if name in text], f"{path}, line {node.lineno}"
