"""A page of the documentation, run as it is written: its fenced python blocks, in order, in one namespace.

The one idea: the blocks keep the file name and the line numbers of the page, and `linecache` is told that this file
holds nothing else. So tracebacks point into the page, and captured bodies find their source there.

What a block is expected to do stands in the page too:

- a fence `text` right behind a block is what it prints, or the error that it raises (`...` stands for anything, and
  lines may be broken anywhere);
- a comment before a block, `<!-- raises: KeyError -->` or `<!-- warns: UnmetSiteWarning -->`, names the class exactly;
  `<!-- without: nnsight-vllm -->` runs the block as if that plugin were not installed.

A page that begins with `<!-- runs in: nnsight-vllm -->` needs more than these tests have: the tests of that package run it;
with a folder behind it (`nnsight-vllm/spread`), those in that folder of its tests.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nnsight import NNsightWarning
from nnsight._core import plugins

ROOT = Path(__file__).parent.parent
EVERY = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", *sorted((ROOT / "packages").glob("*/README.md"))]
_RUNS_IN = re.compile(r"<!-- runs in: (\S+) -->\n")

# What is only shown is fenced with `{ .python }`: ruff formats the inside of the others, and would spoil the path.
_FENCE = re.compile(r"^( *)(```+) *(?:\{ *\.)?(\w*)")
_OPTIONS = re.compile(r"<!-- *((?:raises|warns|without):.*?) *-->")
#: A file that is shown on a page instead of being copied into it; it has tests of its own.
_SNIPPET = re.compile(r'^ *--8<-- +"(.+)"', re.MULTILINE)


def pages_of(package: str | None) -> list[Path]:
    """Return the pages that the tests of a package run; those that run here, if none is given."""
    found = [(path, _RUNS_IN.match(path.read_text(encoding="utf-8"))) for path in EVERY]
    return [path for path, said in found if (said[1] if said else None) == package]


@dataclass
class Block:
    """One fenced block: its text, the line of the page that it begins on, and what it is to do."""

    line: int
    text: str
    options: dict[str, str] = field(default_factory=dict)
    expected: str | None = None


class Page:
    """A Markdown file and its python blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        self.text = path.read_text(encoding="utf-8")
        self.blocks = list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        last: Block | None = None
        options: dict[str, str] = {}
        lines = iter(enumerate(self.text.splitlines(), start=1))
        for number, line in lines:
            fence = _FENCE.match(line)
            comment = _OPTIONS.search(line)
            if fence:
                body = []
                for _, inside in lines:
                    if inside.strip() == fence[2]:
                        break
                    body.append(inside)
                text = textwrap.dedent("\n".join(body)) + "\n"
                if fence[3] == "text" and last is not None:
                    last.expected = text
                last = None
                if fence[3] in ("python", "py", "pycon"):
                    last = Block(number + 1, text, options)
                    yield last
                options = {}
            elif comment:
                options = dict(re.split(r": *", option, maxsplit=1) for option in comment[1].split("; "))
            elif line.strip():
                last, options = None, {}

    def run(self) -> None:
        """Run the blocks; an AssertionError says which did not do what the page says."""
        torch.manual_seed(0)
        filename = str(self.path)
        code = [""] * (self.text.count("\n") + 2)
        ours = [block for block in self.blocks if not self._is_shown(block)]
        for block in ours:
            inside = block.text.splitlines()
            code[block.line - 1 : block.line - 1 + len(inside)] = inside
        lines = [line + "\n" for line in code]
        # Without a time of change, linecache never looks at the file again, which is no Python.
        linecache.cache[filename] = (len("".join(lines)), None, lines, filename)
        namespace: dict[str, Any] = {"__name__": "page", "__file__": filename}
        try:
            for block in ours:
                self._run_block(block, compile("\n" * (block.line - 1) + block.text, filename, "exec"), namespace)
        finally:
            del linecache.cache[filename]

    def _run_block(self, block: Block, code: Any, namespace: dict[str, Any]) -> None:
        where = f"{self.name}, line {block.line}"
        printed, raised = io.StringIO(), None
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always")
            with _without(block.options.get("without")):
                try:
                    exec(code, namespace)
                except Exception as error:
                    if type(error).__name__ != block.options.get("raises"):
                        raise
                    raised = error
        assert raised is not None or "raises" not in block.options, f"{where}: nothing was raised"
        ours = [warning for warning in warned if issubclass(warning.category, NNsightWarning)]
        names = {warning.category.__name__ for warning in ours}
        assert names == set(filter(None, [block.options.get("warns")])), f"{where}: warned {names or 'of nothing'}"
        said = printed.getvalue()
        said += "".join(f"{warning.category.__name__}: {warning.message}\n" for warning in ours)
        if raised is not None:
            said += f"{type(raised).__name__}: {raised}"
        if block.expected is not None:
            assert _agree(block.expected, said), f"{where}: the page says\n{block.expected}\nand it was\n{said}"

    def _is_shown(self, block: Block) -> bool:
        shown = _SNIPPET.findall(block.text)
        for path in shown:
            assert (ROOT / path).is_file(), f"{self.name} shows {path}, which is not there"
        return bool(shown)


def _agree(expected: str, said: str) -> bool:
    parts = [re.escape("".join(part.split())) for part in expected.split("...")]
    return re.fullmatch(".*".join(parts), "".join(said.split())) is not None


@contextlib.contextmanager
def _without(distribution: str | None) -> Iterator[None]:
    if distribution is None:
        yield
        return
    search = plugins.search
    plugins.search = lambda: [plugin for plugin in search() if plugin.distribution != distribution]
    plugins.forget()
    try:
        yield
    finally:
        plugins.search = search
        plugins.forget()
