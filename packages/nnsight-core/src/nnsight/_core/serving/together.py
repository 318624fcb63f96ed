"""A value of several requests, of which each operation is carried out for all of them.

One idea: an operation is done once on the rows of all requests, one behind the other, where that is *known* to give each of
them, bit for bit, what it would get alone: arithmetic that takes each number by itself, with operands that are the same for
every row. Whatever else is asked is done for each request on its own rows, in their order. So what a body sees of it does not
depend on who stands beside it; which bodies may see it at all is decided in `plan.py`.

The rows of a request are views of those of all, so an edit in place of either is one of both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..batching import Rows
from ..errors import NNsightError
from ..saved import save

if TYPE_CHECKING:
    from .group import GroupRun
    from .request import ServedRun


class Several:
    """The rows of several requests: who they are, and where the rows of each lie."""

    __slots__ = ("all", "counts", "group", "runs", "spans", "total")

    def __init__(self, group: GroupRun, runs: tuple[ServedRun, ...], spans: Sequence[Rows]) -> None:
        self.group = group
        self.runs = runs
        self.spans = tuple(spans)
        self.counts = tuple([count for _, count in spans])
        self.total = sum(self.counts)
        #: Where all of them lie, if that is one behind the other.
        self.all: Rows | None = None
        at = start = spans[0][0]
        for first, count in spans:
            if first != at:
                return
            at += count
        self.all = (start, at - start)


class Together:
    """What one expression of a body is for each of several requests.

    Args:
        group: the run of all of them.
        runs: the requests.
        whole: the rows of all, one behind the other along dimension 0; None if each has something of its own.
        counts: how many rows each has there.
        each: what each has.
    """

    __slots__ = ("counts", "each", "group", "runs", "shown", "whole")
    __array_priority__ = 1000

    def __init__(
        self,
        group: GroupRun,
        runs: tuple[ServedRun, ...],
        whole: torch.Tensor | None = None,
        counts: tuple[int, ...] = (),
        each: list[Any] | None = None,
    ) -> None:
        self.group = group
        self.runs = runs
        self.whole = whole
        self.counts = counts
        self.each = each
        #: What was shown of it last, by which index: a view.
        self.shown: tuple[Any, Any] | None = None

    def parts(self) -> list[Any]:
        """Return what each request has."""
        if self.each is None:
            assert self.whole is not None
            self.each = list(torch.split(self.whole, list(self.counts)))
        return self.each

    def of(self, run: ServedRun) -> Any:
        """Return what one request has."""
        return self.parts()[self.runs.index(run)]

    # -- operations --------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        if self.whole is not None and _keeps_rows(index, self.whole.dim()):
            part = _apply(self, operator.getitem, (self, index), once=True)
            self.shown = (index, part)
            return part
        return _apply(self, operator.getitem, (self, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.shown is not None and self.shown[0] is index and self.shown[1] is value:
            return  # the end of `x[index] += ...`, which has edited the view already
        whole = self.whole
        once = whole is not None and _keeps_rows(index, whole.dim()) and _fits(value, whole[index], self.counts)
        _apply(self, lambda mine, given: operator.setitem(mine, index, given), (self, value), once=once)

    def __iter__(self) -> Iterator[Any]:
        lengths = {len(part) for part in self.parts()}
        if len(lengths) > 1:
            raise NNsightError(
                "What is gone through here has another length in each request of the trace: go through a range instead."
            )
        return (self[at] for at in range(lengths.pop()))

    def save(self) -> Together:
        """Mark this as part of the results; see `nnsight.save`."""
        return save(self)

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            once = name in _ONCE and not any(isinstance(arg, (Together, torch.Tensor)) for arg in args)
            return _apply(self, lambda *given: getattr(given[0], name)(*given[1:], **kwargs), (self, *args), once=once)

        return method

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over where a tensor is on the left of an operator."""
        first = next(arg for arg in args if isinstance(arg, Together))
        once = getattr(function, "__name__", "") in _REFLECTED and not kwargs
        return _apply(first, lambda *given: function(*given, **(kwargs or {})), args, once=once and _agree(args))

    def __bool__(self) -> bool:
        raise NNsightError("whether this holds depends on the request, and is asked for all of them at once")


#: Methods of tensors that change nothing and draw nothing.
METHODS = frozenset(
    "abs amax amin argmax argmin argsort bfloat16 ceil clamp clone contiguous cos cpu cumsum detach double exp flatten float "
    "floor half int item log log_softmax logsumexp long max mean median min neg norm numel permute pow prod relu reshape "
    "round rsqrt sigmoid sign sin size softmax sqrt square squeeze std sum t tanh to tolist topk transpose tril triu "
    "unsqueeze var view view_as".split()
)
#: Those among them that take each number by itself, exactly, whatever the shape; and what they return shares memory with
#: what they are called on if and only if it does so for each row.
_ONCE = frozenset(
    ("abs", "bfloat16", "clone", "cpu", "detach", "double", "float", "half", "int", "long", "neg", "relu")
)
#: How torch calls an operator whose left side is a tensor.
_REFLECTED = frozenset(
    ("add", "sub", "mul", "div", "true_divide", "__add__", "__sub__", "__mul__", "__truediv__", "__radd__", "__rmul__")
)


def _operator(function: Callable[..., Any], once: bool, reflected: bool = False) -> Callable[[Any, Any], Any]:
    def call(self: Together, other: Any) -> Any:
        args = (other, self) if reflected else (self, other)
        return _apply(self, function, args, once=once and _agree(args))

    return call


def _in_place(function: Callable[..., Any], once: bool) -> Callable[[Any, Any], Any]:
    def call(self: Together, other: Any) -> Any:
        whole = self.whole
        fits = once and whole is not None and _fits(other, whole, self.counts)
        return _apply(self, function, (self, other), once=fits)

    return call


def _alone(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda self: _apply(self, function, (self,), once=self.whole is not None)


for _name in ("add", "sub", "mul", "truediv"):
    setattr(Together, f"__{_name}__", _operator(getattr(operator, _name), True))
    setattr(Together, f"__r{_name}__", _operator(getattr(operator, _name), True, reflected=True))
    setattr(Together, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}"), True))
for _name in ("floordiv", "mod", "pow"):
    setattr(Together, f"__{_name}__", _operator(getattr(operator, _name), False))
    setattr(Together, f"__r{_name}__", _operator(getattr(operator, _name), False, reflected=True))
    setattr(Together, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}"), False))
for _name in ("neg", "pos", "abs"):
    setattr(Together, f"__{_name}__", _alone(getattr(operator, _name)))


def _agree(args: Sequence[Any]) -> bool:
    """Say whether an operation on whole rows is, for each request, the operation on its own."""
    wholes = [arg for arg in args if isinstance(arg, Together)]
    first = wholes[0]
    if first.whole is None:
        return False
    return all(_fits(arg, first.whole, first.counts) for arg in args if arg is not first)


def _fits(value: Any, rows: torch.Tensor, counts: tuple[int, ...]) -> bool:
    """Say whether an operand meets every row of `rows` alike, or each row with its own."""
    if isinstance(value, Together):
        return value.whole is not None and value.counts == counts and value.whole.dim() == rows.dim()
    if isinstance(value, torch.Tensor):
        mine, theirs = value.dim(), rows.dim()
        return mine < theirs or not mine or (mine == theirs and value.size(0) == 1)
    return isinstance(value, (bool, int, float))


def _keeps_rows(index: Any, dim: int) -> bool:
    """Say whether an index leaves dimension 0, of rows, as it is."""
    parts = index if isinstance(index, tuple) else (index,)
    first, rest = parts[0] if parts else None, parts[1:]
    if not (first is Ellipsis or (isinstance(first, slice) and first == slice(None))):
        return False
    if not all(part is None or isinstance(part, slice) or type(part) is int for part in rest):
        return False
    return first is not Ellipsis or sum(part is not None for part in rest) < dim


def _apply(first: Together, function: Callable[..., Any], args: tuple[Any, ...], once: bool = False) -> Any:
    """Carry out an operation: once if that is known to do, and else, or if it fails, for each request by itself."""
    group, runs = first.group, first.group.runs
    wholes = _wholes(args, runs) if once else None
    if wholes is not None:
        try:
            return _given(first, function(*wholes))
        except Exception:  # noqa: S110 - each request gets the error that it would get alone, below
            pass
    group.parted = True
    columns = [_column(arg, runs) for arg in args]
    found, failed = [], []
    for at, run in enumerate(runs):
        try:
            found.append(function(*[column[at] for column in columns]))
        except Exception as error:
            failed.append((run, error))
    if failed:
        group.leave_out(failed)
    if first.runs == group.runs and all(map(operator.is_, found, first.parts())):
        return first
    return Together(group, group.runs, each=found)


def _column(value: Any, runs: tuple[ServedRun, ...]) -> Sequence[Any]:
    """Return what each request has of an operand."""
    if not isinstance(value, Together):
        return [value] * len(runs)
    return value.parts() if value.runs is runs else [value.of(run) for run in runs]


def _wholes(args: tuple[Any, ...], runs: tuple[ServedRun, ...]) -> list[Any] | None:
    """Return the operands with the rows of all requests in one; None if one of them has no such."""
    found = []
    for arg in args:
        if not isinstance(arg, Together):
            found.append(arg)
        elif arg.whole is None or arg.runs is not runs:
            return None
        else:
            found.append(arg.whole)
    return found


def _given(first: Together, result: Any) -> Any:
    if result is first.whole:
        return first
    return None if result is None else Together(first.group, first.runs, result, first.counts)
