"""The bodies of one trace, on their way to an engine and there.

One idea: a trace travels once, with all of its bodies, so that values they share are shared over there too; the requests
that it makes name the trace and a number. What a body saved comes back by name, for each body; a name around the bodies that
was saved before they began (a list that they append to) comes back as well.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..active import active
from ..blocks import Body, Names
from ..bypath import Sender, read_for
from ..cache import Cache
from ..edit import Edit, Edits
from ..errors import NNsightError, NoTraceError, WireError
from ..interleaver import RESULT
from ..invoke import Invoke, join_names
from ..mediator import EarlyStop
from ..saved import Collector
from ..sites import OUTPUT
from ..trace import Install, Tracer
from ..wire import Decoder
from ..wire.bodies import likeness
from ..wire.format import Buffer
from ..wire.kinds import makes
from .alike import Alike
from .handed import hand_over
from .mediator import ServedMediator
from .printed import Printed, listen
from .request import ServedRun

if TYPE_CHECKING:
    from ..tree import Node
    from .forwards import Forwards


def encode_bodies(tracer: Tracer, bodies: Sequence[Body], saved: Iterable[Any] = (), *, alone: bool = False) -> bytes:
    """Write the bodies of one trace.

    Args:
        tracer: the trace; over there its name means the trace there.
        bodies: the bodies, in the order of their requests; one that runs for several of them is there as often.
        saved: values that count as saved when the bodies begin.
        alone: the one body is the block of the trace itself, and not that of an invoke.

    Raises:
        WireError: something that they read cannot travel.
    """
    node = tracer.model
    sender = Sender(node._root, {id(tracer): ["tracer"]})
    encoder = sender.encoder
    # A loop makes many bodies that are the same but for their requests: it is written once what they are.
    written: list[Any] = []
    kinds: dict[Any, int] = {}
    numbers: dict[int, int] = {}
    requests: list[int] = []
    for body in bodies:
        kind = kinds.get(same := likeness(body))
        if kind is None:
            kind = kinds[same] = len(written)
            written.append(encoder.value(body))
        requests += (kind, numbers.setdefault(id(body), len(numbers)))
    kept = [encoder.value(value) for value in saved]
    made = encoder.emit("bodies", encoder.value(node), kept, alone, written, requests)
    return encoder.pack("bodies", [made], {"path": node._path, "python": platform.python_version()})


def decode_bodies(data: Buffer, model: Any) -> SentBodies:
    """Read the bodies of one trace, to be run on a model.

    This builds the functions and classes that came along, and so runs code of whoever sent it.

    Raises:
        WireError: the bytes are no bodies, or need what is not here.
    """
    return read_for(model, data, "bodies", _as_bodies)


def _as_bodies(value: Any) -> SentBodies:
    if not isinstance(value, SentBodies):
        raise WireError("these bytes hold something else than the bodies of a trace")
    return value


@makes("tracer")
def _make_tracer(decoder: Decoder, step: list[Any]) -> ServedTracer:
    made: ServedTracer = decoder.kept.setdefault("tracer", ServedTracer.__new__(ServedTracer))
    return made


@makes("bodies")
def _make_bodies(decoder: Decoder, step: list[Any]) -> SentBodies:
    _, node, saved, alone, written, requests = step
    tracer = decoder.kept.setdefault("tracer", ServedTracer.__new__(ServedTracer))
    tracer.belong_to(decoder.value(node))
    sent = SentBodies(tracer, _bodies_of(decoder.values(written), requests), alone is True)
    for value in decoder.values(saved):
        sent.collector.add(value)
    return sent


def _bodies_of(written: list[Any], requests: list[int]) -> list[Body]:
    """Return the body of each request: which of those that are written it is like, and its number among all bodies."""
    made: dict[int, Body] = {}
    for kind, number in zip(requests[::2], requests[1::2], strict=True):
        if number not in made:
            like = written[kind]
            made[number] = Body(like.block, like.outer, like.real)
    return [made[number] for number in requests[1::2]]


class SentBodies:
    """The bodies of one trace where an engine runs them, and what they saved."""

    def __init__(self, tracer: ServedTracer, bodies: Sequence[Body], alone: bool) -> None:
        self.tracer = tracer
        self.alone = alone
        self.collector = Collector()
        self.invokes: list[Invoke] = []
        #: The requests that have begun, by the number of their body.
        self.runs: dict[int, ServedRun] = {}
        self._printed: Printed | None = None
        numbers: dict[int, int] = {}  # one body may be there for several requests: it is one invoke in the text
        for body in bodies:
            invoke = Invoke(tracer, numbers.setdefault(id(body), len(numbers)), None)
            invoke.body, invoke.names = body, Names(body.outer, body.real)
            self.invokes.append(invoke)
        join_names(self.invokes)
        self._alike = Alike(self.invokes)

    def begin(self, number: int, forwards: Forwards, standing: Iterable[Edit] = ()) -> ServedRun:
        """Let the request of one body take part in an engine's forwards.

        Args:
            number: which body.
            forwards: the engine's.
            standing: edits that the request has besides those of the trace's model, and before them.
        """
        invoke, body = self.invokes[number], self.invokes[number].body
        assert body is not None and invoke.names is not None
        run = self.runs[number] = ServedRun(forwards, (self.collector,))
        if edits := [*standing, *self.tracer._node._root.__dict__["_edits"]]:
            Edits(edits).begin_in(run)
        run.printed = self._printed
        body.assign(invoke.names, self.tracer if self.alone else invoke)
        invoke.mediator = run.add_body(invoke.run, None, invoke.name, number)
        run.membership = self._alike.membership(number, run.stack)
        if run.membership is None and isinstance(invoke.mediator, ServedMediator):
            invoke.mediator.to_come = self._alike.rounds(number, body.block.target if self.alone else None)
        forwards.admit(run)
        return run

    def end_at_once(self) -> None:
        """Hear that all requests end now, one after another: those that were served together part in one go."""
        for group in {run.group for run in self.runs.values() if run.group is not None}:
            group.end_at_once()

    def hear(self) -> None:
        """Keep what the bodies will print, instead of printing it in this process."""
        listen()
        self._printed = Printed()

    def heard(self) -> str:
        """Return what they have printed since the last time."""
        return "" if self._printed is None else self._printed.take()

    def handed_over(self, number: int, as_they_are: tuple[type, ...] = ()) -> dict[str, Any] | None:
        """Return what one body saved, for a caller in this process; see `hand_over`."""
        member = self.runs[number].membership
        own: Collection[int] = () if member is None else member.fresh.keys()
        return hand_over(self.saved(number), as_they_are, own)

    def saved(self, number: int) -> dict[str, Any]:
        """Return what one body has saved, by name."""
        run = self.runs.get(number)
        if run is not None and run.group is not None:
            run.group.let_look(run)
        invoke = self.invokes[number]
        assert invoke.body is not None and invoke.names is not None
        names = {**invoke.body.outer, **invoke.names}
        has = self.collector.has
        # A cache is a result in itself; nobody has to save it. It is a mapping, of which `isinstance` is slow.
        return {n: value for n, value in names.items() if has(value) or Cache in type(value).__mro__}


class ServedTracer(Tracer):
    """The trace, as bodies in an engine know it."""

    def belong_to(self, node: Node) -> None:
        """Make it a trace of a model. What was around its bodies may have referred to it before that is known."""
        Tracer.__init__(self, node, node._family(), (), {})

    def _current(self) -> ServedMediator:
        for member in reversed(active.get()):
            if isinstance(member, ServedMediator):
                return member
        raise NoTraceError("This can be asked of a tracer inside its block only, within one of its invokes.")

    @property
    def result(self) -> Any:
        """What the engine gave for the request: waits for its end."""
        mediator = self._current()
        return mediator.run.result if mediator.run.over else mediator.ask(RESULT, OUTPUT).value

    @result.setter
    def result(self, value: Any) -> None:
        raise NNsightError(
            "What an engine gives for a request is told to its sender by the engine itself, and cannot be replaced. Save "
            "what you would put there under a name of its own."
        )

    def stop(self) -> None:
        """End the request here: the rest of its block and of its steps do not run."""
        raise EarlyStop(self._current().run)

    def _install(self, install: Install) -> None:
        install(self._current().run, None)
