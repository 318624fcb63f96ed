"""The engine in processes of its own: vLLM's `AsyncLLM`, spoken to from a thread that is ours.

One idea: whoever waits (a thread, a task, a loop of any kind) waits for a `Stream`; everything that has to be cleared away
after a request is cleared away in the engine's thread, whether or not anybody waits still.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import wait
from typing import Any

from nnsight.plugin import Prepared

from .. import skeleton
from ..engine import options_of
from ..errors import DeadEngineError
from ..standing import Standing
from .background import Background, Work
from .looks import Looks
from .stream import Stream


class OwnProcess:
    """vLLM's engine in processes of its own.

    Args:
        options: of the engine.
        turn_seconds: how long one turn of a body may take; 0 for as long as it likes.
        waits: whether traces are waited for where they end, and not streamed.
    """

    def __init__(self, options: Mapping[str, Any], turn_seconds: float, waits: bool) -> None:
        self.options = dict(options)
        self.turn_seconds = turn_seconds
        self.waits = waits
        self.standing = Standing()
        self._running: Running | None = None
        self._tokenizer: Any = None

    @property
    def started(self) -> bool:
        """Whether it was started, and not shut down since."""
        return self._running is not None and self._running.llm is not None

    @property
    def engine(self) -> Running:
        """The engine that is running, or will be when it is asked for something."""
        if self._running is None:
            self._running = Running(self.options, self.turn_seconds, self.standing)
            self._end = weakref.finalize(self, Running.end, self._running)
        return self._running

    def start(self) -> None:
        """Load the model, and wait until it is loaded."""
        self.engine.begin(self.engine.ready()).result()

    def shutdown(self) -> None:
        """End it, and free what it had; what is under way is given up. The next run starts it again."""
        if self._running is not None:
            self._running = None
            self._end()

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, which is there before it is started."""
        if self._tokenizer is None:
            self._tokenizer = skeleton.tokenizer(self.options)
        return self._tokenizer

    def serve(self, bodies: bytes, inputs: Sequence[Prepared]) -> Any:
        """Serve the requests of one trace; see `nnsight.plugin.Engine`."""
        stream = Stream(self.engine, bodies, inputs)
        return stream.saved() if self.waits else stream

    def generate(self, inputs: Sequence[Prepared]) -> Any:
        """Run requests to their ends, and return what the engine gave, in their order; what is under way, if nobody waits."""
        stream = Stream(self.engine, None, inputs)
        return stream.of(True).result() if self.waits else stream


class Running:
    """An engine from its start to its end, in a thread of its own."""

    def __init__(self, options: Mapping[str, Any], turn_seconds: float, standing: Standing) -> None:
        self.options = options
        self.standing = standing
        self.turn_seconds = turn_seconds
        self.llm: Any = None
        self.thread = Background("nnsight vLLM")
        self.numbers = itertools.count()
        self.looks = Looks(self.ask)
        self.over = False
        self._starting: asyncio.Task[Any] | None = None
        self._works: weakref.WeakSet[Work[Any]] = weakref.WeakSet()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Work[Any]:
        """Let the thread do something."""
        if self.over:
            work.close()
            raise DeadEngineError
        begun = self.thread.begin(work)
        self._works.add(begun)
        return begun

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Ask all workers, and wait for what they answer."""

        async def asked() -> list[Any]:
            await self.ready()
            return await self.ask(method, *args)

        answers: list[Any] = self.begin(asked()).result()
        return answers

    # -- in its thread -----------------------------------------------------------------------------------------------

    async def ready(self) -> Any:
        """Return vLLM's engine, which is started if nobody has started it."""
        if self._starting is None or self._starting.done() and self.llm is None:
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(**options_of(self.options))
        llm = AsyncLLM.from_engine_args(args, usage_context=UsageContext.LLM_CLASS)
        try:
            self.standing.watch(llm)
            # relies on: `output_handler` runs as long as the engine does, and ends when that dies, vLLM 0.30 to 0.33.
            llm._run_output_handler()
            await llm.collective_rpc("nnsight_begin", args=(self.turn_seconds,))
        except BaseException:
            llm.shutdown()
            raise
        # Before vLLM ends its processes when the interpreter ends: it would take that for their death.
        atexit.register(self.end)
        self.llm = llm
        return llm

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Ask all workers, and return what they answer."""
        llm = self.llm
        if llm.errored:
            raise DeadEngineError
        answer = asyncio.ensure_future(llm.collective_rpc(method, args=args))
        try:
            # Nobody answers for an engine that has died.
            await asyncio.wait({answer, llm.output_handler}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise DeadEngineError
            answers: list[Any] = answer.result()
            return answers
        finally:
            answer.cancel()

    def end(self) -> None:
        """Give up all that is under way, and end it."""
        if self.over:
            return
        self.over = True
        atexit.unregister(self.end)
        for work in list(self._works):
            work.cancel()
        ended = self.thread.begin(self._shut_down())
        if self.thread.is_here:  # whoever had the model forgot it there
            ended.add_done_callback(lambda _: self.thread.stop())
        else:
            wait([*self._works, ended])
            self.thread.stop()
            ended.result()

    async def _shut_down(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self.llm is not None:
            # What was given up is cleared away by now but for what the engine itself has still to hear of.
            self.llm.shutdown()
            self.llm = None
