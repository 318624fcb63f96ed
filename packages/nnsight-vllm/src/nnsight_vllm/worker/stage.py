"""`Stage`: the model in one worker as bodies see it, and the traces that are being served there.

One idea: an adapter (`nnsight_vllm.adapters`) tells what vLLM does (a request comes, a forward begins, tokens are drawn), in
the same words whatever its version; here those words become runs, steps and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from nnsight import NNsightError
from nnsight.plugin import (
    Cache,
    EndedElsewhereError,
    LocalBodies,
    Pieces,
    SentBodies,
    ServedRun,
    begin_edits,
    decode_bodies,
    encode_error,
    encode_message,
    encode_results,
)

from .. import outputs
from ..fields import STANDING, TRACE, sees_whole, trace_in
from . import spread
from .batch import Batch
from .bounds import Bounds
from .layout import layout_of
from .pipeline import Pipeline
from .places import ServedModel
from .standing import KeptEdits

#: Characters of an error that are told in a request's `stop_reason`.
_LONGEST = 2000
#: How many errors of requests that are over are kept for whoever asks.
_FAILED = 64
_IN_PARTS = (
    "The engine has cut this prompt into parts, or computed some of it before, and a body sees a prompt whole. Start the "
    "engine through `VLLM`, whose scheduler sees to that, or with `scheduler_cls='nnsight_vllm.scheduling.scheduler'`."
)


_AGAIN = (
    "The engine threw out what it had computed of this request, and began to compute it again: a body sees each step once. "
    "`VLLM`'s scheduler never does so by itself; `reset_prefix_cache(reset_running_requests=True)` does, and so does a cache "
    "that is too small for the request alone (`max_tokens=` says how much it may need)."
)


class Stage:
    """One worker's part in all traces.

    Args:
        module: the model that the engine calls.
        turn_seconds: how long one turn of a body may take.
        dummy: lets the model run on some tokens, of no request.
        pipeline: where the model is spread over a pipeline: this stage of it.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        turn_seconds: float,
        dummy: Callable[[int], Any],
        pipeline: Pipeline | None = None,
    ) -> None:
        self.lying = spread.lying(module, dummy)
        self.model = ServedModel(module, self.lying)
        self.forwards = spread.forwards(self.model, turn_seconds, self.lying)
        self.forwards.check_numbers = Bounds(module, self.model._path).check
        self.pipeline = pipeline
        if pipeline is not None:
            self.forwards.parts = pipeline.parts
        self.traces: dict[str, SentBodies] = {}
        self.standing = KeptEdits(self.model)
        #: The run of each request that takes part, by the engine's id.
        self.runs: dict[str, ServedRun] = {}
        #: Those of them that have standing edits and are no part of a trace.
        self.untraced: set[str] = set()
        #: What was told of what bodies have saved so far, where somebody asked for it.
        self._pieces: dict[ServedRun, Pieces] = {}
        #: What was raised in some that are over.
        self._failed: dict[str, BaseException] = {}
        #: The requests that somebody looks into, and whose memory is nobody else's; and of those whose traces are over before
        #: the engine has that memory back, whether it is to be wiped.
        self._alone: dict[str, ServedRun] = {}
        self._to_wipe: dict[str, bool] = {}
        self._layout = layout_of(module)
        #: The forward that is on, or the last one if those that follow may be the same.
        self._forward: Any = None
        #: Who took part in the last forward, and who does in the one that is on.
        self._batch: Batch | None = None
        self._taking_part: Batch | None = None
        #: The last batch of which all were to go on, and what `Forwards.changes` was then.
        self._going_on: tuple[Batch | None, int] = (None, 0)

    # -- traces ------------------------------------------------------------------------------------------------------

    def open(self, trace: str, bodies: bytes | LocalBodies, heard: bool = False) -> None:
        """Take in the bodies of a trace, before its requests come; `heard` if what they print is asked for."""
        sent = bodies.on(self.model) if isinstance(bodies, LocalBodies) else decode_bodies(bodies, self.model)
        self.traces[trace] = sent
        if heard or not self.tells:  # what a block prints is printed once, where it runs to its end
            sent.hear()

    def heard(self) -> dict[str, str]:
        """Return what the bodies of each trace have printed since the last time, if anything."""
        return {trace: text for trace, sent in self.traces.items() if (text := sent.heard()) and self.tells}

    def finish(self, trace: str, results: Mapping[int, Any]) -> tuple[list[bytes], str]:
        """End a trace whose requests are done; return what each body saved or raised, and what they printed last.

        Args:
            trace: which.
            results: what the engine gave for each body's request.
        """
        sent = self._end(trace, results)
        told = [self._told(sent, number) for number in range(len(sent.invokes))]
        return told, sent.heard() if self.tells else ""

    def _end(self, trace: str, results: Mapping[int, Any]) -> SentBodies:
        sent = self.traces.pop(trace)
        sent.end_at_once()
        for number, run in sent.runs.items():
            self._finish(run, results.get(number))
        self._forget(sent)
        return sent

    def hand_over(self, trace: str, results: Mapping[int, Any]) -> list[dict[str, Any] | bytes]:
        """End a trace whose sender is in this process: what a body saved needs bytes only where it is more than data."""
        sent = self._end(trace, results)
        return [self._handed(sent, number) for number in range(len(sent.invokes))]

    def _handed(self, sent: SentBodies, number: int) -> dict[str, Any] | bytes:
        run = sent.runs.get(number)
        if run is None or run.failure is not None:
            return self._told(sent, number)
        found = sent.handed_over(number, outputs.RESULTS)
        return self._told(sent, number) if found is None else found

    def finish_one(self, trace: str, number: int, result: Any, telling: bool) -> bytes:
        """End the request of one body whose siblings may go on; if `telling`, return what it saved or raised."""
        sent = self.traces[trace]
        run = sent.runs.get(number)
        if run is not None:
            self._finish(run, result)
        return self._told(sent, number) if telling else b""

    def look(self, wanted: Sequence[tuple[str, int]]) -> list[bytes]:
        """Return what bodies have saved since they were looked at last: pieces, written; nothing for nothing.

        Args:
            wanted: each a trace, and the number of a body there.
        """
        return [self._look(trace, number) for trace, number in wanted]

    def _look(self, trace: str, number: int) -> bytes:
        sent = self.traces.get(trace)
        run = sent.runs.get(number) if sent is not None else None
        if sent is None or run is None or run.failure is not None or not self.tells:
            return b""
        pieces = self._pieces.setdefault(run, Pieces())
        try:
            found = [tuple(piece) for piece in pieces.look(sent.saved(number))]
            return encode_message("pieces", found) if found else b""
        except Exception as error:  # it cannot travel, and would not at the end
            run.fail(error)
            return b""

    def _finish(self, run: ServedRun, result: Any) -> None:
        if self.pipeline is None:
            run.finish(result)
            return
        self.pipeline.hear_of(run)
        if self.pipeline.last:
            run.finish(result)
        else:
            run.close()  # it is the last stage where blocks run to their ends

    @property
    def tells(self) -> bool:
        """Whether what blocks saved and printed is told from here: where they run to their ends, by the first of equals."""
        return not self.lying.rank and (self.pipeline is None or self.pipeline.last)

    def drop(self, trace: str) -> None:
        """Give up a trace."""
        sent = self.traces.pop(trace, None)
        if sent is not None:
            for run in sent.runs.values():
                if self.pipeline is not None:
                    self.pipeline.hear_of(run)
                run.close()
            self._forget(sent)

    def _forget(self, sent: SentBodies) -> None:
        mine = set(sent.runs.values())
        self.runs = {request: run for request, run in self.runs.items() if run not in mine}
        for run in mine:
            self._pieces.pop(run, None)
        # What they saved is not to be held until the engine's next step.
        self._leave_to_be_wiped([request for request, run in self._alone.items() if run in mine])
        self._let_go()

    def _let_go(self) -> None:
        """Hold nothing of the last forward once all of its requests are over: they may have saved much."""
        if not self.runs:
            self._batch = self._forward = self._taking_part = None
            self._going_on = (None, 0)

    def _told(self, sent: SentBodies, number: int) -> bytes:
        run = sent.runs.get(number)
        if run is None:
            return encode_error(NNsightError(f"{sent.invokes[number].name} never began: its request was not run"))
        if isinstance(run.failure, EndedElsewhereError):
            return encode_message("caches", {})
        if run.failure is not None:
            return encode_error(run.failure)
        if self.lying.rank:
            return encode_message("caches", {})
        try:
            saved = sent.saved(number)
            if not self.tells:
                return encode_message("caches", {n: v for n, v in saved.items() if isinstance(v, Cache)})
            return encode_results(saved)
        except Exception as error:
            return encode_error(error)

    # -- what the engine does ----------------------------------------------------------------------------------------

    def arrive(self, request: str, extra: Mapping[str, Any] | None, whole: bool) -> None:
        """Hear of a request that will take part in the next forward for the first time.

        Args:
            request: what the engine calls it.
            extra: its `extra_args`.
            whole: whether all of its prompt is in that forward.
        """
        if not isinstance(extra, Mapping) or (TRACE not in extra and STANDING not in extra):
            return
        sent, number = self._asked(extra)
        try:
            edits, refused = self.standing.of(extra)
            if sent is not None and number in sent.runs:
                raise NNsightError("Another request is the one of this body already.")
            if sent is None and TRACE in extra:
                raise NNsightError(f"There is no such trace here, or it has no such body: {extra[TRACE]!r}.")
            run = begin_edits(edits, self.forwards) if sent is None else sent.begin(number, self.forwards, edits)
            if refused is None and sees_whole(extra) and not whole:
                refused = NNsightError(_IN_PARTS)
        except Exception as error:  # whatever a request says, the engine goes on
            sent, refused, run = None, error, begin_edits((), self.forwards)
        if sent is None:
            self.untraced.add(request)
        self.runs[request] = run
        if sees_whole(extra):
            self._alone[request] = run
        if refused is not None:
            run.fail(refused)

    def _asked(self, extra: Mapping[str, Any]) -> tuple[SentBodies | None, int]:
        trace, number = trace_in(extra) or ("", 0)
        sent = self.traces.get(trace)
        return (sent if sent is not None and 0 <= number < len(sent.invokes) else None), number

    def gone(self, requests: Iterable[str]) -> Collection[str]:
        """Hear that requests are over, and return those whose memory is to be wiped. Those of a trace are ended with it."""
        for request in self.untraced.intersection(requests):
            self.untraced.remove(request)
            run = self.runs.pop(request)
            self._finish(run, None)
            if run.failure is not None:  # the sender may be in another process, and ask when the engine has gone on
                self._failed[request] = run.failure
                while len(self._failed) > _FAILED:
                    del self._failed[next(iter(self._failed))]
            self._let_go()
        if not self._alone and not self._to_wipe:
            return ()
        self._leave_to_be_wiped([request for request in requests if request in self._alone])
        return [request for request in requests if self._to_wipe.pop(request, False)]

    def _leave_to_be_wiped(self, requests: Iterable[str]) -> None:
        for request in requests:
            run = self._alone.pop(request)
            # Of a pipeline, a stage before this one may have written what came here.
            self._to_wipe[request] = run.has_written or self.pipeline is not None

    def failure(self, request: str) -> bytes | None:
        """Return what a standing edit raised in a request (or in one of those that were made of it), if one did."""
        failures = {**self._failed, **{name: self.runs[name].failure for name in sorted(self.untraced)}}
        for name, failure in failures.items():
            # vLLM puts a number and `_` before what it makes of a request, and `-` and some letters behind a sender's name.
            made_of = name.rpartition("_")[2]
            if failure is None or isinstance(failure, EndedElsewhereError):
                continue
            if made_of == request or made_of.startswith(f"{request}-"):
                return encode_error(failure)
        return None

    def come_again(self, request: str) -> None:
        """Hear that a request is computed once more from its beginning."""
        if request in self._alone and request in self.runs:
            self.runs[request].fail(NNsightError(_AGAIN))

    def begin(self, requests: Sequence[str], counts: Sequence[int] | None, total: int) -> None:
        """Begin a forward.

        Args:
            requests: the requests in it, in the order of their rows.
            counts: how many tokens each has; None if each has one.
            total: how many rows the values have, padding included.
        """
        if not self.runs:
            return
        batch, changes = self._batch, self.forwards.changes
        # Most steps are like the one before, and of many requests each look at all of them counts.
        if (
            batch is None
            or batch.requests != requests
            or batch.changes != changes
            or batch.counts != counts
            or batch.layout.total != total
        ):
            self._batch = batch = Batch(self.runs, changes, requests, counts, self._layout(total))
        if not batch.rows:
            return
        if self.pipeline is not None:
            self.pipeline.before(batch.names)
        forward = self.forwards.forward(batch.rows, batch.layout, batch.even)
        forward.__enter__()
        # Not before: a step that could not begin is not ended, or what the last one had would be given back twice.
        self._forward, self._taking_part = forward, batch

    def end_early(self) -> bool:
        """End a forward when its layers have run, if nothing is left to be done or to be told in it; say whether so."""
        batch = self._taking_part
        if batch is None:
            return True
        if not self._forward.over or self._going_on != (batch, self.forwards.changes):
            return False
        self._taking_part = None
        return True

    def after_layers(self, count: int) -> None:
        """Hear that from here on values have one row for each request.

        Args:
            count: how many requests.
        """
        batch = self._taking_part
        if batch is not None and not batch.even:
            self.forwards.lay_out(*batch.after_layers(count))

    def aside(self) -> AbstractContextManager[None]:
        """Surround what the engine computes with the model for itself, as the logprobs of a prompt."""
        return self.forwards.aside()

    def show(self, name: str, value: Any) -> Any:
        """Let a value that is no module's pass, and return what the bodies made of it."""
        return value if self._taking_part is None else self.model._pass(name, value)

    def end(self) -> dict[str, str | None]:
        """End a forward, and return the requests that need not go on, each with what was raised there, if anything was."""
        if self._taking_part is None:
            return {}
        batch, self._taking_part = self._taking_part, None
        if self.pipeline is not None:
            self.pipeline.after(batch.names)
        self._forward.__exit__(None, None, None)
        if self._going_on == (batch, self.forwards.changes):
            return {}
        self._forward = None
        over = {
            request: _said(run.failure)
            for request, run in batch.names.items()
            if run.stopped or run.failure is not None
        }
        self._going_on = (None if over else batch, self.forwards.changes)
        return over


def _said(failure: BaseException | None) -> str | None:
    if failure is None:
        return None
    try:
        return f"{type(failure).__name__}: {failure}"[:_LONGEST]
    except Exception:  # of the user's own __str__
        return type(failure).__name__
