"""`.source`: the operations inside a forward, as sites.

Asking for an envoy's `.source` *opens* its forward: from the next time it starts in a run, every call in it goes through
a place of its own, which stops like a module does. An operation whose callee is a Python function can be opened in turn;
which function that is may be known only when it is called, so inner places are made by name and checked then. How a
function is rewritten, printed and unwrapped is `source/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from . import active as scopes
from .active import mediator_for
from .errors import SourceError
from .here import Here
from .mediator import Mediator
from .parsing import reading
from .served import first_input, replace_first_input
from .sites import INPUT, OUTPUT, Place
from .source.operations import Operation
from .source.printing import around, listing
from .source.rewrite import Rewritten, rewrite
from .source.unwrap import held_in, innermost, rebuild
from .taps import Tap, running
from .turns import getcurrent

if TYPE_CHECKING:
    from .interleaver import Interleaver
    from .tree import Node


class OperationPlace(Place):
    """The place of one operation."""

    __slots__ = ("inside", "name", "opened")

    def __init__(self, path: str, name: str, owner: Place, inside: Opening) -> None:
        super().__init__(path, owner)
        self.name = name
        self.inside = inside
        #: Set when the callee's own operations are asked for.
        self.opened: Opening | None = None


class Opening:
    """What is opened of one forward, or of the callee of one operation: places by name, and rewritten functions.

    Places live as long as the tap that owns them; functions are rewritten when they are met, once for each.
    """

    def __init__(self, path: str, owner: Place) -> None:
        self.path = path
        self.owner = owner
        self.places: dict[str, OperationPlace] = {}
        self._bound: dict[Any, tuple[Any, Any]] = {}

    def place(self, name: str) -> OperationPlace:
        """Return the place of an operation, made on first use."""
        place = self.places.get(name)
        if place is None:
            # Two threads may both make it, and both have to get the same one.
            place = self.places.setdefault(name, OperationPlace(f"{self.path}.{name}", name, self.owner, self))
        return place

    def through(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return an equal callable whose operations pass through the places of this opening.

        Raises:
            SourceError: there is no Python function in it whose text can be had.
        """
        inner = innermost(function)
        known = self._bound.get(inner.__code__)
        if known is None or known[0] is not inner:
            rewritten = rewrite(inner)
            row = [_pass(self.place(operation.name)) for operation in rewritten.operations]
            if len(self._bound) > 64:  # a callee that is made anew at each call
                self._bound.clear()
            known = self._bound[inner.__code__] = (inner, rewritten.bind(inner, row))
        return rebuild(function, known[1])

    def through_for(self, run: Interleaver, callee: Any) -> Any:
        """Return what an operation is to call in a run: what is opened of its callee, as far as anybody waits inside.

        A callee may be another one at each call, so a name that was asked for once need not be in all of them.
        """
        waited = [p for p in (*run.at_input, *run.at_output) if p.path.startswith(self.path + ".")]
        if waited and isinstance(callee, torch.nn.Module):
            raise SourceError(module_is_called(self.path.removesuffix(".source"), type(callee).__name__))
        try:
            opened = self.through(callee)
        except SourceError:
            if waited:
                raise
            return callee
        for place in waited:
            if isinstance(place, OperationPlace) and place.inside is self:
                rewritten = rewrite(innermost(callee))
                if place.name not in rewritten.by_name:
                    raise SourceError(no_operation(self.path, place.name, rewritten))
        return opened

    def through_or_plain(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward opened, or as it is if it cannot be: whoever asks for its operations is told why there."""
        try:
            return self.through(forward)
        except SourceError:
            return forward

    def aim(self, tap: Tap, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a module's tap is to call, opened; see `Tap.aim`."""
        held = held_in(tap.module, forward)
        if held is None:
            return self.through_or_plain(forward)
        # A forward that was put on the instance looks up the one it replaced at each call: exchange that one.
        own = tap.module.__dict__
        original = tap.held.setdefault(held, own[held])
        own[held] = self.through_or_plain(original)
        return forward


def _pass(place: OperationPlace) -> Callable[..., Any]:
    """Build what the calls of one operation go through."""
    whose, current = running.get, getcurrent

    def operation(callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        run = whose(current())
        if run is None:
            return callee(*args, **kwargs)
        if place.opened is not None:
            callee = place.opened.through_for(run, callee)
        if place in run.at_input:
            return run.visit(place, callee, args, kwargs)
        entered, left = run.entered, run.left
        visit = entered.get(place, 0)
        entered[place] = visit + 1
        value = callee(*args, **kwargs)
        if place in run.at_output:
            value = run.leave(place, value, visit)
        left[place] = left.get(place, 0) + 1
        return value

    return operation


def module_is_called(path: str, kind: str) -> str:
    """Return the message for opening an operation that calls a submodule."""
    return (
        f"`{path}` calls a submodule (a {kind}), which has an envoy of its own: ask for that envoy's `.source`, not for "
        "the operation's."
    )


def no_operation(path: str, name: str, rewritten: Rewritten) -> str:
    """Return the message for an operation that a forward has not got."""
    names = ", ".join(operation.name for operation in rewritten.operations) or "none"
    return f"`{path}` has no operation {name!r}. Those of {rewritten.function_name} are: {names}."


class Source:
    """The operations of a forward: an attribute each, printable, iterable.

    `print(model.layers[0].source)` lists them beside the code.
    """

    def __init__(self, opening: Opening, rewritten: Rewritten | None, function: Any, node: Node) -> None:
        self._opening = opening
        self._rewritten = rewritten
        self._function = function
        self._node = node

    def __getattr__(self, name: str) -> OperationEnvoy:
        if name.startswith("_"):
            raise AttributeError(name)
        operation = None
        if self._rewritten is not None:
            operation = self._rewritten.by_name.get(name)
            if operation is None:
                raise AttributeError(no_operation(self._opening.path, name, self._rewritten))
        return OperationEnvoy(self._opening.place(name), self, operation)

    def __getitem__(self, name: str) -> OperationEnvoy:
        return self.__getattr__(name)

    def __iter__(self) -> Iterator[OperationEnvoy]:
        return (self.__getattr__(operation.name) for operation in self._known())

    def __len__(self) -> int:
        return len(self._known().operations)

    def __contains__(self, name: object) -> bool:
        return name in self._known().by_name

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._rewritten.by_name if self._rewritten is not None else ())]

    def __str__(self) -> str:
        return listing(self._known())

    __repr__ = __str__

    def _known(self) -> Rewritten:
        if self._rewritten is None:
            raise SourceError(
                f"Which function `{self._opening.path}` goes through is decided when it is called, so its operations "
                "cannot be listed before. Ask for one by name inside a trace."
            )
        return self._rewritten


class OperationEnvoy:
    """One operation inside a forward: `.output`, `.input`, `.inputs` and `.skip` as on a module's envoy.

    Attributes:
        name: its name in the listing, such as `torch_relu_0`.
    """

    def __init__(self, place: OperationPlace, source: Source, operation: Operation | None) -> None:
        self._place = place
        self._source = source
        self._operation = operation
        self.name = place.name

    @property
    def path(self) -> str:
        """The path of the operation from the root of the model."""
        return self._place.path

    def _at(self, stage: str) -> tuple[Here, Mediator]:
        mediator = mediator_for(self._place)
        return mediator.ask(self._place, stage), mediator

    @property
    def output(self) -> Any:
        """What the operation returned; assign to replace it."""
        here, mediator = self._at(OUTPUT)
        return here.read(mediator.rows)

    @output.setter
    def output(self, value: Any) -> None:
        here, mediator = self._at(OUTPUT)
        here.write(mediator.rows, value)

    @property
    def inputs(self) -> Any:
        """The pair of positional and keyword arguments of the operation; assign to replace them."""
        here, mediator = self._at(INPUT)
        return here.read(mediator.rows)

    @inputs.setter
    def inputs(self, value: Any) -> None:
        here, mediator = self._at(INPUT)
        here.write(mediator.rows, value)

    @property
    def input(self) -> Any:
        """The first argument of the operation; assign to replace it."""
        return first_input(self._source._node, self.inputs)

    @input.setter
    def input(self, value: Any) -> None:
        here, mediator = self._at(INPUT)
        here.write(mediator.rows, replace_first_input(self._source._node, here.read(mediator.rows), value))

    def skip(self, value: Any) -> None:
        """Let the operation not run, and take `value` as what it returned."""
        here, mediator = self._at(INPUT)
        if here.skipped is None:
            here.skipped = {}
        here.skipped[mediator.rows] = value

    def next(self) -> OperationEnvoy:
        """Ask in the next step from here on."""
        mediator_for(self._place).advance()
        return self

    @property
    def source(self) -> Source:
        """The operations of the function that this one calls.

        Raises:
            SourceError: it calls a submodule (which has an envoy of its own) or something that is no Python function.
        """
        place = self._place
        callee = self._callee()
        if isinstance(callee, torch.nn.Module):
            raise SourceError(module_is_called(place.path, type(callee).__name__))
        rewritten = rewrite(innermost(callee)) if callee is not None else None
        if place.opened is None:
            refuse_inside(place)
            place.opened = Opening(f"{place.path}.source", place.owner)
        return Source(place.opened, rewritten, callee, self._source._node)

    def _callee(self) -> Any:
        """Find what the operation calls where the text alone decides it; None where the run will."""
        function = self._source._function
        if self._operation is None or function is None:
            return None
        first_name, *attributes = self._operation.callee.split(".")
        if not all(part.isidentifier() for part in (first_name, *attributes)):
            return None
        code = innermost(function).__code__
        if first_name in code.co_varnames:
            if first_name != code.co_varnames[0] or not inspect.ismethod(function):
                return None
            found: Any = function.__self__
        else:
            scope = inspect.getclosurevars(innermost(function))
            names = {**scope.builtins, **scope.globals, **scope.nonlocals}
            if first_name not in names:
                return None
            found = names[first_name]
        for attribute in attributes:
            found = getattr(found, attribute, None)
            if found is None:
                return None
        if isinstance(found, torch.nn.Module):
            return found
        return found if inspect.isfunction(found) or inspect.ismethod(found) else None

    def __str__(self) -> str:
        rewritten = self._source._rewritten
        if rewritten is None or self._operation is None:
            return repr(self)
        return around(rewritten, self._operation)

    def __repr__(self) -> str:
        return str(self) if self._operation is not None else f"<operation {self._place.path}>"


def refuse_inside(place: Place) -> None:
    """Refuse to open what is running already: it would be opened from its next start on, and this visit be missed."""
    for member in scopes.active.get():
        if isinstance(member, Mediator):
            run, here = member.run, member.run.here
            if here is not None and here.place is place and here.stage is INPUT and isinstance(place, Tap):
                continue  # it has been called, and its forward has not begun
            if run.entered.get(place, 0) > run.left.get(place, 0) and not run.over:
                raise SourceError(
                    f"The operations of `{place.path}` were asked for while it was running already. Ask for them before "
                    f"the model reaches it, or write `{place.path}.source` on a line of its own before the trace: then it "
                    "is opened from the start of every run."
                )


def source_of(node: Node) -> Source:
    """Open the forward of an envoy's module, and return its operations."""
    tap = node._place()
    function = tap.forward()
    held = held_in(tap.module, function)
    if held is not None:
        function = tap.held.get(held, tap.module.__dict__[held])
    rewritten = rewrite(innermost(function))
    with reading:  # another thread that finds the forward open must find it opened
        if tap.opening is None:
            refuse_inside(tap)
            tap.opening = Opening(f"{node._path}.source", tap)
            tap.aim_now()
    return Source(tap.opening, rewritten, function, node)
