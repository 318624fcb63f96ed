"""PyTorch's hooks around a pipeline's modules, outside of the places where bodies look.

They begin the steps, put the rows of several invokes in order on their way into a module and back on their way out
(`batch.py`), and state how these lie while it runs (`layout.py`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from nnsight import RowsError
from nnsight.plugin import leaves
from nnsight_diffusers import guiding, live
from nnsight_diffusers.batch import inverse, reordered
from nnsight_diffusers.layout import Statement
from nnsight_diffusers.source import CONDITIONAL

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from nnsight_diffusers.running import Run

#: What denoisers call the time at which they are.
_TIMES = ("timestep", "timesteps", "t", "timestep_ratio", "r")

#: Arguments whose first dimension counts positions, whatever its size.
_POSITIONS = ("rotary", "rope", "freqs", "_ids", "position", "indices", "shapes", "sizes")


def may_have_rows(name: str) -> bool:
    """Say whether an argument of a module may have rows, by its name."""
    return not any(word in name for word in _POSITIONS)


class Watch:
    """The hooks of one run.

    Args:
        run: the run.
        model: its `DiffusionModel`.
    """

    def __init__(self, run: Run, model: Any) -> None:
        self._run = run
        self._model = model
        self._guidance = run.guidance
        self._depth = 0
        #: Of each call under way the order in which its rows were put; None if they were left as they were.
        self._orders: list[list[int] | None] = []

    def hook(self) -> Iterator[RemovableHandle]:
        """Put hooks on the modules that the pipeline calls; on all of them where several invokes share the call."""
        module = self._model._module
        denoisers = module.denoisers()
        for name, part in module.named_children():
            denoises = name in denoisers
            if denoises:
                yield part.register_forward_pre_hook(self._begin(name, part), with_kwargs=True)
            if self._run.batch is None:
                continue
            # An autoencoder is called by its parts.
            inside = {} if denoises else {f"{name}.{below}": inner for below, inner in part.named_children()}
            for path, one in {name: part, **inside}.items():
                several = denoises or name.startswith("controlnet")
                yield one.register_forward_pre_hook(self._enter(path, several), with_kwargs=True)
                yield one.register_forward_hook(self._leave(denoises), always_call=True)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, module: torch.nn.Module) -> Callable[..., Any]:
        """Return the hook that begins a step: each call of a denoiser is one."""
        run, place = self._run, self._model.__dict__["_extras"]["timestep"]
        takes = list(inspect.signature(module.forward).parameters)
        key = next((name for name in _TIMES if name in takes), "")
        at = takes.index(key) if key else len(takes)

        def begin(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if live.here.get() is not run:
                return None
            size = _size(args, kwargs)
            run.parts = size // run.images if run.images and size % run.images == 0 else 1
            run.half = None if run.parts > 1 else self._half(name)
            if key in kwargs:
                return args, {**kwargs, key: place(kwargs[key])}
            if at < len(args):
                return (*args[:at], place(args[at]), *args[at + 1 :]), kwargs
            place(None)  # a step begins all the same
            return None

        return begin

    def _half(self, name: str) -> str:
        """Return for which half the pipeline calls a denoiser now, by the line at which it stands."""
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not self._guidance.code:
            frame = frame.f_back
        found = None if frame is None else self._guidance.half_at(frame.f_lineno, name)
        return found or CONDITIONAL

    # -- rows --------------------------------------------------------------------------------------------------------

    def _enter(self, path: str, several: bool) -> Callable[..., Any]:
        """Return the hook that puts rows in order on their way into a module.

        Args:
            path: the module, below the model.
            several: whether it is called with rows for each image, and each part.
        """

        def enter(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if live.here.get() is not self._run:
                return None
            self._depth += 1
            return self._ordered(path, several, args, kwargs) if self._depth == 1 else None

        return enter

    def _ordered(self, path: str, several: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = self._run.batch
        assert batch is not None
        size = _size(args, kwargs)
        parts, each = self._lying(size, several)
        order = batch.order(parts) if parts > 1 else None
        self._orders.append(order)
        if several and batch.scales is not None:
            kwargs = guiding.told(kwargs, batch, size)
        given = args, kwargs
        if order is not None:
            if self._guidance.exchanges:
                raise RowsError(
                    f"{type(self._run.pipeline).__name__} looks at the batch of its denoiser part by part, so invokes cannot "
                    "share a call of it. Run separate traces."
                )
            args = reordered(args, order)
            kwargs = {name: reordered(value, order) if may_have_rows(name) else value for name, value in kwargs.items()}
        with live.nobody():  # what the module does meanwhile is no part of this run
            if order is not None and not self._run.fake:
                self._model._check_rows(path, given, (args, kwargs), order)
            facts = self._model._facts(path, args, kwargs, size) if each else {}
        batch.layout.state(f"{self._model._path}.{path}", Statement(size, each, facts))
        return args, kwargs

    def _lying(self, size: int, several: bool) -> tuple[int, int]:
        """Return of how many parts a call's rows are, and how many belong to a row of an invoke (0: unknown)."""
        batch = self._run.batch
        assert batch is not None
        if several and size and size % batch.made == 0:
            return size // batch.made, size // batch.total
        if size == batch.total:
            return 1, 1
        return 1, batch.images if size == batch.made else 0

    def _leave(self, denoises: bool) -> Callable[..., Any]:
        """Return the hook that gives rows the pipeline's order again on their way out."""
        run = self._run

        def leave(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if live.here.get() is not run:
                return None
            self._depth -= 1
            if self._depth:
                return None
            order = self._orders.pop()
            if order is not None:
                output = reordered(output, inverse(order))
            halves = self._guidance.orders.get(2)
            if denoises and run.batch is not None and run.batch.scales is not None and run.parts == 2 and halves:
                output = guiding.guided(output, run.batch, halves)
            return output

        return leave


def _size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return how many rows a module is called with: those of its first tensor that has any."""
    for name in ("hidden_states", "sample"):
        if isinstance(kwargs.get(name), torch.Tensor):
            return int(kwargs[name].shape[0])
    return next((int(leaf.shape[0]) for leaf in leaves((args, dict(kwargs))) if leaf.dim()), 0)
