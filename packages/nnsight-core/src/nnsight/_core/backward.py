"""`with loss.backward():` - the backward pass as a run whose sites are the gradients of tensors.

The pass runs in a greenlet like a forward does. Reading `tensor.grad` in the block puts a hook on that tensor and waits
until the pass has its whole gradient; what the block makes of it is what flows on. `torch.Tensor.grad` is replaced only
while such a block is open, and the replacement serves its own block alone.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import torch

from . import active as scopes
from .ending import close
from .errors import BackwardError, OutOfOrderError, RanksError
from .here import WHOLE, Here
from .interleaver import Interleaver
from .mediator import InlineMediator, Mediator
from .rigging import Rigging
from .sites import OUTPUT, Place
from .taps import running
from .turns import getcurrent

# The methods as torch defines them, whatever is put over them later.
plain_backward: Any = torch.Tensor.backward
# relies on: `grad` being an attribute of the C base class that torch.Tensor does not override, torch 2.4 to 2.13
plain_grad: Any = torch._C.TensorBase.grad

_lock = threading.Lock()
_open = 0


def _read(tensor: torch.Tensor) -> Any:
    stack = scopes.active.get()
    if stack and isinstance(stack[-1], GradMediator):
        return stack[-1].read(tensor)
    if stack and not tensor.requires_grad and not _is_torchs(sys._getframe(1)):
        check_gradients()
    return plain_grad.__get__(tensor)


def _is_torchs(frame: FrameType) -> bool:
    # It looks at `.grad` itself, to copy a tensor for example.
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "torch"


def check_gradients() -> None:
    """Refuse gradients where a body looks into a model that computes without.

    Raises:
        BackwardError: it does.
    """
    for member in reversed(scopes.active.get()):
        if isinstance(member, Mediator) and not isinstance(member, GradMediator):
            if member.run.no_gradients:
                raise BackwardError(member.run.no_gradients)
            return


def _write(tensor: torch.Tensor, value: Any) -> None:
    stack = scopes.active.get()
    if stack and isinstance(stack[-1], GradMediator):
        stack[-1].write(tensor, value)
    else:
        plain_grad.__set__(tensor, value)


def _delete(tensor: torch.Tensor) -> None:
    plain_grad.__delete__(tensor)


def open_grads() -> None:
    """Let nnsight answer for `tensor.grad`, until as many calls of `close_grads`."""
    global _open
    with _lock:
        _open += 1
        if _open == 1:
            torch.Tensor.grad = property(_read, _write, _delete)  # type: ignore[assignment]


def close_grads() -> None:
    """Give `tensor.grad` back to torch."""
    global _open
    with _lock:
        _open -= 1
        if _open == 0:
            del torch.Tensor.grad


class _NoModules(Rigging):
    """The rigging of a backward pass: no modules, no taps."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Module(), "backward")


_no_modules = _NoModules()
#: Stands for a module where a gradient is concerned. A place that is its own owner would be a cycle.
_anywhere = Place("backward")


class GradMediator(InlineMediator):
    """The mediator of a backward block: it asks for gradients, and refuses everything else."""

    def __init__(self, run: Interleaver) -> None:
        super().__init__(run)
        self.places: dict[int, tuple[torch.Tensor, Place]] = {}
        self.handles: list[Any] = []
        self.last: int | None = None

    def mediator_for(self, place: Place) -> Mediator | None:
        """Refuse sites of modules."""
        raise BackwardError(
            f"`{place.path}` was asked for inside a backward block, where only gradients pass. Read it before `with "
            "loss.backward():` and ask for its `.grad` inside."
        )

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Wait for the gradient of a tensor."""
        here, rows = self._at(tensor)
        value: torch.Tensor = here.read(rows)
        return value

    def write(self, tensor: torch.Tensor, value: Any) -> None:
        """Wait for the gradient of a tensor and replace it."""
        here, rows = self._at(tensor)
        now = here.read(rows)
        if not isinstance(value, torch.Tensor) or value.shape != now.shape:
            got = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"that is {value!r}"
            raise BackwardError(f"a gradient of shape {tuple(now.shape)} cannot be replaced by one {got}.")
        here.write(rows, value)

    def _at(self, tensor: torch.Tensor) -> tuple[Here, Any]:
        whole = getattr(tensor, WHOLE, None)
        rows = layout = None
        if whole is not None:
            # The rows of one invoke: the graph goes through the whole value, of which this is a view beside it.
            tensor, rows, layout, _ = whole
        here = self.ask(self._grad_place(tensor), OUTPUT)
        here.layout = layout
        return here, rows

    def _grad_place(self, tensor: torch.Tensor) -> Place:
        known = self.places.get(id(tensor))
        if known is not None:
            return known[1]
        if not tensor.requires_grad:
            check_gradients()
            raise BackwardError(
                "The gradient of a tensor was asked for that does not require one. Call `.requires_grad_()` on it "
                "where you read it, before what is differentiated is computed from it."
            )
        order = _order(tensor)
        if self.last is not None and order is not None and order > self.last:
            raise OutOfOrderError(
                f"The gradient of a tensor of shape {tuple(tensor.shape)} has been passed already: gradients come in the "
                "reverse order of the forward pass. Ask for those of later layers first."
            )
        place = Place(f"gradient of {tuple(tensor.shape)}", _anywhere)
        self.places[id(tensor)] = (tensor, place)
        register: Any = tensor.register_hook  # torch does not type it
        self.handles.append(register(lambda grad: self._pass(place, grad, order)))
        return place

    def _pass(self, place: Place, grad: torch.Tensor, order: int | None) -> torch.Tensor | None:
        run = self.run
        if running.get(getcurrent()) is not run or place not in run.at_output:
            return None
        if order is not None:
            self.last = order
        # The engine hands one and the same tensor to several branches of the graph (a residual stream), so what the
        # block edits in place has to be its own.
        value: torch.Tensor = run.provide(place, grad.clone())
        return value


def _order(tensor: torch.Tensor) -> int | None:
    """Return the number by which the engine orders the tensor's node: highest first. None for a leaf."""
    node = tensor.grad_fn
    # relies on: Node._sequence_nr, torch 2.4 to 2.13
    return None if node is None else node._sequence_nr()


def _run_around() -> Interleaver | None:
    """Return the run of the trace around a backward block."""
    for member in reversed(scopes.active.get()):
        if isinstance(member, Mediator):
            return member.run
    return None


class Backward:
    """What `tensor.backward(...)` gives at the head of a `with`."""

    def __init__(self, tensor: torch.Tensor, args: tuple[Any, ...]) -> None:
        self._tensor = tensor
        self._args = args

    def _call(self) -> None:
        # Autograd runs hooks of CUDA nodes on threads of its own, where a greenlet cannot be switched to.
        with torch.autograd.set_multithreading_enabled(False):
            plain_backward(self._tensor, *self._args)

    def __enter__(self) -> Backward:
        run = Interleaver(self._call, _no_modules)
        around = _run_around()
        if around is not None:
            run.ranks, run.before_turn = around.ranks, around.before_turn
        if run.ranks is not None:
            run.ranks.meet("runs backward")
        self._mediator = GradMediator(run)
        scopes.enter(self._mediator)
        open_grads()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        mediator = self._mediator
        run = mediator.run
        close_grads()
        scopes.leave(mediator)
        try:
            if error is None and run.ranks is not None:
                try:
                    run.ranks.meet("has come to the end of a backward block")
                except RanksError:
                    close(run)
                    raise
            if error is not None:
                close(run)
                return
            if run.model is not None:
                run.finish_inline(mediator)
            else:
                self._call()
        finally:
            for handle in mediator.handles:
                handle.remove()
            mediator.places.clear()
            del self._mediator
