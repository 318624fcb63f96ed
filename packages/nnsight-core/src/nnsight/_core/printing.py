"""How a wrapped model shows itself: the picture that torch draws of a module, and what torch leaves out.

Added are aliases (`(h/layers): ModuleList(`), lines that the caller supplies for a module, the shapes that it saw there,
and a note where a module comes a second time. Neighbours that are alike are drawn once, in any container. To find them,
each module becomes a `Drawing` with a number that equal drawings share, so a stack of eighty blocks costs eighty looks
and one block of text. `notebook.py` writes the same drawings as HTML.

Without aliases, supplied lines, shapes, shared modules and runs outside a ModuleList the text is torch's to the letter
(but for spaces in empty lines, where torch does not agree with itself).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch.nn import Module, ModuleDict, ModuleList, Sequential

_COUNTED = re.compile(r"(.*?)(0|[1-9]\d*)", re.DOTALL)


class Label(NamedTuple):
    """How a child is called on its parent."""

    name: str
    aliases: tuple[str, ...]
    counted: bool
    """Whether its container's children are told apart by the number that ends their names."""

    def __str__(self) -> str:
        return "/".join((self.name, *self.aliases))

    def follows(self, other: Label) -> bool:
        """Whether it is the next of a row that `other` is in."""
        if self.aliases or other.aliases:
            return False
        mine, theirs = _COUNTED.fullmatch(self.name), _COUNTED.fullmatch(other.name)
        if mine is None or theirs is None or mine[1] != theirs[1] or (mine[1] and not self.counted):
            return False
        return int(mine[2]) == int(theirs[2]) + 1


class Drawing(NamedTuple):
    """One module, ready to be written."""

    module: Module
    number: int
    """Equal for two modules exactly if the same would be written for both."""
    head: str
    """The name of its class; or all of its text, if it is `closed`."""
    closed: bool
    lines: tuple[str, ...]
    more: tuple[str, ...]
    children: tuple[Child, ...]
    note: str
    shapes: str
    """What passed in and out of it: `[1, 8, 128] -> [1, 8, 512]`."""


Child = tuple[Label, "Drawing | None"]


def render(
    module: Module,
    describe: Callable[[str, Module], Sequence[str]] | None = None,
    names_of: Callable[[str], Sequence[str]] | None = None,
    shapes_of: Callable[[str], str] | None = None,
) -> str:
    """Write `module` as torch would, with aliases, supplied lines and shapes.

    Args:
        module: The outermost module of the picture.
        describe: Given the path from there to a module ("" for `module`), and it, the lines to show in it besides.
        names_of: Given such a path, the aliases of what is there.
        shapes_of: Given such a path, the shapes that were seen there, or nothing.

    Example:
        >>> print(render(mlp, names_of=lambda path: ["up"] if path == "0" else []))
        Sequential(
          (0/up): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
        )
    """
    return _write(draw(module, describe, names_of, shapes_of))


def draw(
    module: Module,
    describe: Callable[[str, Module], Sequence[str]] | None = None,
    names_of: Callable[[str], Sequence[str]] | None = None,
    shapes_of: Callable[[str], str] | None = None,
) -> Drawing:
    """Draw `module`, ready to be written in one way or another; the arguments are those of `render`."""
    return _Artist(describe, names_of, shapes_of).draw(module, "")


class _Artist:
    """Draw each module of one picture, and know which were drawn before."""

    def __init__(
        self,
        describe: Callable[[str, Module], Sequence[str]] | None,
        names_of: Callable[[str], Sequence[str]] | None,
        shapes_of: Callable[[str], str] | None,
    ) -> None:
        self._describe = describe
        self._names_of = names_of
        self._shapes_of = shapes_of
        self._seen: dict[Module, str] = {}
        self._numbers: dict[object, int] = {}

    def draw(self, module: Module, path: str) -> Drawing:
        first = self._seen.setdefault(module, path)
        if first != path:
            return self._again(module, path, first)
        # relies on: torch.nn.Module.__repr__ and torch.nn.ModuleList.__repr__, torch 2.x
        how = type(module).__repr__
        described = self._describe(path, module) if self._describe is not None else ()
        more = tuple(line for text in described for line in text.split("\n"))
        shapes = self._shapes_of(path) if self._shapes_of is not None else ""
        if how not in (Module.__repr__, ModuleList.__repr__):
            # It draws itself, its children included, and we cannot know in which of its lines they are.
            return self._drawing(module, repr(module), True, more=more, shapes=shapes)
        lines = _lines(module.extra_repr()) if how is Module.__repr__ else ()
        counted = isinstance(module, (Sequential, ModuleList, ModuleDict))
        children = tuple(self._child(name, child, path, counted) for name, child in module._modules.items())
        return self._drawing(module, _name(module), False, lines, more, children, shapes=shapes)

    def _child(self, name: str, child: Module | None, path: str, counted: bool) -> Child:
        path = f"{path}.{name}" if path else name
        aliases = () if self._names_of is None or child is None else tuple(self._names_of(path))
        return Label(name, aliases, counted), None if child is None else self.draw(child, path)

    def _again(self, module: Module, path: str, first: str) -> Drawing:
        """Draw a module that has been drawn: one line, and where the rest is."""
        text = repr(module) if not module._modules else "\n"
        head = f"{_name(module)}(...)" if "\n" in text else text
        note = f"  # the same module as {first or 'the outermost'}"
        # What the note says depends on where it stands. Blocks that each share a module within themselves are alike
        # though, so they are compared by the way from the one place to the other.
        here, there = path.split("."), first.split(".")
        common = len(os.path.commonprefix([here, there]))
        return self._drawing(module, head, True, note=note, way=(len(here) - common, *there[common:]))

    def _drawing(
        self,
        module: Module,
        head: str,
        closed: bool,
        lines: tuple[str, ...] = (),
        more: tuple[str, ...] = (),
        children: tuple[Child, ...] = (),
        note: str = "",
        way: tuple[object, ...] = (),
        shapes: str = "",
    ) -> Drawing:
        inside = tuple([(label, child and child.number) for label, child in children])
        number = self._numbers.setdefault((head, closed, lines, more, inside, way, shapes), len(self._numbers))
        return Drawing(module, number, head, closed, lines, more, children, note, shapes)


class Run(NamedTuple):
    """Neighbours that are alike, drawn once; most often just one."""

    name: str
    times: int
    first: Label
    drawing: Drawing | None


def runs(children: Sequence[Child]) -> list[Run]:
    """Put neighbours that are alike together."""
    found: list[Run] = []
    at = 0
    while at < len(children):
        label, drawing = children[at]
        end = at + 1
        while end < len(children) and drawing is not None and _alike(children[end - 1], children[end]):
            end += 1
        name = f"{label}-{children[end - 1][0]}" if end - at > 1 else str(label)
        found.append(Run(name, end - at, label, drawing))
        at = end
    return found


def _write(drawing: Drawing) -> str:
    shapes = f"  # {drawing.shapes}" if drawing.shapes else ""
    if drawing.closed:
        first, *rest = "\n  ".join((drawing.head, *drawing.more)).split("\n")
        return "\n".join((first + shapes, *rest)) + drawing.note
    inside = [*drawing.lines, *drawing.more, *map(_row, runs(drawing.children))]
    if inside == list(drawing.lines[:1]):
        return f"{drawing.head}({''.join(inside)}){shapes}"
    body = "".join(f"\n  {line}" if line.strip() else "\n" for line in inside)
    return f"{drawing.head}({shapes}{body}\n)"


def _row(run: Run) -> str:
    text = "None" if run.drawing is None else _write(run.drawing)
    times = f"{run.times} x " if run.times > 1 else ""
    first, *rest = f"({run.name}): {times}{text}".split("\n")
    return "\n".join([first, *(f"  {line}" if line.strip() else "" for line in rest)])


def _alike(one: Child, other: Child) -> bool:
    (before, left), (label, right) = one, other
    return left is not None and right is not None and left.number == right.number and label.follows(before)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n")) if text else ()


def _name(module: Module) -> str:
    # relies on: torch.nn.Module._get_name, torch 2.x (a scripted or quantized module has another name than its class)
    name: str = module._get_name()  # type: ignore[no-untyped-call]
    return name
