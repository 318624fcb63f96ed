"""What of a block can be done once for several requests, read off its text.

One idea: only what is *known* to be the same, or to be done row by row, whoever looks (`known.py`). A statement is taken if
it reads and writes sites, counts with what it read (`together.py`), puts it into lists of its own, saves, and branches on
what all requests have alike. So nothing that it does depends on a request, and nothing outside of it hears of more than one
at once. The plan ends before the first statement of another kind: from there on each request goes on by itself.
"""

from __future__ import annotations

import ast
import functools
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

from ..blocks import Block
from ..sites import OUTPUT, Place
from .known import ARITHMETIC, DICT, LIST, OTHER, PAIR, PLAIN, ROWS, TENSOR, TRACER, Kind, Known, Unknown, site_of
from .rounds import Round, round_of

#: Under which name the code of a loop finds its steps: one that no body has.
STEPS = ".steps"
#: A site: its place, and the stage.
First = tuple[Place, str]


class Plan:
    """A block in parts: what is done together, and what each request does by itself.

    Attributes:
        before: the statements up to the loop over steps, or all of them; None without any.
        steps: the expression that the loop goes through.
        loop: the loop, over what stands under the name `.steps`.
        after: what is left.
        used: the names that stand for the same in all bodies of which this is done together.
        first: what each round of the loop asks for first, whatever the round, and at which stage: before that it does
            nothing that could be seen outside of it. None if that is not known.
        parts: where all that is done together asks for is one part or another of an output, `layer.output[0]`: which.
        ends: whether nothing is left.
        round: what a round of the loop does with the one value that it asks for; None if it may ask for more, or leave.
    """

    def __init__(
        self,
        block: Block,
        before: list[ast.stmt],
        loop: ast.For | None,
        after: list[ast.stmt],
        used: frozenset[str],
        first: First | None,
        parts: frozenset[int] | None,
        asking: list[ast.Attribute] | None,
        saves: bool,
    ) -> None:
        self.used = used
        self.first = first
        self.parts = parts
        self.ends = not after
        self._block, self._before, self._loop, self._after = block, before, loop, after
        self._asking, self._saves = asking, saves

    @functools.cached_property
    def before(self) -> CodeType | None:
        """The code of the statements before the loop."""
        return self._code("before", self._before)

    @functools.cached_property
    def steps(self) -> CodeType | None:
        """The code of the expression that the loop goes through."""
        return None if self._loop is None else self._code("steps", self._loop.iter)

    @functools.cached_property
    def loop(self) -> CodeType | None:
        """The code of the loop."""
        loop = self._loop
        if loop is None:
            return None
        name = ast.copy_location(ast.Name(STEPS, ast.Load()), loop.iter)
        return self._code("loop", [ast.copy_location(ast.For(loop.target, name, loop.body, []), loop)])

    @functools.cached_property
    def after(self) -> CodeType | None:
        """The code of what is left."""
        return self._code("after", self._after)

    def _code(self, part: str, text: list[ast.stmt] | ast.expr) -> CodeType | None:
        """Return the code of one part."""
        if not text:
            return None
        block = self._block

        def compiled() -> CodeType:
            if isinstance(text, ast.expr):
                return compile(ast.Expression(text), block.filename, "eval", dont_inherit=True)
            module = ast.Module(text, [])
            code: CodeType = compile(module, block.filename, "exec", flags=block.future, dont_inherit=True)
            return code.replace(**block.called)

        code: CodeType = self._once(part, compiled)
        return code

    def _once(self, part: str, make: Callable[[], Any], *more: object) -> Any:
        """Return what is made of one part: once for all traces in which the block falls apart like this."""
        key = part, len(self._before), len(self._after), *more
        made = _made.setdefault(self._block, {})
        if key not in made:
            made[key] = make()
        return made[key]

    @functools.cached_property
    def round(self) -> Round | None:
        """What a round of the loop does."""
        if self._loop is None or self._asking is None:
            return None
        # By the nodes themselves: the text is that of the block, which is there as long as this is.
        make = functools.partial(round_of, self._block, self._loop, self._asking, self._saves)
        found: Round = self._once("round", make, self._saves, *map(id, self._asking))
        return found


#: What was made of the parts of each block.
_made: weakref.WeakKeyDictionary[Block, dict[tuple[object, ...], Any]] = weakref.WeakKeyDictionary()


def has_loop(block: Block) -> bool:
    """Say whether a block may have a loop that is a part of its plan."""
    return any(isinstance(statement, ast.For) for statement in block.found.node.body)


def plan_of(
    block: Block, lookup: Callable[[str], Any], foreign: frozenset[str], tracer: str | None = None
) -> Plan | None:
    """Return the plan of a block, or None if nothing of it can be done together.

    Args:
        block: the block.
        lookup: finds what a name stands for that the block does not bind; raises KeyError.
        foreign: names that other invokes bind: what they stand for is not known.
        tracer: the name that stands for the trace when the block begins, if it is the block that binds it.
    """
    found = block.found
    if found.items_after or block.rewritten or block.reads_anything:
        return None
    if any(isinstance(owner, ast.ClassDef) for owner in found.owners):
        return None
    reader = _Reader(block, lookup, foreign)
    if tracer is not None:
        reader.kinds[tracer] = TRACER
        reader.bound.add(tracer)
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
        except Unknown:
            reader.restore(saved)
            break
        before.append(statements.pop(0))
    if not reader.sites or not _is_closed(statements, block, reader.bound):
        return None
    each_first = None if loop is None else reader.first_site()
    parts = frozenset(reader.parts) if reader.taken == reader.sites else None
    asking = None if each_first is None else reader.all_ask_for(each_first)
    return Plan(block, before, loop, statements, frozenset(reader.used), each_first, parts, asking, reader.saves)


class _Reader(Known):
    """Reads statements."""

    # -- statements --------------------------------------------------------------------------------------------------

    def statement(self, node: ast.stmt) -> None:
        """Read one statement.

        Raises:
            Unknown: it may do more than is allowed here.
        """
        if isinstance(node, (ast.For, ast.If, ast.Break, ast.Continue)):
            self.looking = False  # what is asked for from here on may not be in each round
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            if len(node.targets) == 1 and isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                self.assign_each(target.elts, node.value.elts)
                return
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
                raise Unknown
            self.leaves = True
        elif not isinstance(node, ast.Pass):
            raise Unknown

    def block(self, statements: list[ast.stmt]) -> None:
        """Read statements that may not be reached."""
        for one in statements:
            self.statement(one)

    def loop(self, node: ast.For) -> None:
        """Read the loop over steps."""
        if node.orelse or not isinstance(node.target, ast.Name):
            raise Unknown
        self.looking, self.leaves, self.saves = True, False, False
        self.asking.clear()
        self.around(node, PLAIN)

    def first_site(self) -> First | None:
        """Return what each round of the loop over steps asks for first, if it is one site."""
        if self.first is None or len(self.first[0]) != 1:
            return None
        (envoy,), name = self.first
        return envoy._place(), site_of(type(envoy), name).stage

    def all_ask_for(self, first: First) -> list[ast.Attribute] | None:
        """Return all that the rounds of the loop over steps ask for, if it is to read one output; None if it is not."""
        place, stage = first
        if self.leaves or stage is not OUTPUT:
            return None
        for node, envoys in self.asking:
            if len(envoys) != 1 or envoys[0]._place() is not place or not isinstance(node.ctx, ast.Load):
                return None
            site = site_of(type(envoys[0]), node.attr)
            if site.stage is not stage or site.read is not None:
                return None
        return [node for node, _ in self.asking]

    def inner_loop(self, node: ast.For) -> None:
        """Read a loop over numbers, or over modules."""
        if node.orelse:
            raise Unknown
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
            raise Unknown
        return self.around(node, self.inside(self.value(over)))

    def around(self, node: ast.For, kind: Kind, target: ast.expr | None = None) -> None:
        """Read the inside of a loop, which may not be entered at all."""
        before = set(self.bound)
        target = node.target if target is None else target
        if not isinstance(target, ast.Name):
            raise Unknown
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
                self.leaves = True
                return None
        self.value(node)
        return None

    def assign(self, target: ast.expr, value: Kind) -> None:
        """Read a target of an assignment."""
        if isinstance(target, ast.Name):
            name = target.id
            if value in (TRACER, OTHER) or name.startswith("__") or self.kinds.setdefault(name, value) != value:
                raise Unknown
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
            raise Unknown

    def assign_each(self, targets: list[ast.expr], values: list[ast.expr]) -> None:
        """Read `a, b = x, y`."""
        if len(targets) != len(values):
            raise Unknown
        for target, kind in zip(targets, [self.value(value) for value in values]):
            self.assign(target, kind)

    def change(self, node: ast.AugAssign) -> None:
        """Read `x += y`, which may change in place what `x` is."""
        if not isinstance(node.op, ARITHMETIC):
            raise Unknown
        target = node.target  # which is read before the value
        if isinstance(target, ast.Name):
            old = self.name(target)
            if old == PLAIN:
                return self.need(self.value(node.value), PLAIN)
            self.need(old, ROWS)
        elif isinstance(target, ast.Attribute):
            self.site(target)
        else:
            self.need(self.value(target.value), ROWS)
            self.index(target.slice)
        return self.need(self.value(node.value), PLAIN, ROWS, TENSOR)


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
