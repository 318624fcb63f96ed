"""The engine in this process: requests go in together, and what their bodies saved comes out."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import reprlib
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nnsight.plugin import LocalBodies, Prepared, decode_error, decode_results, encode_message, inspect_bytes

from . import cluster, outputs, quiet
from .errors import refused
from .fields import TRACE
from .spread import that_counts
from .standing import Standing

_EXTENSION = "nnsight_vllm.worker.extension.Extension"
_SCHEDULER = "nnsight_vllm.scheduling.scheduler"

#: Seconds that a Ray cluster may take to answer, and to have devices free.
CLUSTER_SECONDS = 60.0

#: Those that run in this process.
_HERE: weakref.WeakSet[SyncEngine] = weakref.WeakSet()


class SyncEngine:
    """vLLM's engine, started when it is first needed, and run by whoever waits for requests.

    Args:
        options: of the engine.
        turn_seconds: how long one turn of a body may take; 0 for as long as it likes.
    """

    def __init__(self, options: Mapping[str, Any], turn_seconds: float) -> None:
        self.options = dict(options)
        self.turn_seconds = turn_seconds
        self.engine: Any = None
        self._is_here = False
        self.standing = Standing()
        self._numbers = itertools.count()
        # It is run by one thread at a time, to the end of what that wants; others wait for their turn.
        self._turn = threading.RLock()

    @property
    def started(self) -> bool:
        """Whether it runs."""
        return self.engine is not None

    def start(self) -> None:
        """Load the model."""
        with self._turn:
            if self.engine is not None:
                return
            from vllm.engine.arg_utils import EngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            # One that fails to start ends itself.
            with quiet.without_remarks(), left_to_others():
                args = EngineArgs(**options_of(self.options))
                engine = LLMEngine.from_engine_args(args, usage_context=UsageContext.LLM_CLASS)
            try:
                engine.collective_rpc("nnsight_begin", args=(self.turn_seconds,))
                self.standing.watch(engine)
            except BaseException:
                _end(engine)
                raise
            self.engine, self._is_here = engine, _is_here(engine)
            _HERE.add(self)

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        self.start()
        return self.engine.get_tokenizer()

    def serve(self, bodies: bytes | LocalBodies, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]]:
        """Serve the requests of one trace; see `nnsight.plugin.Engine`."""
        with self._turn:
            return self._serve(bodies, inputs)

    #: It takes bodies as they are, too; see `nnsight.plugin.LocalEngine`.
    serve_here = serve

    def _serve(self, bodies: bytes | LocalBodies, inputs: Sequence[Prepared]) -> list[Mapping[str, Any]]:
        self.start()
        if isinstance(bodies, LocalBodies) and not self._is_here:
            bodies = bodies.encode()
        trace = uuid.uuid4().hex
        try:
            self.open(trace, bodies)
            results = self.run(traced(trace, inputs))
            if self._is_here:
                given = {number: outputs.bare(result) for number, result in enumerate(results)}
                return saved_or_raised(self.engine.collective_rpc("nnsight_hand_over", args=(trace, given))[0])
            answers, _ = self.finish(trace, results)
        except BaseException:
            self.drop(trace)
            raise
        return saved_or_raised(answers)

    def run(self, inputs: Iterable[Prepared]) -> list[Any]:
        """Run requests to their ends, and return what the engine gave, in their order."""
        return [result for _, result in self._run(inputs)]

    def _run(self, inputs: Iterable[Prepared]) -> list[tuple[str, Any]]:
        """Do what `run` does; return what workers call each request, too."""
        self.start()
        added: list[tuple[str, str]] = []
        done: dict[str, Any] = {}
        try:
            for one in inputs:
                added.append(self.add(one))
            mine = {number for number, _ in added}
            while len(done) < len(added):
                for output in self.engine.step():
                    if output.finished and output.request_id in mine:
                        done[output.request_id] = output
        except BaseException:
            self.abort(internal for _, internal in added)
            raise
        return [(internal, done[number]) for number, internal in added]

    def generate(self, inputs: Iterable[Prepared]) -> list[Any]:
        """Run requests as `run` does; raise what a standing edit raised in one of them, once all are done."""
        with self._turn:
            results = self._run(inputs)
            self.check(results)
        return [result for _, result in results]

    def check(self, results: Iterable[tuple[str, Any]]) -> None:
        """Raise what a standing edit raised in one of these requests: what workers call each, and what it gave."""
        for internal, result in results:
            if any(output.finish_reason == "error" for output in result.outputs):
                for answer in filter(None, self.engine.collective_rpc("nnsight_failure", args=(internal,))):
                    raise decode_error(answer)

    def shutdown(self) -> None:
        """End it, and free what it had. The next run starts it again."""
        with self._turn:
            engine, self.engine = self.engine, None
            if engine is not None:
                _HERE.discard(self)
                _end(engine)
                del engine
                # Weights go now, and groups of processes: a fork that freed those would wait for threads that it lacks.
                gc.collect()

    # -- a trace, and its requests -----------------------------------------------------------------------------------

    def open(self, trace: str, bodies: bytes | LocalBodies, heard: bool = False) -> None:
        """Take in the bodies of a trace.

        Args:
            trace: its name.
            bodies: as they travel, or as they are, for a worker in this process.
            heard: whether what they print is asked for; see `heard`.
        """
        check_opened(self.engine.collective_rpc("nnsight_open", args=(trace, bodies, heard)))

    def add(self, prepared: Prepared) -> tuple[str, str]:
        """Let a request begin with the next step, and return its names: among outputs, and inside the engine."""
        from vllm.sampling_params import RequestOutputKind

        (prompt, params), others, _ = prepared
        params = copy.copy(params)
        # All of a result at the end, also of several continuations: nobody looks at a part of it before.
        params.output_kind = RequestOutputKind.FINAL_ONLY
        number = f"nnsight-{next(self._numbers)}"
        try:
            return number, self.engine.add_request(number, prompt, params, **others)
        except Exception as error:
            raise refused(error, f"the prompt {reprlib.repr(prompt)}") from error

    def abort(self, requests: Iterable[str]) -> None:
        """Take requests out, by their names inside the engine."""
        self.engine.abort_request(list(requests), internal=True)

    def finish(self, trace: str, results: Sequence[Any]) -> tuple[list[bytes], str]:
        """End a trace whose requests are done; return what each body saved or raised, and what all of them printed last."""
        return that_counts(self.engine.collective_rpc("nnsight_finish", args=(trace, told(results))))

    def drop(self, trace: str) -> None:
        """Give up a trace."""
        self.engine.collective_rpc("nnsight_drop", args=(trace,))

    def heard(self) -> dict[str, str]:
        """Return what the bodies of each trace have printed since the last time, if anything."""
        printed: dict[str, str] = that_counts(self.engine.collective_rpc("nnsight_heard"))
        return printed

    def everywhere(self, call: Callable[[], None]) -> None:
        """Call a function in this process and in every other that the engine has started."""

        def called(worker: Any) -> int:
            call()
            return os.getpid()

        if os.getpid() not in self.engine.collective_rpc(called):
            call()


def options_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an engine in which bodies run is started with, on a cluster that has been joined if it needs one.

    What nobody says is as `vllm.LLM` has it: no statistics, which nobody would read and which take a twentieth of a small
    model's step; and, by the usage that engines are started for, as many tokens and requests in a step.

    relies on: `disable_log_stats` is an option of engines, and `UsageContext.LLM_CLASS` the usage of `vllm.LLM`;
    vLLM 0.30 to 0.33.
    """
    outputs.register()
    options = dict(options)
    seconds = options.pop("cluster_seconds", CLUSTER_SECONDS)
    if options.get("distributed_executor_backend") == "ray":
        cluster.join(options, seconds)
    return {"disable_log_stats": True, **options, "worker_extension_cls": _EXTENSION, "scheduler_cls": _SCHEDULER}


def told(results: Iterable[Any]) -> dict[int, bytes]:
    """Write what the engine gave for each request of a trace, for the bodies that ask for it."""
    return {number: encode_message("result", outputs.bare(result)) for number, result in enumerate(results)}


def check_opened(answers: Iterable[bytes]) -> None:
    """Raise what a worker says of bodies that it cannot take in."""
    for problem in answers:
        if problem:
            raise decode_error(problem)


def _is_here(engine: Any) -> bool:
    """Say whether the one worker of an engine is in this process, so that what is given to it arrives as it is.

    relies on: the executor of an engine in this process is its `model_executor`, vLLM 0.28 to 0.33.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    executor = getattr(engine, "model_executor", None)
    return isinstance(executor, UniProcExecutor) and engine.vllm_config.parallel_config.world_size == 1


def _end(engine: Any) -> None:
    with left_to_others():
        engine.engine_core.shutdown()


@contextmanager
def left_to_others() -> Iterator[None]:
    """Let an engine end without taking down what others of this process share with it: vLLM's groups of processes.

    relies on: `EngineCore.shutdown` ends with `vllm.v1.engine.core.cleanup_dist_env_and_memory`, vLLM 0.30 to 0.33.
    """
    if not _HERE:
        yield
        return
    from vllm.v1.engine import core

    cleanup, core.cleanup_dist_env_and_memory = core.cleanup_dist_env_and_memory, gc.collect
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = cleanup


def saved_or_raised(answers: Sequence[Mapping[str, Any] | bytes]) -> list[Mapping[str, Any]]:
    """Read what each body of a trace saved; raise what the first of them raised that did."""
    for answer in answers:
        if isinstance(answer, bytes) and inspect_bytes(answer)["kind"] == "error":
            raise decode_error(answer)
    return [decode_results(answer) if isinstance(answer, bytes) else answer for answer in answers]


def traced(trace: str, inputs: Sequence[Prepared]) -> Iterable[Prepared]:
    """Return the requests of a trace, each with the number of its body."""
    for number, ((prompt, params), others, rows) in enumerate(inputs):
        params = copy.copy(params)
        params.extra_args = {**(params.extra_args or {}), TRACE: [trace, number]}
        # What a body changes lies in the cache of its own request, which sees every forward of its prompt.
        yield ({**prompt, "cache_salt": f"{trace}/{number}"}, params), others, rows
