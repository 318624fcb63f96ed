"""What the expressions of a block are known to be, read off its text: what is one thing for all requests, and what differs.

One idea: an expression has a kind, which says what may be done with it; one whose kind is not known is `Unknown`. Names are
looked up, so a kind is that of the very value that the block will find.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
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
State = tuple[dict[str, Kind], set[str], set[str], int, int]

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_SITES = ("output", "input")
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


class Unknown(Exception):
    """Something is not known to be the same for each request."""


class Known:
    """What is known of the names of a block, and of expressions made of them.

    Args:
        block, lookup, foreign: see `plan_of`.
    """

    def __init__(self, block: Block, lookup: Callable[[str], Any], foreign: frozenset[str]) -> None:
        self.binds = block.binds
        self.lookup = lookup
        self.foreign = foreign
        #: What each name has stood for, and those that are bound for sure.
        self.kinds: dict[str, Kind] = {}
        self.bound: set[str] = set()
        #: The names that were looked up.
        self.used: set[str] = set()
        self.sites = 0
        self.in_loop = 0
        #: How many of the sites are outputs of which one part is taken at once (`layer.output[0]`), and which parts.
        self.taken = 0
        self.parts: set[int] = set()
        #: The site that each round of the loop over steps asks for first, and whether that is still to be found.
        self.first: tuple[tuple[Node, ...], str] | None = None
        self.looking = False
        #: All that the loop over steps asks for, and whether a round may end before its text does.
        self.asking: list[tuple[ast.Attribute, tuple[Node, ...]]] = []
        self.leaves = False
        #: Whether anything is marked as saved in it.
        self.saves = False

    def state(self) -> State:
        """Return what is known so far."""
        return dict(self.kinds), set(self.bound), set(self.used), self.sites, self.taken

    def restore(self, state: State) -> None:
        """Forget what was learned since."""
        self.kinds, self.bound, self.used, self.sites, self.taken = state

    # -- values ------------------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Kind:
        """Return of what kind an expression is."""
        if isinstance(node, ast.Constant):
            if node.value is not None and type(node.value) not in (bool, int, float, str):
                raise Unknown
            return PLAIN
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ARITHMETIC):
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
        raise Unknown

    def name(self, node: ast.Name) -> Kind:
        """Return what a name stands for."""
        name = node.id
        if name in self.bound:
            return self.kinds[name]
        if name in self.binds or name in self.foreign or name.startswith("__"):
            raise Unknown
        self.used.add(name)
        try:
            value = self.lookup(name)
        except KeyError:
            raise Unknown from None
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
            raise Unknown
        return _below(self.value(node.value), node.attr)

    def site(self, node: ast.Attribute) -> None:
        """See that an attribute is a site as it comes, with nobody's code between."""
        envoys = self.value(node.value)
        if node.attr not in _SITES or not isinstance(envoys, tuple):
            raise Unknown
        if not all(_is_as_it_comes(site_of(type(envoy), node.attr)) for envoy in envoys):
            raise Unknown
        self.sites += 1
        self.asking.append((node, envoys))
        if self.looking:
            self.first, self.looking = (envoys, node.attr), False

    def subscript(self, node: ast.Subscript) -> Kind:
        """Return what an item is."""
        value = self.value(node.value)
        if isinstance(value, tuple):
            if isinstance(node.slice, ast.Constant) and type(node.slice.value) in (int, str):
                try:
                    return tuple(_node(envoy[node.slice.value]) for envoy in value)
                except (LookupError, TypeError):
                    raise Unknown from None
            self.need(self.value(node.slice), PLAIN)
            return self.inside(value)
        self.need(value, ROWS, TENSOR)
        self.index(node.slice)
        site, number = node.value, node.slice
        if isinstance(site, ast.Attribute) and site.attr == "output" and isinstance(number, ast.Constant):
            if type(number.value) is int:
                self.taken += 1
                self.parts.add(number.value)
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
            raise Unknown
        try:
            found = tuple(_node(child) for envoy in kind for child in envoy)
        except TypeError:
            raise Unknown from None
        if not found:
            raise Unknown
        return found

    def call(self, node: ast.Call) -> Kind:
        """Return what a call gives: of a method of tensors, `save`, or one that makes a container."""
        function, args = node.func, node.args
        if any(isinstance(arg, ast.Starred) for arg in args) or any(word.arg is None for word in node.keywords):
            raise Unknown
        if self.is_save(function) and len(args) == 1 and not node.keywords:
            self.saves = True
            return self.need_any(self.value(args[0]), PLAIN, ROWS, PAIR, TENSOR, LIST, DICT)
        if isinstance(function, ast.Name) and not args and not node.keywords:
            for name, kind in (("list", LIST), ("dict", DICT)):
                if self.is_builtin(function, name):
                    return kind
        if not isinstance(function, ast.Attribute):
            raise Unknown
        value = self.value(function.value)
        if function.attr == "save" and not args and not node.keywords:
            self.saves = True
            return self.need_any(value, PLAIN, ROWS, PAIR, TENSOR, LIST, DICT)
        if function.attr not in METHODS:
            raise Unknown
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
        self.used.add(node.id)
        try:
            return self.lookup(node.id)
        except KeyError:
            return None

    # -- what is allowed ---------------------------------------------------------------------------------------------

    def need(self, kind: Kind, *allowed: str) -> None:
        """Raise unless a value is of one of these kinds."""
        if kind not in allowed:
            raise Unknown

    def need_any(self, kind: Kind, *allowed: str) -> Kind:
        """Raise unless a value is of one of these kinds, and return it."""
        self.need(kind, *allowed)
        return kind


def _below(kind: Kind, name: str) -> Kind:
    """Return the modules of this name inside others, if nothing else is called so."""
    if not isinstance(kind, tuple) or any(hasattr(type(envoy), name) for envoy in kind):
        raise Unknown
    try:
        return tuple(_node(getattr(envoy, name)) for envoy in kind)
    except AttributeError:
        raise Unknown from None


def site_of(kind: type, name: str) -> Any:
    """Return what a class of envoys, or one that it is made of, holds under a name; None for nothing."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _is_as_it_comes(site: Any) -> bool:
    return isinstance(site, eproperty) and not site.provided and site.read in (None, first_input)


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise Unknown
    return value
