"""`Stream`: what the one who wrote a trace holds of it when nobody waits for it where it stands.

One idea: a trace begins when it is first asked for, and is asked for once: output by output (`async for`), or for its end
(`await`, `result`). Whoever stops listening before the end gives it up. Everything that comes is read here, in the thread of
whoever asked; the engine's has others to serve.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnsight import NNsightError
from nnsight.plugin import Piece, Prepared, decode_message, decode_results, inspect_bytes

from ..engine import saved_or_raised
from .background import Work
from .serving import Served, Told, serve

if TYPE_CHECKING:
    from .ownprocess import Running

_END: Any = object()


class Stream:
    """The requests of a trace on an engine that does not wait for them: `tracer.backend()`.

    With `async for` it gives vLLM's outputs as tokens are made, with `await` the last one of each request. An output has,
    besides what vLLM says of it:

    - `output.saves`: what its body has saved so far, by name; all of it when `output.finished`. Before that it has what was
      saved under its name already (a list that grows, say: `hidden = [].save()` before the loop), with what was added by the
      step that made these tokens, or a later one.
    - `output.pieces`: what of that is new since the output before it; see `nnsight.plugin.Piece`.
    - `output.number`: which request of the trace it is of, counted from 0: there is one for each invoke, in their order, and
      with `n=` one for each continuation.

    When the trace is over, what the bodies saved is also bound where they stand.

    Args:
        running: the engine.
        bodies: those of the trace; None for requests that nobody looks into.
        inputs: the requests.
    """

    def __init__(self, running: Running, bodies: bytes | None, inputs: Sequence[Prepared]) -> None:
        self._running = running
        self._asked: tuple[bytes | None, Sequence[Prepared]] | None = (bodies, inputs)
        self._traced = bodies is not None
        self._several = len(inputs) > 1
        self._work: Work[Served] | None = None
        self._bind: Callable[[Sequence[Mapping[str, Any]]], None] | None = None
        self._values: list[Mapping[str, Any]] | None = None
        self._lasts: list[Told] = []

    def __call__(self) -> Stream:
        """Return itself: `tracer.backend` and `tracer.backend()` are the same."""
        return self

    def of(self, several: bool) -> Stream:
        """Say whether its end is a list of outputs, and return it."""
        self._several = several
        return self

    def deliver_to(self, bind: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        """Take what binds the saved values where the bodies stand."""
        self._bind = bind

    # -- asking for it -----------------------------------------------------------------------------------------------

    def __aiter__(self) -> Outputs:
        """Give its outputs as they come.

        Raises:
            NNsightError: it has been asked for before.
        """
        if self._work is not None:
            raise NNsightError(
                "this trace has been asked for already, and its outputs come once; `await` gives the last one again"
            )
        return Outputs(self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for its end, and return vLLM's output: a list of them, in order, if it has several requests.

        Raises what a body raised, once the others are done.
        """
        return self._wait().__await__()

    async def _wait(self) -> Any:
        work = self._begin(None)
        try:
            await _until_done(work)
        except asyncio.CancelledError:
            work.cancel()
            raise
        return self._take()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its end as `await` does, where there is no event loop.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            TimeoutError: it is not finished by then. It goes on; wait again.
        """
        work = self._begin(None)
        try:
            concurrent.futures.wait([work], timeout)
        except BaseException:  # an interrupt
            work.cancel()
            concurrent.futures.wait([work])
            raise
        if not work.done():
            raise TimeoutError("the trace is not finished yet; it goes on, and can be waited for again")
        return self._take()

    def saved(self) -> list[Mapping[str, Any]]:
        """Wait for its end, and return what each body saved, by name."""
        self.result()
        assert self._values is not None
        return self._values

    async def aclose(self) -> None:
        """Give it up, and wait until the engine has let go of everything that it had of it."""
        self._asked = None
        if self._work is not None:
            self._work.cancel()
            await _until_done(self._work)

    def give_up(self) -> None:
        """Give it up, and do not wait."""
        self._asked = None
        if self._work is not None:
            self._work.cancel()

    # -- what it is made of ------------------------------------------------------------------------------------------

    def _begin(self, say: Callable[[Told], None] | None) -> Work[Served]:
        if self._work is None:
            if self._asked is None:
                raise _given_up()
            bodies, inputs = self._asked
            self._asked = None
            self._work = self._running.begin(serve(self._running, bodies, inputs, say))
        return self._work

    def _take(self) -> Any:
        """Read the end, which has come; bind what was saved."""
        assert self._work is not None
        try:
            served = self._work.result(0)
        except concurrent.futures.CancelledError:
            raise _given_up() from None
        if self._traced and self._values is None:
            self._values = saved_or_raised(served.answers)
        outputs, self._lasts = served.outputs, served.lasts
        for number, output in enumerate(outputs):
            _mark(output, number, self._values[number] if self._values is not None else None)
        if self._bind is not None and self._values is not None:
            bind, self._bind = self._bind, None
            bind(self._values)
        return outputs if self._several else outputs[0]


class Outputs:
    """The outputs of a stream, as they come: what `async for` goes over.

    It does not refer to what refers to it: with the loop that was left, it goes, and the trace is given up.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._over = False
        self._saves: dict[int, dict[str, Any]] = {}
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        self._queue = queue

        def say(told: Any) -> None:
            if loop.is_closed():
                raise _given_up()
            loop.call_soon_threadsafe(queue.put_nowait, told)

        def end(_: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, _END)

        stream._begin(say).add_done_callback(end)

    def __aiter__(self) -> Outputs:
        return self

    async def __anext__(self) -> Any:
        while not self._over:
            told = await self._queue.get()
            if told is not _END:
                output = self._read(told)
                if output is None:
                    continue
                return output
            self._over = True
            self._stream._take()
            values = self._stream._values
            if values is not None and len(values) == 1:  # its last output comes with the end
                (last,) = self._stream._lasts
                return _mark(last.output, 0, values[0], self._pieces(last))
        raise StopAsyncIteration

    def _read(self, told: Told) -> Any:
        output, number = told.output, told.number
        if not self._stream._traced:
            return _mark(output, number, None)
        pieces = self._pieces(told)
        if told.saved:
            # An error is raised at the end, when the others are done.
            wrong = inspect_bytes(told.saved)["kind"] == "error"
            return None if wrong else _mark(output, number, decode_results(told.saved), pieces)
        saves = self._saves.get(number, {})
        for piece in pieces:
            saves = piece.added_to(saves)
        self._saves[number] = saves
        return _mark(output, number, saves, pieces)

    def _pieces(self, told: Told) -> list[Piece]:
        return [Piece(*said) for said in decode_message(told.pieces)[1]] if told.pieces else []

    async def aclose(self) -> None:
        """Give the trace up; see `Stream.aclose`."""
        self._over = True
        await self._stream.aclose()

    def __del__(self) -> None:
        if not self._over:
            self._stream.give_up()


def _mark(output: Any, number: int, values: Mapping[str, Any] | None, pieces: Sequence[Piece] = ()) -> Any:
    output.number = number
    if values is not None:
        output.saves, output.pieces = dict(values), list(pieces)
    return output


def _given_up() -> NNsightError:
    return NNsightError(
        "the trace was given up before its end: its loop was left, its task cancelled, or the engine shut down"
    )


async def _until_done(work: Work[Any]) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell() -> None:
        if not done.done():
            done.set_result(None)

    work.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(tell))
    await done
