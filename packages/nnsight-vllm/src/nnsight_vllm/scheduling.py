"""How an engine schedules requests that are traced, beside all others.

A body sees the whole prompt at once, and each step once. So a traced request is never cut into chunks, and never thrown
out and computed again:

- It begins when its prompt fits into a step whole. If those that run leave no room for it, the last of them pause for that
  one step.
- It begins when the memory for all of it, to its last token, is there beside what other traced requests may still come to
  need. So they never have to make room for one another; requests that are not traced make room for them.

For all other requests nothing changes. What a body asks for (stop, or the end after its error) comes with the output of the
step, and ends its request.

relies on: `Request` makes its `block_hashes` by `update_block_hashes`, of its `cache_salt` among others;
`Scheduler.schedule` takes from `running` (in order; the last is preempted first) and then from `waiting`;
`_update_request_with_output` says whether a request ends; vLLM 0.30 to 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from .fields import SALT, sees_whole


class TracedScheduler(Scheduler):
    """vLLM's scheduler, with a place for traced requests."""

    _ended: Mapping[str, str | None] = {}

    def add_request(self, request: Request) -> None:
        """Take in a request. What is computed of a prompt that is edited is no other's, unless it has the same edits."""
        extra = request.sampling_params.extra_args if request.sampling_params is not None else None
        if extra and request.request_id not in self.requests and (SALT in extra or is_traced(request)):
            of_edits = extra[SALT] if not is_traced(request) else request.request_id
            request.cache_salt = f"{request.cache_salt or ''}/nnsight/{of_edits}"
            request.block_hashes = []
            request.update_block_hashes()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Say who takes part in the next step."""
        if not any(map(is_traced, self.requests.values())):
            return super().schedule(*args, **kwargs)
        self.running.sort(key=lambda request: not is_traced(request))  # stable: the order among the others stays
        held, paused = self._make_room()
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.running += [request for request in paused if not request.is_finished()]
            for request in reversed(held):
                self.waiting.prepend_request(request)

    def _make_room(self) -> tuple[list[Request], list[Request]]:
        """Put those who can begin now first; return those who cannot, and those who pause for them."""
        traced = [request for request in self.waiting if is_traced(request)]
        if not traced:
            return [], []
        self.waiting.remove_requests(traced)
        budget = self.max_num_scheduled_tokens
        running = [request for request in self.running if is_traced(request)]
        reserved = sum(self._blocks(request) for request in running)
        needed = len(running)
        places = self.max_num_running_reqs - len(self.running)
        begin: list[Request] = []
        for request in traced:
            tokens, blocks = request.num_prompt_tokens, self._blocks(request)
            if needed + tokens > budget or reserved + blocks > self._all_blocks or len(begin) >= places:
                break  # in order, so that a long one is not passed for ever
            needed, reserved = needed + tokens, reserved + blocks
            begin.append(request)
        paused: list[Request] = []
        if begin:
            others = [request for request in self.running if not is_traced(request)]
            while others and needed + sum(map(_due, others)) > budget:
                paused.append(others.pop())
            gone = set(map(id, paused))
            self.running[:] = [request for request in self.running if id(request) not in gone]
            for request in reversed(begin):
                self.waiting.prepend_request(request)
        return traced[len(begin) :], paused[::-1]

    @property
    def _all_blocks(self) -> int:
        return self.kv_cache_config.num_blocks - 1  # one is vLLM's own

    def _blocks(self, request: Request) -> int:
        """How many blocks of the cache a request may come to need."""
        tokens = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        return sum(-(-tokens // group.kv_cache_spec.block_size) for group in self.kv_cache_config.kv_cache_groups)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in what a step gave."""
        self._ended = getattr(model_runner_output, "nnsight_ended", {})
        return super().update_from_output(scheduler_output, model_runner_output)

    def _update_request_with_output(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        tokens, stopped = super()._update_request_with_output(request, *args, **kwargs)
        if not stopped and request.request_id in self._ended:
            failure = self._ended[request.request_id]
            request.status = RequestStatus.FINISHED_STOPPED if failure is None else RequestStatus.FINISHED_ERROR
            request.stop_reason = failure
            stopped = True
        return tokens, stopped


def is_traced(request: Request) -> bool:
    """Say whether a body looks into a request, or an edit that has to see it whole."""
    params = request.sampling_params
    return params is not None and sees_whole(params.extra_args)


def _due(request: Request) -> int:
    """How many tokens a running request would take in a step."""
    return max(1, request.num_tokens_with_spec - request.num_computed_tokens)
