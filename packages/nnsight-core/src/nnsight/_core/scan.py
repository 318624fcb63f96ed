"""`model.scan(...)`: a trace on fake tensors, which have shapes, types and devices, and no data.

The block runs as in a trace, and nothing is computed. Weights are faked as they are met; those that were never loaded
(the meta device) stand in as fakes on the CPU while the scan lasts. What modules keep from a forward is put back. The
shapes that pass are noted for the picture of the model (`shapes.py`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from .batching import Layout
from .errors import ScanError
from .interleaver import Interleaver
from .shapes import ShapeWatcher
from .structures import leaves, tree_map
from .trace import Tracer


class ScanTracer(Tracer):
    """A trace whose run is made on fake tensors."""

    _stack: contextlib.ExitStack

    def __enter__(self) -> Tracer:
        if self._node._root.__dict__["_sharding"] is not None:
            raise ScanError(
                f"`{self._node._path}` cannot be scanned: it is spread over several processes, and its forward exchanges "
                "numbers with the others, which fake tensors have not got. Scan it before its weights are loaded, or trace a "
                "small input instead."
            )
        with contextlib.ExitStack() as stack:
            # Inputs are prepared for real, tokenised and all, and only then faked.
            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
            entered = super().__enter__()
            stack.enter_context(self._node._root._on_fakes())
            stack.enter_context(not_repacked(self._node._module))
            stack.enter_context(unchanged(self._node._module, self._mode))
            stack.enter_context(self._mode)
            self._stack = stack.pop_all()
        return entered

    def __exit__(self, *error: Any) -> bool:
        with self._stack:
            return super().__exit__(*error)

    def _ready(self) -> None:
        """Load nothing: a scan needs no weights."""

    def _interleaver(self, args: tuple[Any, ...], kwargs: dict[str, Any], layout: Layout | None) -> Interleaver:
        args, kwargs = fake((args, kwargs), self._mode)
        run = super()._interleaver(args, kwargs, layout)
        watcher = ShapeWatcher()
        watcher.install(run)
        self._node._root.__dict__["_shapes"] = watcher.shapes
        run.call = functools.partial(_without_numbers, run.call, self._node._path)
        return run


def _without_numbers(call: Callable[[], Any], path: str) -> Any:
    try:
        return call()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ScanError(
            f"`{path}` cannot be scanned: its forward asks for numbers, to decide what to do or how large a tensor is "
            f"({error}), and a scan has shapes only. Trace a small input instead: `with model.trace(...):`."
        ) from error


#: Tensors of other kinds (quantized weights) may not have a fake; those are faked, if they can be, when they are met.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def fake(value: Any, mode: FakeTensorMode) -> Any:
    """Return a structure with fake tensors in the place of real ones."""
    return tree_map(lambda t: t if isinstance(t, FakeTensor) else mode.from_tensor(t), value)


@contextlib.contextmanager
def unchanged(module: torch.nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Let unloaded weights be fakes meanwhile, and undo what a forward on fakes leaves behind in its modules."""
    before = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in module.modules()]
    held = {id(one): (one, dict(vars(one))) for m in module.modules() for one in m.__dict__.values() if _holds(one)}
    known: dict[int, Any] = {}

    def stand_in(tensor: torch.Tensor) -> Any:
        if tensor.is_meta:
            return _stand_in(tensor, known)
        return mode.from_tensor(tensor) if type(tensor) in _PLAIN else tensor

    with mode:
        for m, own, parameters, buffers in before:
            # Loaded ones too: an edit in place that no fake takes part in, a counter's `add_(1)`, would be made for real.
            kept = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
            for real, place in ((parameters, m._parameters), (buffers, m._buffers), (kept, m.__dict__)):
                place.update({name: stand_in(tensor) for name, tensor in real.items() if tensor is not None})
    try:
        yield
    finally:
        for m, own, parameters, buffers in before:
            m._parameters.update(parameters)
            for name in set(m._buffers) - set(buffers):
                del m._buffers[name]
            m._buffers.update(buffers)
            for name, value in list(m.__dict__.items()):
                if name not in ("_parameters", "_buffers", "_modules") and _is_fake(value):
                    if name in own:
                        m.__dict__[name] = own[name]
                    else:
                        del m.__dict__[name]
        for one, kept in held.values():
            for name in [name for name, value in vars(one).items() if _is_fake(value)]:
                if name in kept:
                    vars(one)[name] = kept[name]
                else:
                    del vars(one)[name]  # a property that is computed once


@contextlib.contextmanager
def not_repacked(module: torch.nn.Module) -> Iterator[None]:
    """Let layers of bitsandbytes leave their weights as they lie for the time of a block.

    On processors that multiply bfloat16 by themselves (AVX-512) such a layer puts its weights in another order when it first
    runs, and keeps that: on fake tensors it would throw the weights away.
    """
    # relies on: bitsandbytes.nn.Linear4bit.support_avx512bf16_for_cpu, bitsandbytes 0.49 to 0.50
    layers = [part for part in module.modules() if getattr(part, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        layer.__dict__["support_avx512bf16_for_cpu"] = False
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__["support_avx512bf16_for_cpu"] = True


def _stand_in(tensor: torch.Tensor, known: dict[int, Any]) -> Any:
    made = known.get(id(tensor))
    if made is None:
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        known[id(tensor)] = made
    return made


def _holds(value: Any) -> bool:
    """Say whether a module's attribute is an object of the model's own that may keep what a forward has made."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (torch.nn.Module, torch.Tensor, type))
        and not callable(value)
    )


def _is_fake(value: Any) -> bool:
    return any(isinstance(tensor, FakeTensor) for tensor in leaves(value))
