"""A block that was captured: found, checked, compiled once per place, and run as often as wanted.

The one idea: the statements are compiled as a module's would be, with their own file name and line numbers, and run
in a mapping of names. What the text alone decides is a `Block`, kept per instruction of the code that the `with`
belongs to; what the moment decides, the values around it, is a `Body`. Skipping the block where it stands is left to
`skip.py`, binding its names there to `scope.py`.
"""

from __future__ import annotations
import __future__

import ast
import warnings
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

from ..errors import NNsightWarning
from ..parsing import reading
from .bindings import declared_global
from .escapes import refuse_escapes
from .find import Found, changed, find_with
from .heads import after_enter
from .lines import dedented
from .names import BodyGlobals, Lookup, Names, physical
from .rewrite import rewrite
from .scope import Window, snapshot, write_back

# Code that computes names at run time may read any of them, and so may who looks in with a debugger.
_READS_ANYTHING = frozenset(("eval", "exec", "locals", "vars", "dir", "breakpoint", "pdb", "ipdb"))
_FUTURES = __future__.annotations.compiler_flag | __future__.barry_as_FLUFL.compiler_flag
_KEPT_BLOCKS = 4096


class Block:
    """What the text of a block says about it, whatever the values."""

    def __init__(self, found: Found, around: CodeType, at: int | None) -> None:
        """Read a block that stands in the code `around`, where that enters it at `at`; None if it came from elsewhere."""
        self.found = found
        self.filename = found.filename
        self.lineno = found.node.lineno
        self.warned: dict[Any, Any] = {}
        statements = _with_items(found.items_after, found.node)
        refuse_escapes(statements, found.filename)
        outside = declared_global(found.owners)
        rewritten, scope = rewrite(statements, found.owners, outside, found.filename)
        #: The flags of what it is compiled with, and what its code is called: tracebacks say where the block stands.
        self.future = around.co_flags & _FUTURES
        self.called = {name: getattr(around, name) for name in ("co_name", "co_qualname") if hasattr(around, name)}
        self.code = self._compile(rewritten)
        if at is not None and not _plain(_names(self.code)) <= _plain(_names(around)):
            raise changed(found.filename, found.node.lineno)
        self.target, self.store, needed = self._target(found, outside)
        #: Whether the code refers to what `rewrite.py` puts there.
        self.rewritten = any(
            _names(code) != _plain(_names(code)) for code in (self.code, self.store) if code is not None
        )
        self.reads = frozenset(scope.wanted() | needed)
        self.reads_anything = not _READS_ANYTHING.isdisjoint(self.reads)
        self.writes = frozenset(scope.stored())
        #: What others may find bound by it: also the plain name after `as`.
        self.binds = self.writes if self.target is None else self.writes | {self.target}
        self.window = Window(around, self.reads)
        #: Where the code around goes on once the context is entered; for `skip`.
        self.entered = None if at is None else after_enter(around, at)
        self.source = _source(found)

    def mentioned(self) -> frozenset[str]:
        """Return every name that the block has, the one after `as` among them."""
        codes = [code for code in (self.code, self.store) if code is not None]
        return self.binds.union(*(_plain(_names(code)) for code in codes))

    def _compile(self, statements: list[ast.stmt]) -> CodeType:
        code: CodeType = compile(
            ast.Module(statements, []), self.filename, "exec", flags=self.future, dont_inherit=True
        )
        return code.replace(**self.called)

    def _target(self, found: Found, outside: set[str]) -> tuple[str | None, CodeType | None, set[str]]:
        """Give the plain name after `as`, or code that binds what else stands there and the names that it reads."""
        target = found.item.optional_vars
        if target is None:
            return None, None, set()
        given = ast.copy_location(ast.Name(".given", ast.Load()), target)
        store = ast.copy_location(ast.Assign([target], given), target)
        [renamed], scope = rewrite([store], found.owners, outside, found.filename)
        assert isinstance(renamed, ast.Assign)
        plain = renamed.targets[0]
        if isinstance(plain, ast.Name):
            return plain.id, None, set()
        return None, self._compile([renamed]), scope.wanted() - {given.id}


class Body:
    """A captured block and the values around it, ready to be run."""

    __slots__ = ("block", "outer", "physical", "real")

    def __init__(self, block: Block, outer: dict[str, Any], real: dict[str, Any]) -> None:
        self.block = block
        self.outer = outer
        self.real = real
        #: Set by `share`: what the globals of each run hold, once the first has begun.
        self.physical: dict[str, Any] | None = None

    @property
    def filename(self) -> str:
        """The file that the block stands in."""
        return self.block.filename

    @property
    def lineno(self) -> int:
        """The line of the `with`, counted from 1."""
        return self.block.lineno

    @property
    def source(self) -> str:
        """The text of the block, dedented; items of the `with` after ours stand around it as a `with` of their own."""
        return self.block.source

    @property
    def target(self) -> str | None:
        """The plain name after `as`; None if there is none or it is not a plain name (see `bind`)."""
        return self.block.target

    @property
    def has_target(self) -> bool:
        """Whether anything stands after `as`."""
        return self.block.target is not None or self.block.store is not None

    @property
    def reads(self) -> frozenset[str]:
        """The names that the block, or what it defines, may look for outside."""
        return self.block.reads

    @property
    def reads_anything(self) -> bool:
        """Whether the block computes names at run time (`eval`, `locals()`), and so may read others than `reads`."""
        return self.block.reads_anything

    @property
    def writes(self) -> frozenset[str]:
        """The names that the block may bind; those declared `global` are not among them."""
        return self.block.writes

    @property
    def items_before(self) -> list[ast.withitem]:
        """The items of the same `with` before ours. They have been left when the body runs."""
        return self.block.found.items_before

    def names(self, elsewhere: Lookup | None = None) -> Names:
        """Give names for one run: empty, and with the captured values and the globals around them."""
        return Names(self.outer, self.real, elsewhere)

    def run(self, names: Names) -> None:
        """Run the block; what it binds is in `names` afterwards, and also when it raises."""
        exec(self.block.code, self._globals(names), names)

    def assign(self, names: Names, value: Any) -> None:
        """Bind what stands after `as` to `value`, for one run."""
        block = self.block
        if block.target is not None:
            names[block.target] = value
        elif block.store is not None:
            around = self._globals(names)
            dict.__setitem__(around, ".given", value)
            exec(block.store, around, names)

    def share(self, earlier: Body | None) -> None:
        """Say that this body's runs and those of an earlier capture of the same block belong to one moment.

        What the interpreter reads of a module without asking (`__name__`, ...) is then looked up once for all of them.
        """
        same = earlier is not None and earlier.block is self.block and earlier.real is self.real
        self.physical = earlier.physical if earlier is not None and same else {}

    def bind(self, frame: FrameType, value: Any) -> None:
        """Bind what stands after `as` to `value` in the caller's frame, as entering the context would have."""
        names = self.names()
        self.assign(names, value)
        write_back(frame, names)

    def bring_back(self, frame: FrameType, saved: Mapping[str, Any]) -> None:
        """Bind in the caller's frame what came back from elsewhere: names that the block has, and no others."""
        strange = [] if self.reads_anything else sorted(saved.keys() - self.block.mentioned())
        if strange:
            warnings.warn(
                f"what came back also holds {', '.join(map(repr, strange))[:200]}, which the block does not name; that is "
                "left alone",
                NNsightWarning,
                stacklevel=4,
            )
        write_back(frame, {name: value for name, value in saved.items() if name not in strange})

    def _globals(self, names: Names) -> BodyGlobals:
        block, held = self.block, self.physical
        if not held:
            found = physical(self.real, block.warned)
            if held is None:
                return BodyGlobals(found, names, block)
            held.update(found)
        return BodyGlobals(held, names, block)

    def __repr__(self) -> str:
        return f"<Body {self.filename}:{self.lineno}>"


_blocks: dict[tuple[int, int], tuple[CodeType, Block]] = {}


def capture(frame: FrameType) -> Body:
    """Capture the block of the `with` whose context is being entered in `frame`.

    SourceError if its text is not to be had, is not what is running, or does what a captured block cannot do.

        def __enter__(self):
            frame = sys._getframe(1)
            self.body = capture(frame)
            skip(frame)
    """
    block = block_of(frame)
    if block.reads_anything:
        outer = snapshot(frame, set(frame.f_locals) | block.reads)
    else:
        outer = block.window.snapshot(frame)
    return Body(block, outer, frame.f_globals)


def block_of(frame: FrameType) -> Block:
    """Give the block of the `with` that `frame` is entering; from the second time on, from memory."""
    code = frame.f_code
    # By identity: comparing code compares all of it. The code is kept, so that no other gets its number.
    key = (id(code), frame.f_lasti)
    known = _blocks.get(key)
    if known is None:
        with reading:
            if len(_blocks) >= _KEPT_BLOCKS:
                _blocks.clear()
            known = _blocks[key] = (code, Block(find_with(frame), code, frame.f_lasti))
    return known[1]


def _with_items(items: list[ast.withitem], node: ast.With) -> list[ast.stmt]:
    return [ast.copy_location(ast.With(items, node.body), node)] if items else node.body


def _names(code: CodeType) -> set[str]:
    """Give every name that code, or code inside it, mentions."""
    names = {code.co_name, *code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _plain(names: set[str]) -> set[str]:
    """Leave out the names that we put there: those begin with a dot."""
    return {name for name in names if not name.startswith(".")}


def _source(found: Found) -> str:
    text = dedented(found.lines, found.node.body)
    if not found.items_after:
        return text
    items = ", ".join(map(ast.unparse, found.items_after))
    return f"with {items}:\n" + "".join(f"    {line}" for line in text.splitlines(keepends=True))
