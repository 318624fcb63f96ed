"""What the source of a pipeline says about guidance: which half of a batch, or which of its calls, is for the prompt.

Classifier-free guidance (Ho and Salimans, 2022, https://arxiv.org/abs/2207.12598) needs two predictions for each image: a
conditional one, for the prompt, and an unconditional one. Most pipelines get both from one call with a batch of two
halves, others from two calls; which comes first differs. Nothing in an object of diffusers says so, but the
pipeline's code does, by the names it gives: `noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)`. It is read once
for each class, and what is not found there is not known: nothing is guessed.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from types import CodeType
from typing import Any

from nnsight.plugin import parse_source

#: What pipelines with two denoisers call the one whose turn it is.
_CHOSEN = "current_model"

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"


@dataclass(frozen=True)
class Call:
    """A call of a component, as it stands in the pipeline's code: from which line to which, and for which half it is."""

    first: int
    last: int
    component: str
    half: str


@dataclass(frozen=True)
class Guidance:
    """How a pipeline guides, as its code says.

    Attributes:
        orders: by number of parts of a batch, which of them is conditional and which unconditional.
        calls: the calls of components whose result is for one half alone.
        unless: the parts of a batch of two are put together as `u + scale * (c - u)` and nothing else, with the scale that
            `guidance_scale=` gives, unless one of these options is given; None if that is not so.
        others: what else the pipeline takes than it has names for, in `**kwargs`; None if it passes all that on.
        exchanges: whether it exchanges the processors of attention while it runs, to look at a batch part by part.
        wants_estimate: whether it takes the second thing that a step of the scheduler returns, where there is one step.
        code: the code of the pipeline's call, for finding the line where it stands; None if its source is not there.
    """

    orders: dict[int, tuple[str | None, ...]]
    calls: tuple[Call, ...]
    unless: frozenset[str] | None
    others: frozenset[str] | None
    exchanges: bool
    wants_estimate: bool
    code: CodeType | None

    def half_at(self, line: int, component: str) -> str | None:
        """Return for which half a component is called at a line; None where the code does not say it."""
        for call in self.calls:
            if call.first <= line <= call.last and call.component in (component, _CHOSEN):
                return call.half
        return None


def plain_call(cls: type) -> Any:
    """Return the function that a pipeline is called by, without what diffusers wraps around it (`torch.no_grad`)."""
    return inspect.unwrap(vars(cls)["__call__"] if "__call__" in vars(cls) else cls.__call__)


@functools.cache
def guidance_of(cls: type) -> Guidance:
    """Read how a class of pipelines guides."""
    call = plain_call(cls)
    try:
        lines, first = inspect.getsourcelines(call)
        (tree,) = parse_source(textwrap.dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        # A class without source, made at a prompt: nothing is known of it.
        return Guidance(orders={}, calls=(), unless=None, others=None, exchanges=False, wants_estimate=False, code=None)
    orders = _orders(tree)
    return Guidance(
        orders=orders,
        calls=_calls(tree, first - 1),
        unless=_scaled(tree),
        others=_others(tree),
        exchanges=any("attn_processor" in line for line in lines),
        wants_estimate=_wants_estimate(tree),
        code=call.__code__,
    )


def _half(name: str) -> str:
    """Return which half a name of diffusers stands for."""
    words = name.split("_")
    if any("uncond" in word for word in words) or words[0] in ("neg", "negative", "null") or words[-1] == "null":
        return UNCONDITIONAL
    return CONDITIONAL


def _orders(tree: ast.AST) -> dict[int, tuple[str | None, ...]]:
    found: dict[int, set[tuple[str | None, ...]]] = {}
    for names in map(_parted, ast.walk(tree)):
        if names is not None and any(_half(name) == UNCONDITIONAL for name in names):
            found.setdefault(len(names), set()).add(_order(names))
    return {count: orders.pop() for count, orders in found.items() if len(orders) == 1}


def _order(names: list[str]) -> tuple[str | None, ...]:
    halves: list[str | None] = [_half(name) for name in names]
    if halves.count(CONDITIONAL) > 1:
        # Of several, one is for the prompt itself and the others for something beside it, such as an image.
        told = [name == "cond" or name.endswith("_text") for name in names]
        if sum(told) == 1:
            return tuple(half if half == UNCONDITIONAL or is_it else None for half, is_it in zip(halves, told))
    return tuple(halves)


def _parted(node: ast.AST) -> list[str] | None:
    """Return the names that the parts of a batch get: `a, b = x.chunk(2)`, `a, b = torch.split(x, len(x) // 2)`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
        return None
    names = [target.id for target in node.targets[0].elts if isinstance(target, ast.Name)]
    call = node.value.value if isinstance(node.value, ast.Subscript) else node.value
    if len(names) != len(node.targets[0].elts) or not isinstance(call, ast.Call):
        return None
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("chunk", "split"):
        return None
    dims = [keyword.value for keyword in call.keywords if keyword.arg == "dim"]
    if any(not isinstance(dim, ast.Constant) or dim.value != 0 for dim in dims):
        return None
    if call.func.attr == "chunk":
        count = call.args[0] if call.args else None
        return names if isinstance(count, ast.Constant) and count.value == len(names) else None
    return (
        names if ast.unparse(call).startswith(("torch.split(", "np.split(")) and "len(" in ast.unparse(call) else None
    )


def _calls(tree: ast.AST, before: int) -> tuple[Call, ...]:
    """Return the calls of components that are for one half; none if no call is for the unconditional one."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], (ast.Name, ast.Tuple)):
            continue
        target = node.targets[0]
        named = target.elts[0] if isinstance(target, ast.Tuple) else target
        call = node.value.value if isinstance(node.value, ast.Subscript) else node.value
        component = _component(call)
        if component is not None and isinstance(named, ast.Name):
            found.append(Call(before + node.lineno, before + (node.end_lineno or 0), component, _half(named.id)))
    parted = {call.component for call in found if call.half == UNCONDITIONAL}
    return tuple(call for call in found if call.component in parted)


def _component(node: ast.AST) -> str | None:
    """Return the name in `self.name(...)`, or what stands for it where a pipeline chooses of two."""
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "self":
        return node.func.attr
    if isinstance(node.func, ast.Name) and node.func.id == _CHOSEN:
        return node.func.id
    return None


def _scaled(tree: ast.AST) -> frozenset[str] | None:
    """Return unless which options all that is made of the two parts is `u + scale * (c - u)`; None if that is never so."""
    # Not `torch.split`: where that stands, the parts are of some channels, and the others are used too.
    chunks = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and ".chunk(" in ast.unparse(node)]
    pair = next(
        (
            dict(zip(map(_half, names), names))
            for names in map(_parted, chunks)
            if names and len(names) == 2 and {*map(_half, names)} == {CONDITIONAL, UNCONDITIONAL}
        ),
        None,
    )
    if pair is None:
        return None
    u, c = pair[UNCONDITIONAL], pair[CONDITIONAL]
    formulas = {f"{u} + {scale} * ({c} - {u})" for scale in ("self.guidance_scale", "guidance_scale")}
    formula = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and ast.unparse(node) in formulas]
    others = _reads(tree, (u, c)) - {place for node in formula for place in _reads(node, (u, c))}
    asked: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            inside = {place for line in node.body for place in _reads(line, (u, c))} & others
            options = _options_in(node.test, tree)
            if inside and options:
                others -= inside
                asked |= options
    return frozenset(asked) if formula and not others else None


def _reads(tree: ast.AST, names: tuple[str, ...]) -> set[tuple[int, int]]:
    """Return where names are read."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names]
    return {(node.lineno, node.col_offset) for node in found if isinstance(node.ctx, ast.Load)}


def _options_in(test: ast.AST, call: ast.AST) -> set[str]:
    """Return the arguments of a pipeline that a condition in its code asks for, as they are or as properties of it."""
    assert isinstance(call, ast.FunctionDef)
    known = {argument.arg for argument in call.args.args} - {"self", "guidance_scale"}
    named = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    return known & (named | {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)})


def _others(tree: ast.AST) -> frozenset[str] | None:
    """Return the names that are taken out of `**kwargs`; None if these go somewhere as they are."""
    assert isinstance(tree, ast.FunctionDef)
    if tree.args.kwarg is None:
        return frozenset()
    taken: set[str] = set()
    own = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            name = node.args[0] if node.args else None
            if node.func.value.id == tree.args.kwarg.arg and isinstance(name, ast.Constant):
                taken.add(str(name.value))
                own.add((node.func.value.lineno, node.func.value.col_offset))
    return frozenset(taken) if _reads(tree, (tree.args.kwarg.arg,)) == own else None


def _wants_estimate(tree: ast.AST) -> bool:
    taken = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    return any(text.startswith("self.scheduler.step(") and text.endswith(")[1]") for text in taken)
