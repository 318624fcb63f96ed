"""Contexts whose blocks run inline or are captured, and code to run them in; for the tests of `nnsight._core.blocks`.

That package needs neither torch nor greenlet. Where torch is not installed (another Python, with `pytest --noconftest
tests/test_blocks.py tests/test_blocks_skip.py`) the packages around it are replaced by empty ones, so that `nnsight`'s
own `__init__` does not run.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import linecache
import os
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path


def stub(root):
    """Let `nnsight._core.blocks` be imported from a directory without importing `nnsight`."""
    for name, path in (("nnsight", root), ("nnsight._core", root + "/_core")):
        module = types.ModuleType(name)
        module.__path__ = [path]
        sys.modules[name] = module


if importlib.util.find_spec("torch") is None:
    stub(str(Path(__file__).parents[1] / "src" / "nnsight"))

from nnsight._core import blocks  # noqa: E402
from nnsight._core.blocks import capture, skip, skipped, write_back  # noqa: E402

ROOT = str(Path(blocks.__file__).parents[2])
GIVEN = 7
_count = itertools.count()


class Inline:
    """The block runs where it stands."""

    def __enter__(self):
        return GIVEN

    def __exit__(self, kind, error, tb):
        return False


class Later:
    """The block is captured, skipped, and run when it has been left."""

    last = None

    def __enter__(self):
        self.frame = sys._getframe(1)
        self.body = capture(self.frame)
        Later.last = self.body
        skip(self.frame)

    def __exit__(self, kind, error, tb):
        if not skipped(error):
            return False
        names = self.body.names()
        self.body.assign(names, GIVEN)
        self.body.bind(self.frame, GIVEN)
        try:
            self.body.run(names)
        finally:
            write_back(self.frame, names)
        return True


class Kept(Later):
    """The block is captured and skipped; the test runs it."""

    def __exit__(self, kind, error, tb):
        return skipped(error)


def run(text, /, **names):
    """Run text that linecache knows, as a notebook does; give its names."""
    text = textwrap.dedent(text)
    filename = f"<block {next(_count)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    space = {"__name__": __name__, "Inline": Inline, "Later": Later, "Kept": Kept, "sys": sys, **names}
    exec(compile(text, filename, "exec"), space)
    return space


def in_new_python(script, *options, tmp_path, name="script.py", **more):
    """Run a script in a new interpreter in which `Later` is there."""
    here = ["import sys, types", inspect.getsource(stub), f"stub({ROOT!r})", "from nnsight._core.blocks import *"]
    (tmp_path / "here.py").write_text("\n".join([*here, f"GIVEN = {GIVEN}", inspect.getsource(Later)]))
    (tmp_path / name).write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = (
        [sys.executable, *options]
        if options and options[-1] == "-"
        else [sys.executable, *options, str(tmp_path / name)]
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, **more)


def agreeing():
    """Read the texts that are run with their blocks inline and captured; some need a newer Python."""
    text = (Path(__file__).parent / "blocks_that_agree.txt").read_text()
    parts = re.split(r"^### (.+?)(?: \(from 3\.(\d+)\))?\n", text, flags=re.MULTILINE)
    return {
        name: body
        for name, minor, body in zip(parts[1::3], parts[2::3], parts[3::3])
        if minor is None or sys.version_info >= (3, int(minor))
    }


SAME = agreeing()
