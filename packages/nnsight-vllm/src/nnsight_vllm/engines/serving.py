"""The requests of one trace in the engine's thread, from the first that goes in to what the bodies saved.

One idea: a trace is one task, and each of its requests is another below it. However that task ends (well, by an error, given
up from outside), its requests are out of the engine and its bodies out of the workers when it is done.
"""

from __future__ import annotations

import asyncio
import copy
import reprlib
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from nnsight.plugin import Prepared, decode_error

from ..engine import check_opened, that_counts, told, traced
from ..errors import DeadEngineError, refused

if TYPE_CHECKING:
    from .ownprocess import Running


class Told(NamedTuple):
    """What one request has given.

    Attributes:
        number: which of the trace's.
        output: what vLLM gave.
        pieces: what its body has saved since the output before, written; nothing for nothing.
        saved: with the last output of one of several requests, all that its body saved, or what it raised, written.
    """

    number: int
    output: Any
    pieces: bytes = b""
    saved: bytes = b""


#: Called for what is given before the end.
Tell = Callable[[Told], None]


class Served(NamedTuple):
    """What the requests of a trace gave in the end: outputs, what was told last of each, and what the bodies saved."""

    outputs: list[Any]
    lasts: list[Told]
    answers: list[bytes]


async def serve(running: Running, bodies: bytes | None, inputs: Sequence[Prepared], say: Tell | None) -> Served:
    """Serve the requests of one trace, or requests without bodies.

    Args:
        running: the engine.
        bodies: those of the trace; None for requests that nobody looks into.
        inputs: the requests.
        say: is told what comes before the end; None if nobody listens until then.
    """
    await running.ready()
    if bodies is None:
        outputs, lasts = await _all(_request(running, number, one, say) for number, one in enumerate(inputs))
        return Served(outputs, lasts, [])
    trace = uuid.uuid4().hex
    try:
        check_opened(await running.ask("nnsight_open", trace, bodies))
        several = len(inputs) > 1
        requests = enumerate(traced(trace, inputs))
        outputs, lasts = await _all(_request(running, number, one, say, trace, several) for number, one in requests)
        answers, _ = that_counts(await running.ask("nnsight_finish", trace, told(outputs)))
        return Served(outputs, lasts, answers)
    except BaseException:
        await asyncio.shield(_drop(running, trace))
        raise


async def _drop(running: Running, trace: str) -> None:
    try:
        await running.ask("nnsight_drop", trace)
    except DeadEngineError:
        return  # with all that it had


async def _all(requests: Iterable[Coroutine[Any, Any, tuple[Any, Told]]]) -> tuple[list[Any], list[Told]]:
    """Wait for all; with the first error, or given up, end the others and wait until they have ended."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    try:
        found = await asyncio.gather(*tasks)
        return [whole for whole, _ in found], [last for _, last in found]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _request(
    running: Running, number: int, prepared: Prepared, say: Tell | None, trace: str | None = None, several: bool = False
) -> tuple[Any, Told]:
    (prompt, params), others, _ = prepared
    if say is None and params.output_kind == RequestOutputKind.CUMULATIVE:
        params = params.clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
    in_parts = params.output_kind == RequestOutputKind.DELTA
    whole: Any = None
    output: Any = None
    name = f"nnsight-{next(running.numbers)}"
    outputs = running.llm.generate(prompt, params, name, **others)
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if not in_parts:
                    whole = output
                elif whole is None:
                    whole = copy.deepcopy(output)
                else:
                    whole.add(output, aggregate=True)
                if say is not None and not output.finished:
                    _settle(output)
                    say(Told(number, output, b"" if trace is None else await running.looks.at(trace, number)))
    except EngineDeadError:
        raise DeadEngineError from None
    except (EngineGenerateError, VLLMClientError) as error:
        # What vLLM says of what was wrong is in its cause.
        said = error.__cause__ or error
        wrong = refused(said, f"the prompt {reprlib.repr(prompt)}")
        raise wrong from (None if wrong is said else said)
    last = Told(number, output)
    if trace is None:
        await _check(running, name, whole)
    elif say is not None:
        # Of several, the last output of one comes while others go on; that of a single one waits for the end of the trace.
        (result,) = told([whole]).values()
        saved = that_counts(await running.ask("nnsight_end", trace, number, result, several))
        last = Told(number, output, await running.looks.at(trace, number), saved)
    if say is not None and (trace is None or several):
        say(last)
    return whole, last


def _settle(output: Any) -> None:
    """Let an output stay as it is now: its lists are vLLM's own, which go on growing."""
    for one in output.outputs:
        one.token_ids = list(one.token_ids)
        if isinstance(one.logprobs, list):
            one.logprobs = list(one.logprobs)


async def _check(running: Running, name: str, result: Any) -> None:
    """Raise what a standing edit raised in a request that nobody else looks into."""
    if any(output.finish_reason == "error" for output in result.outputs):
        for answer in filter(None, await running.ask("nnsight_failure", name)):
            raise decode_error(answer)
