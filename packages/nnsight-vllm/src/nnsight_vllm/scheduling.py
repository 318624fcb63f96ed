"""How an engine schedules requests that are traced, beside all others.

A body sees the whole prompt at once, and each step once. So a traced request is never cut into chunks, and never thrown
out and computed again:

- It begins when its prompt fits into a step whole, beside those that run and those that came before it. If it is first in
  line and those that run leave no room, the last of them pause for one step; never in two steps after one another.
- It begins when the memory for all of it, to its last token, is there beside what other traced requests may still come to
  need. So they never have to make room for one another; requests that are not traced make room for them, and pass those
  that wait for it.

Where an engine schedules a step before it knows the tokens of the last one, a traced request waits for its own: whether it
goes on is known by then, so no body sees a forward of a request that was over, and what a body put in the place of a drawn
token is what comes next. All others are a step ahead as ever.

Otherwise the line stays as it is, by arrival or by priority. What a body asks for (stop, or the end after its error) comes
with the output of the step, and ends its request; so does a stop string (`stops.py`).

relies on: `Request` makes its `block_hashes` by `update_block_hashes`, of its `cache_salt` among others;
`Scheduler.schedule` takes from `running` in order (under the policy "fcfs" it preempts the last), then from `waiting`, and
cuts a prompt at the budget and at `long_prefill_token_threshold`; `_update_request_with_output` says whether a request ends;
vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from . import quiet
from .fields import SALT, sees_whole
from .orphans import end_with_parent
from .stops import StopStrings


def scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> TracedScheduler:
    """Return the scheduler that a configuration asks for, with a place for traced requests."""
    end_with_parent()  # this is the one function of ours that vLLM calls in the process of an engine
    quiet.reduce()
    ahead = vllm_config.scheduler_config.async_scheduling
    return (AsyncTracedScheduler if ahead else TracedScheduler)(vllm_config, *args, **kwargs)


class TracedScheduler(Scheduler):
    """vLLM's scheduler, with a place for traced requests."""

    policy: SchedulingPolicy
    _ended: Mapping[str, str | None] = {}
    #: Whether somebody paused in the step before.
    _paused_before = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The traced requests that there may be.
        self._traced: set[str] = set()
        #: Those that ran when they were put in order last.
        self._in_order: list[Request] = []
        #: How large the blocks of each kind of cache are, and how many of them a request takes at most.
        self._sizes = [
            (group.kv_cache_spec.block_size, self._most(group.kv_cache_spec))
            for group in self.kv_cache_config.kv_cache_groups
        ]
        self._stops = StopStrings(self.vllm_config.model_config)

    def add_request(self, request: Request) -> None:
        """Take in a request. What is computed of a prompt that is edited is no other's, unless it has the same edits."""
        extra = request.sampling_params.extra_args if request.sampling_params is not None else None
        traced = bool(extra) and is_traced(request)
        if isinstance(extra, dict) and request.request_id not in self.requests and (SALT in extra or traced):
            of_edits = request.request_id if traced else extra[SALT]
            request.cache_salt = f"{request.cache_salt or ''}/nnsight/{of_edits}"
            request.block_hashes = []
            request.update_block_hashes()
        super().add_request(request)
        if traced:
            self._traced.add(request.request_id)
            self._stops.expect(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Say who takes part in the next step."""
        held: list[Request] = []
        paused: list[Request] = []
        # Most steps have the requests of the one before, in an order that is right already, and nobody waits.
        if len(self.requests) != len(self.running) or self._paused_before or self.running != self._in_order:
            self._traced.intersection_update(self.requests)
            self._stops.keep(self._traced)
            if self._traced:
                self._sort()
                held, paused = self._make_room()
                self._paused_before = bool(paused)
        if not self._traced:
            return super().schedule(*args, **kwargs)
        # No prompt is cut that need not be, and those make room who are last in `running`.
        config = self.scheduler_config
        policy, threshold = self.policy, config.long_prefill_token_threshold
        if policy is SchedulingPolicy.FCFS and not threshold and not (paused or held):
            return super().schedule(*args, **kwargs)  # as most are
        self.policy, config.long_prefill_token_threshold = SchedulingPolicy.FCFS, 0
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.policy, config.long_prefill_token_threshold = policy, threshold
            if paused or held:
                self.running += [request for request in paused if not request.is_finished()]
                for request in held:
                    self.waiting.add_request(request)

    def _sort(self) -> None:
        """Let those be last in `running` who make room first: plain ones, and of these who came last or matters least."""
        traced, running = self._traced, self.running
        plain = [request.request_id not in traced for request in running]
        if self.policy == SchedulingPolicy.PRIORITY or plain != sorted(plain):
            running.sort(key=lambda request: (request.request_id not in traced, *self._rank(request)))
        self._in_order = list(running)

    def _rank(self, request: Request) -> tuple[Any, ...]:
        return (request.priority, request.arrival_time) if self.policy == SchedulingPolicy.PRIORITY else ()

    # -- who begins --------------------------------------------------------------------------------------------------

    def _make_room(self) -> tuple[list[Request], list[Request]]:
        """Take from the line who cannot begin now, in order, and out of those that run who is to pause; return both."""
        line = list(self.waiting)
        if not any(map(is_traced, line)):
            return [], []
        traced = [request for request in self.running if is_traced(request)]
        reserved = sum(map(self._blocks, traced))
        spent = sum(map(_due, self.running)) + sum(map(_due, getattr(self, "kv_holding_waiting", ())))
        budget = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        begin: list[Request] = []
        held: list[Request] = []
        paused: list[Request] = []
        for place, request in enumerate(line):
            if not is_traced(request):
                spent += _due(request)
                continue
            blocks = self._blocks(request)
            if held or (reserved and reserved + blocks > self._all_blocks):
                held.append(request)  # in order, so that a long one is not passed by other traced ones for ever
                continue
            spent += request.num_prompt_tokens
            if spent > budget and place == len(begin):
                paused = self._pause(spent - budget, [*begin, request])
            # What does not even fit alone is let go: it is told so where it runs.
            fits = spent <= budget or bool(paused) or not (self.running or place)
            if not fits or not self._has_adapter_room(request):
                held += line[place:]
                break
            reserved += blocks
            begin.append(request)
            if paused:
                held += line[place + 1 :]
                break
        self.waiting.remove_requests(held)
        return held, paused

    def _pause(self, tokens: int, begin: list[Request]) -> list[Request]:
        """Take the last of those that run out of this step until so many tokens are free, if that lets these begin."""
        others = [request for request in self.running if not is_traced(request)]
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        # Who pauses keeps its memory, so all that this step asks for has to be free; and its place and adapter, too.
        asked = (len(self.running) - len(others)) * len(self.kv_cache_config.kv_cache_groups)
        asked += sum(self._blocks(request, more=0) for request in begin)
        places = min(self.max_num_running_reqs, getattr(self, "max_num_active_reqs", self.max_num_running_reqs))
        if self._paused_before or asked > free or len(self.running) + len(begin) > places:
            return []
        paused: list[Request] = []
        while others and tokens > 0:
            paused.append(others.pop())
            tokens -= _due(paused[-1])
        if tokens > 0:
            return []
        gone = set(map(id, paused))
        self.running[:] = [request for request in self.running if id(request) not in gone]
        return paused[::-1]

    def _has_adapter_room(self, request: Request) -> bool:
        """Say whether there is room for its adapter beside those of all that run, who may pause."""
        if self.lora_config is None or request.lora_request is None:
            return True
        loaded = {other.lora_request.lora_int_id for other in self.running if other.lora_request is not None}
        return len(loaded | {request.lora_request.lora_int_id}) <= self.lora_config.max_loras

    @property
    def _all_blocks(self) -> int:
        return self.kv_cache_config.num_blocks - 1  # one is vLLM's own

    def _blocks(self, request: Request, more: int | None = None) -> int:
        """How many blocks of the cache a request may come to need, or needs with so many tokens more than its prompt."""
        more = request.max_tokens if more is None else more
        tokens = min(request.num_prompt_tokens + more, self.max_model_len)
        return sum([min(cdiv(tokens, size), most) for size, most in self._sizes])

    def _most(self, spec: Any) -> int:
        # A window or a state never takes more than it takes at the greatest length.
        return cdiv(spec.max_memory_usage_bytes(self.vllm_config), spec.page_size_bytes)

    # -- who ends ----------------------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in what a step gave."""
        self._ended = getattr(model_runner_output, "nnsight_ended", {})
        if not self._ended and not self._stops.wanted:
            return super().update_from_output(scheduler_output, model_runner_output)
        # Called for each request: it lies over vLLM's own only in a step in which there is something to say.
        self._update_request_with_output = self._end_or_go_on
        try:
            return super().update_from_output(scheduler_output, model_runner_output)
        finally:
            del self._update_request_with_output

    def _end_or_go_on(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        tokens, stopped = super()._update_request_with_output(request, *args, **kwargs)
        if not stopped and request.request_id in self._ended:
            failure = self._ended[request.request_id]
            request.status = RequestStatus.FINISHED_STOPPED if failure is None else RequestStatus.FINISHED_ERROR
            request.stop_reason = failure
            stopped = True
        if not stopped and self._stops.reached(request, tokens):
            # Of a reason that has the front end look for the string itself, and say so.
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
            stopped = True
        return tokens, stopped


class AsyncTracedScheduler(TracedScheduler, AsyncScheduler):
    """The same over vLLM's scheduler that is a step ahead.

    relies on: `num_output_placeholders` of a request counts its tokens that are not known yet, and a request without new
    tokens is passed over, vLLM 0.30 to 0.33.
    """

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Say who takes part in the next step: of the traced ones, those whose last tokens are known."""
        waiting = [(one, one.num_output_placeholders) for one in self.running if one.request_id in self._traced]
        for request, _ in waiting:
            request.num_output_placeholders = 0
        try:
            return super().schedule(*args, **kwargs)
        finally:
            for request, unknown in waiting:
                request.num_output_placeholders += unknown


def is_traced(request: Request) -> bool:
    """Say whether a body looks into a request, or an edit that has to see it whole."""
    params = request.sampling_params
    return params is not None and sees_whole(params.extra_args)


def _due(request: Request) -> int:
    """How many tokens a request would take in a step, at most."""
    return max(1, request.num_tokens_with_spec - request.num_computed_tokens)
