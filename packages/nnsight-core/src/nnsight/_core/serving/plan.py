"""What of a block can be done once for several requests, read off its text.

One idea: only what is *known* to be the same, or to be done row by row, whoever looks. A statement is taken if it reads and
writes sites, counts with what it read (`together.py`), puts it into lists of its own, saves, and branches on what all
requests have alike. So nothing that it does depends on a request, and nothing outside of it hears of more than one at once.
The plan ends before the first statement of another kind: from there on each request goes on by itself.

What a name stands for is looked up, so that `model` is a model and `vector` a tensor, and nothing that looks like one.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch

from ..blocks import Block
from ..saved import save
from ..served import eproperty, first_input
from ..trace import Tracer
from ..tree import Node
from .together import METHODS

#: Kinds of values. `ROWS` differ between requests; all others are the same for all of them.
PLAIN, ROWS, PAIR, TENSOR, LIST, DICT, TRACER, OTHER = "plain rows pair tensor list dict tracer other".split()
#: A value: its kind, or the envoys that it may be.
Kind = str | tuple[Node, ...]

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_SITES = ("output", "input")
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_STEPS = ".steps"


class _Unknown(Exception):
    """Something is not known to be the same for each request."""


class Plan:
    """A block in parts: what is done together, and what each request does by itself.

    Attributes:
        before: the statements up to the loop over steps, or all of them; None without any.
        steps: the expression that the loop goes through.
        loop: the loop, over what stands under the name `.steps`.
        after: what is left.
    """

    def __init__(self, block: Block, before: list[ast.stmt], loop: ast.For | None, after: list[ast.stmt]) -> None:
        self.before = _compiled(block, before)
        self.steps = self.loop = None
        if loop is not None:
            steps = ast.Expression(loop.iter)
            self.steps = compile(steps, block.filename, "eval", dont_inherit=True)
            name = ast.copy_location(ast.Name(_STEPS, ast.Load()), loop.iter)
            self.loop = _compiled(block, [ast.copy_location(ast.For(loop.target, name, loop.body, []), loop)])
        self.after = _compiled(block, after)


def plan_of(block: Block, lookup: Callable[[str], Any], foreign: frozenset[str]) -> Plan | None:
    """Return the plan of a block, or None if nothing of it can be done together.

    Args:
        block: the block.
        lookup: finds what a name stands for that the block does not bind; raises KeyError.
        foreign: names that other invokes bind: what they stand for is not known.
    """
    found = block.found
    if found.items_after or block.rewritten or block.reads_anything:
        return None
    if any(isinstance(owner, ast.ClassDef) for owner in found.owners):
        return None
    reader = _Reader(block, lookup, foreign)
    before: list[ast.stmt] = []
    loop: ast.For | None = None
    statements = list(found.node.body)
    while statements:
        saved = reader.state()
        try:
            first = statements[0]
            if isinstance(first, ast.For) and reader.is_over_steps(first.iter):
                reader.loop(first)
                loop = first
                statements.pop(0)
                break
            reader.statement(first)
        except _Unknown:
            reader.restore(saved)
            break
        before.append(statements.pop(0))
    if not reader.sites or not _is_closed(statements, block, reader.bound):
        return None
    return Plan(block, before, loop, statements)


class _Reader:
    """Reads statements, and knows what the names in them stand for."""

    def __init__(self, block: Block, lookup: Callable[[str], Any], foreign: frozenset[str]) -> None:
        self.binds = block.binds
        self.lookup = lookup
        self.foreign = foreign
        #: What each name has stood for, and those that are bound for sure.
        self.kinds: dict[str, Kind] = {}
        self.bound: set[str] = set()
        self.sites = 0
        self.in_loop = 0

    def state(self) -> tuple[dict[str, Kind], set[str], int]:
        """Return what is known so far."""
        return dict(self.kinds), set(self.bound), self.sites

    def restore(self, state: tuple[dict[str, Kind], set[str], int]) -> None:
        """Forget what was learned since."""
        self.kinds, self.bound, self.sites = state

    # -- statements --------------------------------------------------------------------------------------------------

    def statement(self, node: ast.stmt) -> None:
        """Read one statement.

        Raises:
            _Unknown: it may do more than is allowed here.
        """
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.assign(target, value)
        elif isinstance(node, ast.AugAssign):
            self.change(node)
        elif isinstance(node, ast.Expr):
            self.do(node.value)
        elif isinstance(node, ast.For):
            self.inner_loop(node)
        elif isinstance(node, ast.If):
            self.need(self.value(node.test), PLAIN)
            before = set(self.bound)
            self.block(node.body)
            then, self.bound = self.bound, before
            self.block(node.orelse)
            self.bound &= then
        elif isinstance(node, (ast.Break, ast.Continue)):
            if not self.in_loop:
                raise _Unknown
        elif not isinstance(node, ast.Pass):
            raise _Unknown

    def block(self, statements: list[ast.stmt]) -> None:
        """Read statements that may not be reached."""
        for one in statements:
            self.statement(one)

    def loop(self, node: ast.For) -> None:
        """Read the loop over steps."""
        if node.orelse or not isinstance(node.target, ast.Name):
            raise _Unknown
        self.around(node, PLAIN)

    def inner_loop(self, node: ast.For) -> None:
        """Read a loop over numbers, or over modules."""
        if node.orelse:
            raise _Unknown
        over, target = node.iter, node.target
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and not over.keywords:
            if self.is_builtin(over.func, "range"):
                for argument in over.args:
                    self.need(self.value(argument), PLAIN)
                return self.around(node, PLAIN)
            if self.is_builtin(over.func, "enumerate") and len(over.args) == 1 and isinstance(target, ast.Tuple):
                number, each = target.elts
                self.assign(number, PLAIN)
                envoys = self.inside(self.value(over.args[0]))
                return self.around(node, envoys, each)
            raise _Unknown
        return self.around(node, self.inside(self.value(over)))

    def around(self, node: ast.For, kind: Kind, target: ast.expr | None = None) -> None:
        """Read the inside of a loop, which may not be entered at all."""
        before = set(self.bound)
        target = node.target if target is None else target
        if not isinstance(target, ast.Name):
            raise _Unknown
        self.assign(target, kind)
        self.in_loop += 1
        self.block(node.body)
        self.in_loop -= 1
        self.bound = before

    def do(self, node: ast.expr) -> None:
        """Read an expression that stands alone: an append, a stop, or any value."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords:
            name = node.func.attr
            if name == "append" and len(node.args) == 1:
                self.need(self.value(node.func.value), LIST)
                return self.need(self.value(node.args[0]), PLAIN, ROWS, PAIR, TENSOR)
            if name == "stop" and not node.args and self.value(node.func.value) == TRACER:
                return None
        self.value(node)
        return None

    def assign(self, target: ast.expr, value: Kind) -> None:
        """Read a target of an assignment."""
        if isinstance(target, ast.Name):
            name = target.id
            if value in (TRACER, OTHER) or name.startswith("__") or self.kinds.setdefault(name, value) != value:
                raise _Unknown
            self.bound.add(name)
        elif isinstance(target, ast.Tuple):
            self.need(value, ROWS)
            for part in target.elts:
                self.assign(part, ROWS)
        elif isinstance(target, ast.Attribute):
            self.site(target)
            self.need(value, ROWS, PAIR, TENSOR)
        elif isinstance(target, ast.Subscript):
            into = self.value(target.value)
            self.index(target.slice)
            if into == DICT:
                self.need(value, PLAIN, ROWS, PAIR, TENSOR)
            else:
                self.need(into, ROWS)
                self.need(value, PLAIN, ROWS, TENSOR)
        else:
            raise _Unknown

    def change(self, node: ast.AugAssign) -> None:
        """Read `x += y`, which may change in place what `x` is."""
        if not isinstance(node.op, _ARITHMETIC):
            raise _Unknown
        value = self.value(node.value)
        target = node.target
        if isinstance(target, ast.Name):
            old = self.name(target)
            if old == PLAIN:
                return self.need(value, PLAIN)
            self.need(old, ROWS)
        elif isinstance(target, ast.Attribute):
            self.site(target)
        else:
            self.need(self.value(target.value), ROWS)
            self.index(target.slice)
        return self.need(value, PLAIN, ROWS, TENSOR)

    # -- values ------------------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Kind:
        """Return of what kind an expression is."""
        if isinstance(node, ast.Constant):
            if node.value is not None and type(node.value) not in (bool, int, float, str):
                raise _Unknown
            return PLAIN
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, _ARITHMETIC):
            return self.joined(self.value(node.left), self.value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return self.joined(self.value(node.operand), PLAIN)
        if isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    self.need(self.value(part), PLAIN)
            return PLAIN
        if isinstance(node, ast.Tuple):
            for part in node.elts:
                self.need(self.value(part), PLAIN, ROWS, TENSOR)
            return PAIR
        if isinstance(node, ast.List) and not node.elts:
            return LIST
        if isinstance(node, ast.Dict) and not node.keys:
            return DICT
        if isinstance(node, ast.Call):
            return self.call(node)
        raise _Unknown

    def name(self, node: ast.Name) -> Kind:
        """Return what a name stands for."""
        name = node.id
        if name in self.bound:
            return self.kinds[name]
        if name in self.binds or name in self.foreign or name.startswith("__"):
            raise _Unknown
        try:
            value = self.lookup(name)
        except KeyError:
            raise _Unknown from None
        kind = type(value)
        if kind in _PLAIN:
            return PLAIN
        if kind in (torch.Tensor, torch.nn.Parameter):
            return TENSOR
        if isinstance(value, Node):
            return (value,)
        return TRACER if isinstance(value, Tracer) else OTHER

    def attribute(self, node: ast.Attribute) -> Kind:
        """Return what an attribute is: a site, or a module inside."""
        if node.attr in _SITES:
            self.site(node)
            return ROWS
        if isinstance(node.value, ast.Name) and node.value.id not in self.bound and self.is_named(node.value, torch):
            if isinstance(getattr(torch, node.attr, None), torch.dtype):
                return PLAIN
            raise _Unknown
        return _below(self.value(node.value), node.attr)

    def site(self, node: ast.Attribute) -> None:
        """See that an attribute is a site as it comes, with nobody's code between."""
        envoys = self.value(node.value)
        if node.attr not in _SITES or not isinstance(envoys, tuple):
            raise _Unknown
        if not all(_is_as_it_comes(inspect.getattr_static(type(envoy), node.attr, None)) for envoy in envoys):
            raise _Unknown
        self.sites += 1

    def subscript(self, node: ast.Subscript) -> Kind:
        """Return what an item is."""
        value = self.value(node.value)
        if isinstance(value, tuple):
            if isinstance(node.slice, ast.Constant) and type(node.slice.value) in (int, str):
                try:
                    return tuple(_node(envoy[node.slice.value]) for envoy in value)
                except (LookupError, TypeError):
                    raise _Unknown from None
            self.need(self.value(node.slice), PLAIN)
            return self.inside(value)
        self.need(value, ROWS, TENSOR)
        self.index(node.slice)
        return value

    def index(self, node: ast.expr) -> None:
        """See that an index is the same for each request."""
        for part in node.elts if isinstance(node, ast.Tuple) else [node]:
            if isinstance(part, ast.Slice):
                for bound in (part.lower, part.upper, part.step):
                    if bound is not None:
                        self.need(self.value(bound), PLAIN)
            elif not (isinstance(part, ast.Constant) and part.value is Ellipsis):
                self.need(self.value(part), PLAIN)

    def inside(self, kind: Kind) -> Kind:
        """Return what a loop over envoys gives."""
        if not isinstance(kind, tuple):
            raise _Unknown
        try:
            found = tuple(_node(child) for envoy in kind for child in envoy)
        except TypeError:
            raise _Unknown from None
        if not found:
            raise _Unknown
        return found

    def call(self, node: ast.Call) -> Kind:
        """Return what a call gives: of a method of tensors, `save`, or one that makes a container."""
        function, args = node.func, node.args
        if any(isinstance(arg, ast.Starred) for arg in args) or any(word.arg is None for word in node.keywords):
            raise _Unknown
        if self.is_save(function) and len(args) == 1 and not node.keywords:
            return self.need_any(self.value(args[0]), PLAIN, ROWS, PAIR, TENSOR, LIST, DICT)
        if isinstance(function, ast.Name) and not args and not node.keywords:
            for name, kind in (("list", LIST), ("dict", DICT)):
                if self.is_builtin(function, name):
                    return kind
        if not isinstance(function, ast.Attribute):
            raise _Unknown
        value = self.value(function.value)
        if function.attr == "save" and not args and not node.keywords:
            return self.need_any(value, PLAIN, ROWS, PAIR, TENSOR, LIST, DICT)
        if function.attr not in METHODS:
            raise _Unknown
        self.need(value, ROWS, TENSOR)
        gives: Kind = value
        for argument in (*args, *(word.value for word in node.keywords)):
            parts = argument.elts if isinstance(argument, ast.Tuple) else [argument]
            for part in parts:
                given = self.value(part)
                self.need(given, PLAIN, *([TENSOR, ROWS] if parts == [argument] and argument in args else []))
                gives = ROWS if given == ROWS else gives
        return gives

    def joined(self, left: Kind, right: Kind) -> Kind:
        """Return what arithmetic gives."""
        self.need(left, PLAIN, ROWS, TENSOR)
        self.need(right, PLAIN, ROWS, TENSOR)
        return ROWS if ROWS in (left, right) else TENSOR if TENSOR in (left, right) else PLAIN

    # -- what names are ----------------------------------------------------------------------------------------------

    def is_over_steps(self, node: ast.expr) -> bool:
        """Say whether a loop goes through the steps of the run: `tracer.iter`, `tracer.iter[...]`, `tracer.all()`."""
        if isinstance(node, ast.Call):
            return not (node.args or node.keywords) and self._is_tracers(node.func, "all")
        if isinstance(node, ast.Subscript):
            for part in node.slice.elts if isinstance(node.slice, ast.List) else [node.slice]:
                self.index(part)
            return self._is_tracers(node.value, "iter")
        return self._is_tracers(node, "iter")

    def _is_tracers(self, node: ast.expr, name: str) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and node.attr == name
            and isinstance(node.value, ast.Name)
            and self.name(node.value) == TRACER
        )

    def is_save(self, node: ast.expr) -> bool:
        """Say whether a function is `nnsight.save`."""
        if isinstance(node, ast.Attribute) and node.attr == "save" and isinstance(node.value, ast.Name):
            return not self._is_own(node.value) and getattr(self._found(node.value), "save", None) is save
        return isinstance(node, ast.Name) and self.is_named(node, save)

    def is_builtin(self, node: ast.Name, name: str) -> bool:
        """Say whether a name is that of a builtin, and stands for it."""
        return node.id == name and self.is_named(node, getattr(builtins, name))

    def is_named(self, node: ast.Name, thing: Any) -> bool:
        """Say whether a name stands for this very thing."""
        return not self._is_own(node) and self._found(node) is thing

    def _is_own(self, node: ast.Name) -> bool:
        return node.id in self.binds or node.id in self.foreign

    def _found(self, node: ast.Name) -> Any:
        try:
            return self.lookup(node.id)
        except KeyError:
            return None

    # -- what is allowed ---------------------------------------------------------------------------------------------

    def need(self, kind: Kind, *allowed: str) -> None:
        """Raise unless a value is of one of these kinds."""
        if kind not in allowed:
            raise _Unknown

    def need_any(self, kind: Kind, *allowed: str) -> Kind:
        """Raise unless a value is of one of these kinds, and return it."""
        self.need(kind, *allowed)
        return kind


def _below(kind: Kind, name: str) -> Kind:
    """Return the modules of this name inside others, if nothing else is called so."""
    if not isinstance(kind, tuple) or any(hasattr(type(envoy), name) for envoy in kind):
        raise _Unknown
    try:
        return tuple(_node(getattr(envoy, name)) for envoy in kind)
    except AttributeError:
        raise _Unknown from None


def _is_as_it_comes(site: Any) -> bool:
    return isinstance(site, eproperty) and not site.provided and site.read in (None, first_input)


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise _Unknown
    return value


def _is_closed(statements: list[ast.stmt], block: Block, bound: set[str]) -> bool:
    """Say whether what is left reads no name of the block that may not be bound: siblings would be asked for that."""
    bound = set(bound)
    for statement in statements:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        if any(isinstance(node, ast.AnnAssign) for node in ast.walk(statement)):
            return False  # a module would evaluate what it says of the type
        own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        if any(node.id in block.binds and node.id not in bound | own for node in names):
            return False
        if isinstance(statement, ast.Assign):
            bound |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return True


def _compiled(block: Block, statements: list[ast.stmt]) -> CodeType | None:
    if not statements:
        return None
    module = ast.Module(statements, [])
    code: CodeType = compile(module, block.filename, "exec", flags=block.future, dont_inherit=True)
    return code.replace(**block.called)
