"""The rounds of a loop over steps, done where the model stands.

One idea: where the text of a loop (`plan.py`) tells that each of its rounds asks for one value and for nothing else, a round
needs no turn. It is what the body does with that value, and it is done on the model's side, while the body itself goes on
waiting in its loop. Of the rounds that were done for it a body hears when it has its next turn: at the end of the loop, or
before a round that is not like the others.
"""

from __future__ import annotations

import ast
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..blocks import Block
from ..parsing import copy_tree, parse_source

if TYPE_CHECKING:
    from ..blocks import Body, Names
    from .plan import First, Plan

#: The name of what is given to the code of a round: one that no body has.
_VALUE = ".value"


class Rounds:
    """The rounds of one body's loop over steps.

    Args:
        plan: of its block.
        body: the body.
        names: what it has bound.
    """

    __slots__ = ("_body", "_names", "_used", "are_all", "first", "parts", "ready", "round")

    def __init__(self, plan: Plan, body: Body, names: Names) -> None:
        #: What each asks for first, if that is known.
        self.first: First | None = plan.first
        #: Of a tuple, the parts that it can have in hand; None if that is not known.
        self.parts = plan.parts
        #: What each does, if it asks for one value, and for nothing else, so that it can be done here.
        self.round = plan.round
        #: Whether the block ends with them.
        self.are_all = plan.ends
        self._used, self._body, self._names = plan.used, body, names
        #: What rounds are done with, until the body has its turn: the globals of their function, that, and the body's names.
        self.ready: tuple[dict[str, Any], FunctionType, Names] | None = None

    def do(self, step: int, value: Any) -> None:
        """Do the round of a step.

        Args:
            step: its number.
            value: what the body asks for.
        """
        done = self.round
        assert done is not None
        known, function, names = self.ready or self._look_up(done)
        known[done.counter] = step
        try:
            function(value)
        finally:
            for name in done.binds:
                if name in known:
                    # Past what `Names` of some bodies note for their siblings: none of those waits for such a name.
                    dict.__setitem__(names, name, known[name])

    def forget(self) -> None:
        """Hear that the body has its turn: what its names stand for may be something else afterwards."""
        self.ready = None

    def _look_up(self, done: Round) -> tuple[dict[str, Any], FunctionType, Names]:
        # Plain dicts, as the globals of a function and its builtins: the interpreter reads those without asking anybody.
        names, around = self._names, self._body._globals(self._names)
        known = {**around, "__builtins__": {**around["__builtins__"]}, **names}
        for name in self._used:
            if name not in known:
                try:
                    known[name] = names[name]
                except KeyError:  # raised where it is used, then, and only then
                    continue
        self.ready = known, FunctionType(done.code, known), names
        return self.ready


class Round(NamedTuple):
    """What a round of a loop over steps does with the one value that it asks for.

    Attributes:
        code: of a function of that value.
        counter: the name that stands for the number of the step.
        binds: the names that it may bind.
        edits_only: whether all that it does is to edit the value in place, always, so that nothing of it is kept.
        reads_only: whether it edits nothing in place, whatever that is.
        is_plain: whether it does so at the same places in each round, with what has the same shape and is not of the value.
        saves: whether it may mark something as saved.
        is_brief: whether nothing of it is gone through more than once.
    """

    code: CodeType
    counter: str
    binds: tuple[str, ...]
    edits_only: bool
    reads_only: bool
    is_plain: bool
    saves: bool
    is_brief: bool


def round_of(block: Block, loop: ast.For, asking: list[ast.Attribute], saves: bool) -> Round:
    """Make the round of a loop.

    Args:
        block: the block that has it.
        loop: the loop over steps.
        asking: all expressions in it that ask for something: for one value.
        saves: whether it may mark something as saved.
    """
    assert isinstance(loop.target, ast.Name)
    asked = set(map(id, asking))
    body = copy_tree(ast.Module(loop.body, []))
    # Copies go side by side with what they are copies of.
    sides = zip(ast.walk(ast.Module(loop.body, [])), ast.walk(body))
    body = _Given({id(mine) for theirs, mine in sides if id(theirs) in asked}).visit(body)
    stored = {node.id for node in ast.walk(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    binds = sorted({loop.target.id, *stored})
    edits_only = not saves and all(_is_edit(statement, asked) for statement in loop.body)
    reads_only = not any(_may_edit(node) for node in ast.walk(body))
    is_plain = edits_only and all(_is_plain(statement, asked) for statement in loop.body)
    is_brief = not any(isinstance(node, ast.For) for node in ast.walk(body))
    code = _function(block, body, binds)
    return Round(code, loop.target.id, tuple(binds), edits_only, reads_only, is_plain, saves, is_brief)


def _function(block: Block, body: ast.Module, binds: list[str]) -> CodeType:
    """Return the code of a function of the value, whose globals are the names of the body."""
    module = copy_tree(parse_source(f"def round(value): global {', '.join(binds)}"))
    (made,) = module.body
    made.args.args[0].arg = _VALUE
    made.body += body.body
    code = compile(module, block.filename, "exec", flags=block.future, dont_inherit=True)
    (inner,) = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return inner.replace(**block.called)


def _is_edit(statement: ast.stmt, asked: set[int]) -> bool:
    """Say whether a statement edits in place a part of what is asked for, and does nothing else."""
    if isinstance(statement, ast.Assign) and len(statement.targets) > 1:
        return False
    edited = _edited(statement)
    return len(edited) > 1 and id(edited[-1]) in asked


def _may_edit(node: ast.AST) -> bool:
    """Say whether a part of a round may edit something in place; the methods that it may call do not (`together.py`)."""
    return isinstance(node, ast.AugAssign) or (isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load))


def _is_plain(statement: ast.stmt, asked: set[int]) -> bool:
    """Say whether such a statement edits the same places in each round, with what has the same shape in each."""
    value = statement.value if isinstance(statement, (ast.Assign, ast.AugAssign)) else None
    if value is None:
        return False
    given = list(ast.walk(value))
    if any(isinstance(node, ast.Call) or id(node) in asked for node in given):
        return False
    indices = [*_edited(statement)[:-1], *(node.slice for node in given if isinstance(node, ast.Subscript))]
    return not any(isinstance(node, (ast.Name, ast.Attribute, ast.Call)) for one in indices for node in ast.walk(one))


def _edited(statement: ast.stmt) -> list[ast.expr]:
    """Return the indices of what a statement edits in place, from the outermost on, and what they are indices of."""
    inner: ast.expr | None = None
    if isinstance(statement, ast.AugAssign):
        inner = statement.target
    elif isinstance(statement, ast.Assign):
        inner = statement.targets[0]
    found: list[ast.expr] = []
    while isinstance(inner, ast.Subscript):
        found.append(inner.slice)
        inner = inner.value
    return found if inner is None else [*found, inner]


class _Given(ast.NodeTransformer):
    """Puts the name of what is given in the place of expressions that ask for it."""

    def __init__(self, asking: set[int]) -> None:
        self._asking = asking

    def visit(self, node: ast.AST) -> Any:
        if id(node) in self._asking:
            return ast.copy_location(ast.Name(_VALUE, ast.Load()), node)
        return self.generic_visit(node)
