"""The command line: what comes from plugins is found, handed its arguments, and missed with a line to install it."""

from __future__ import annotations

import pytest
from fresh_python import in_fresh_python

import nnsight
from nnsight._core import commands, directory, plugins
from nnsight._core.discovery import Plugin

HERE = f"{__name__}:"
calls = []


def greet(arguments):
    calls.append(arguments)
    return 7 if arguments == ["fail"] else None


@pytest.fixture
def offering(monkeypatch):
    """One plugin, which offers the command `greet`."""
    calls.clear()
    plugin = Plugin("toy", "nnsight-toy", "1.0", {"commands": {"greet": f"{HERE}greet"}})
    monkeypatch.setattr(plugins, "_plugins", (plugin,))


def test_a_command_gets_the_rest_of_the_line_unread(offering):
    assert commands.main(["greet", "--loud", "a b", "--help"]) == 0
    assert calls == [["--loud", "a b", "--help"]]


def test_its_status_is_that_of_the_process(offering):
    assert commands.main(["greet", "fail"]) == 7


def test_a_command_that_nobody_offers_says_what_there_is(offering, capsys):
    assert commands.main(["grete"]) == 2
    said = capsys.readouterr().err
    assert "'grete'" in said and "greet" in said and "usage: nnsight" in said


def test_a_command_of_a_package_that_is_missing_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "search", lambda: iter(()))
    monkeypatch.setattr(plugins, "_plugins", ())
    owned = directory.owned("commands")
    assert owned, "no package of this project brings a command"
    for name, owner in owned.items():
        assert commands.main([name]) == 2
        assert owner.install_line in capsys.readouterr().err
    assert commands.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and owner.install_line in said for name, owner in owned.items())


def test_without_a_command_it_lists_them(offering, capsys):
    assert commands.main([]) == 2
    assert "greet" in capsys.readouterr().out


def test_it_lists_plugins_and_the_version(offering, capsys):
    assert commands.main(["plugins"]) == 0
    assert "nnsight-toy 1.0" in capsys.readouterr().out
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["nnsight-core", nnsight.__version__]


def test_it_runs_as_a_module_too():
    done = in_fresh_python(
        "import runpy; runpy.run_module('nnsight', run_name='__main__', alter_sys=True)", "--version"
    )
    assert (done.returncode, done.stdout.split()) == (0, ["nnsight-core", nnsight.__version__]), done.stderr
