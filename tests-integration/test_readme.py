"""What the README says beside its snippets, which `test_docs.py` runs: its commands, its links and its table."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

READMES = [ROOT / "README.md", *sorted((ROOT / "packages").glob("*/README.md"))]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_ci_runs_the_test_command_of_the_readme():
    *_, last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert last == "python -m pip install nox && python -m nox"
    assert commands()[:2] == [f"{last} -s demo", last]


def test_the_sessions_that_the_readme_names_are_there():
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = re.findall(r"^def (\w+)\(session", noxfile, re.MULTILINE)
    sessions += re.findall(r"^@nox\.session\(name=\"([\w-]+)\"\)", noxfile, re.MULTILINE)
    named = re.findall(r"nox -s ([\w-]+)", TEXT)
    assert named
    assert set(named) <= set(sessions)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_its_links_lead_somewhere(readme):
    prose = re.sub(r"^```.*?^```", "", readme.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert [link for link in links if not (readme.parent / link).exists()] == []
    assert links or readme != ROOT / "README.md"


def test_every_package_is_in_the_table():
    packages = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert set(re.findall(r"^\| \[([\w-]+)\]\(packages/\1\)", TEXT, re.MULTILINE)) == packages
