"""The value at the site where a run stands, as each mediator sees it and writes it.

One idea: a write of some rows is kept beside the value, and the value is put together once, when the run moves on. So
a write costs its own rows, and one copy of the batch per site pays for all of them. An invoke gets its rows as a view,
so edits in place need nothing at all. How rows lie in a value is the layout's statement (`batching.py`), never a guess.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .batching import Layout, Rows
from .errors import RowsError
from .sites import Place, site_name
from .structures import leaves, tree_map, zip_map

if TYPE_CHECKING:
    from .served import WriteBack

#: Set on a view that an invoke gets: the whole value and the rows, so that a gradient can be asked for by the view.
WHOLE = "_nnsight_whole"


class Here:
    """Where a run stands: the place, the stage, the visit, and the value that lies there."""

    __slots__ = (
        "backs",
        "beside",
        "layout",
        "pieces",
        "place",
        "rough",
        "shared",
        "skipped",
        "spans",
        "stage",
        "value",
        "views",
        "visit",
    )

    def __init__(self, place: Place, stage: str, value: Any, visit: int, layout: Layout | None) -> None:
        self.place = place
        self.stage = stage
        self.value = value
        self.visit = visit
        self.layout = layout
        #: True once there is anything to settle; the dicts and the list for it are made then.
        self.rough = False
        #: Set by `skip`: the rows whose module is not to run, and what to take as its output instead.
        self.skipped: dict[Rows | None, Any] | None = None

    def roughen(self) -> None:
        """Make room for what has to be settled before the run moves on."""
        if not self.rough:
            self.rough = True
            self.views: dict[Rows, Any] = {}
            self.pieces: dict[Rows, Any] = {}
            #: The rows of the pieces, in order; no two of them overlap.
            self.spans: list[Rows] = []
            self.backs: list[WriteBack] = []
            #: What invokes hold of a value that was put together or replaced since: edits of it would have no effect.
            self.beside: list[tuple[torch.Tensor, Mark]] = []
            #: Tensors without rows that invokes have seen, and their versions: an edit in place is no write of rows.
            self.shared: list[tuple[torch.Tensor, int]] = []

    def read(self, rows: Rows | None) -> Any:
        """Return the value, or the rows of one invoke as views into it."""
        if not self.rough:
            if rows is None:
                return self.value
            self.roughen()
        elif self.beside or self.backs:
            self._carry()
        if rows is None:
            if self.views or self.pieces:
                self._put_together()
            return self.value
        views, pieces = self.views, self.pieces
        if pieces:
            if rows in pieces:
                return pieces[rows]
            if rows not in views and self._meets(rows):
                self._put_together()
        if rows in views:
            return views[rows]
        view = views[rows] = narrow(self.value, rows, self._stated(), self.place.path, self.shared)
        return view

    def write(self, rows: Rows | None, value: Any) -> None:
        """Replace the value, or the rows of one invoke."""
        if self.rough:
            self._carry()
        if rows is None:
            self.value = value
            if self.rough:
                self._check_shared()
                self._set_beside()
                self.views.clear()
                self._clear_pieces()
            return
        self.roughen()
        self._check(rows, value)
        if rows not in self.pieces:
            if self._meets(rows):
                self._put_together()
            insort(self.spans, rows)
        self.pieces[rows] = value
        # The view stays: its leaves stand for the rows of the value that are not written by anybody.

    def settle(self) -> None:
        """Make `value` what everybody's reads and writes have made of it."""
        if self.rough:
            self._carry()
            self._put_together(last=True)

    def _put_together(self, last: bool = False) -> None:
        if self.shared:
            self._check_shared()
        without_grad = [at for at, tensor in enumerate(leaves(self.value)) if not tensor.requires_grad]
        if without_grad:
            # Of a plain tensor there may be as many views as invokes, so these are asked without a call.
            plain = type(self.value) is torch.Tensor
            for rows, view in self.views.items():
                if (view.requires_grad if plain else _asks_for_grad(view, without_grad)) and rows not in self.pieces:
                    self.pieces[rows] = view
        if self.pieces:
            if not last:
                self._set_beside()
            self.value = self._joined()
            self._clear_pieces()
        self.views.clear()

    def _meets(self, rows: Rows) -> bool:
        """Say whether rows without a piece of their own overlap with a piece."""
        at = bisect(self.spans, rows)
        return any(_overlap(rows, other) for other in self.spans[max(at - 1, 0) : at + 1])

    def _clear_pieces(self) -> None:
        self.pieces.clear()
        self.spans.clear()

    def _set_beside(self) -> None:
        self.beside += [(tensor, mark(tensor)) for held in self._held() for tensor in leaves(held)]

    def _held(self) -> list[Any]:
        return [*self.views.values(), *self.pieces.values()]

    def _carry(self) -> None:
        """Carry back what was edited in copies of the value; what is edited there later is carried back later."""
        if self.beside and any(changed(tensor, before) for tensor, before in self.beside):
            raise RowsError(
                f"An invoke edited in place what it had of {self._site()} before another invoke wrote there or read "
                "the whole batch, so the edit would have no effect. Read it again after waiting for the other, and "
                "edit that."
            )
        if self.backs:
            backs, self.backs = self.backs, []  # carrying reads and writes this very value
            for back in backs:
                back(self)
            self.backs = backs

    def _check_shared(self) -> None:
        shared, self.shared = self.shared, []
        if any(tensor._version != version for tensor, version in shared):
            raise self._refuse_shared("edit it in place")

    def _refuse_shared(self, verb: str) -> RowsError:
        return RowsError(
            f"{self._site()} holds a value that carries no rows of its own, so all invokes share it; one invoke "
            f"among several cannot {verb}. Do so in a prompt-less invoke (`with tracer.invoke():`), or trace this "
            "input alone."
        )

    def _stated(self) -> Layout:
        assert self.layout is not None, "a run whose mediators have rows has a layout"
        return self.layout

    def _site(self) -> str:
        return site_name(self.place.path, self.stage)

    def _check(self, rows: Rows, value: Any) -> None:
        layout, path = self._stated(), self.place.path

        def check(old: Any, new: Any) -> Any:
            mine = layout.take(old, rows, path) if isinstance(old, torch.Tensor) else None
            if mine is None:
                if not _same(old, new):
                    raise self._refuse_shared("replace it")
            elif not isinstance(new, torch.Tensor):
                raise RowsError(f"{self._site()} holds a tensor, and a {type(new).__name__} was written to it.")
            elif new.shape != mine.shape:
                raise RowsError(
                    f"{self._site()} has shape {tuple(mine.shape)} in this invoke, and a tensor of shape "
                    f"{tuple(new.shape)} was written to it. An invoke among several must write its own rows, all of "
                    "them and no more; to change the shape, trace this input alone."
                )
            return new

        try:
            zip_map(check, self.value, value)
        except RowsError:
            raise
        except ValueError as error:
            raise RowsError(
                f"What was written to {self._site()} is built differently from what is there: {error}"
            ) from None

    def _joined(self) -> Any:
        """Put the pieces into the value, leaf by leaf."""
        layout, path = self._stated(), self.place.path
        by_leaf: list[dict[Rows, torch.Tensor]] = [{} for _ in leaves(self.value)]
        for rows, piece in self.pieces.items():
            at = iter(by_leaf)

            def collect(old: Any, new: Any, rows: Rows = rows, at: Any = at) -> Any:
                if isinstance(old, torch.Tensor):
                    slot = next(at)
                    if layout.take(old, rows, path) is not None:
                        slot[rows] = new.to(device=old.device, dtype=old.dtype)
                return old

            zip_map(collect, self.value, piece)
        at = iter(by_leaf)

        def put(old: torch.Tensor) -> torch.Tensor:
            pieces = next(at)
            return layout.join(old, pieces, path) if pieces else old

        return tree_map(put, self.value)


def narrow(
    value: Any, rows: Rows, layout: Layout, path: str, shared: list[tuple[torch.Tensor, int]] | None = None
) -> Any:
    """Return the rows of one invoke in every tensor of `value` that carries rows; note the others in `shared`."""
    if type(value) is torch.Tensor:
        view = layout.take(value, rows, path)
        if view is not None:
            if value.requires_grad:
                setattr(view, WHOLE, (value, rows, layout, path))
            return view
    else:
        layout.look(value, path)
        own = layout.whole(value, rows, path)
        if own is not None:
            return own
    whole: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        view = layout.take(tensor, rows, path)
        if view is None:
            whole.append(tensor)
            return tensor
        if tensor.requires_grad:
            setattr(view, WHOLE, (tensor, rows, layout, path))
        return view

    taken = tree_map(take, value)
    if whole and shared is not None:
        # A tensor that lies in the storage of one with rows (its transpose) changes when those rows do.
        among = {storage_of(tensor) for tensor in leaves(value) if not any(tensor is other for other in whole)}
        shared += [(t, t._version) for t in whole if not t.is_inference() and storage_of(t) not in among]
    return taken


#: What tells whether a tensor was edited in place since: its version, or a copy.
Mark = int | torch.Tensor


def mark(tensor: torch.Tensor) -> Mark:
    """Take a mark of a tensor as it is now."""
    # Inference tensors keep no version, so an edit shows by comparison only.
    return tensor.clone() if tensor.is_inference() else tensor._version


def changed(tensor: torch.Tensor, before: Mark) -> bool:
    """Say whether a tensor was edited in place since its mark was taken."""
    if isinstance(before, int):
        return tensor._version != before
    return not (torch.equal(tensor, before) or bool(torch.isclose(tensor, before, 0, 0, equal_nan=True).all()))


def storage_of(tensor: torch.Tensor) -> int:
    """Return what tells the storage of a tensor from others."""
    number: int = tensor.untyped_storage()._cdata
    return number


def assembled(pieces: Mapping[Rows, Any]) -> Any:
    """Return the value of all rows, made of pieces alone: what every invoke of a batch gave for its own rows."""
    first, *others = [piece for _, piece in sorted(pieces.items(), key=lambda item: item[0])]
    columns = zip(*(leaves(piece) for piece in (first, *others)))
    whole = [torch.cat(column) if column[0].dim() else column[0] for column in columns]
    at = iter(whole)
    return tree_map(lambda _: next(at), first)


def _overlap(a: Rows, b: Rows) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(old, torch.Tensor) or isinstance(new, torch.Tensor):
        return False
    return bool(old == new)


def _asks_for_grad(view: Any, without_grad: Sequence[int]) -> bool:
    """Say whether a body made its rows require a gradient, in tensors of which the whole value does not.

    Such a view is a side branch of the graph unless the run goes on with it, so it is taken as written.
    """
    tensors = leaves(view)
    return any(tensors[at].requires_grad for at in without_grad)
