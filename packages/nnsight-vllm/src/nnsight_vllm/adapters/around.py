"""`Around`: a stage in the methods of a model runner, as far as vLLM's two have them alike.

One idea: methods are wrapped on the instance, and each wrapper tells the stage what it has come to. `runner_v1` and
`runner_v2` say which methods those are, and what is elsewhere in one than in the other.

relies on: `execute_model` takes a `SchedulerOutput` with `scheduled_new_reqs`, `num_scheduled_tokens`, and `finished_req_ids`
before anybody else gets the memory of those, and sets `execute_model_state` where tokens are to be drawn by
`sample_tokens`; the model's `compute_logits` is called for those, and again for the logprobs of prompts; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

from ..worker import memory


class Around(ABC):
    """A model runner with a stage in its methods."""

    #: The runner's methods that are wrapped, each by the one of this class that is called so without a leading underscore:
    #: those up to the model's layers, and those after them.
    before: ClassVar[tuple[str, ...]]
    after: ClassVar[tuple[str, ...]]
    #: Whether logits that are computed now are for the logprobs of prompts, and so the engine's own.
    aside: bool
    #: Where what the runner hands out before it is there holds what the scheduler will get.
    held: ClassVar[str]

    def __init__(self, runner: Any, stage: Any) -> None:
        self.runner, self.stage = runner, stage
        #: Whose method each is that comes after the layers, its name, our wrapper, and what that lies over.
        self._later: list[tuple[dict[str, Any], str, Any, Any]] = []
        for name in self.before:
            setattr(runner, name, functools.partial(getattr(self, name.lstrip("_")), getattr(runner, name)))
        for owner, name in [(runner, name) for name in self.after] + [(runner.get_model(), "compute_logits")]:
            own = getattr(owner, name)
            self._later.append((vars(owner), name, functools.partial(getattr(self, name.lstrip("_")), own), own))
        self._listen(True)

    def _listen(self, listens: bool) -> None:
        # Attributes are set either way, and never deleted: Python would have to look for all methods of the runner anew.
        self._listens = listens
        for attributes, name, wrapper, own in self._later:
            attributes[name] = wrapper if listens else own

    def after_layers(self) -> None:
        """Hear that the model's layers have run: if what follows in this step concerns nobody, no wrapper is in its way."""
        if self.stage.end_early() is self._listens:
            self._listen(not self._listens)

    @staticmethod
    def run_dummy(runner: Any, tokens: int) -> None:
        """Let a runner call its model on some tokens, of no request.

        relies on: `_dummy_run` runs the model once and leaves the memory of requests alone, vLLM 0.30 to 0.33.
        """
        runner._dummy_run(tokens)

    @abstractmethod
    def hear(self, scheduler_output: Any) -> None:
        """Tell the stage which requests are new in a step, and which come again."""

    @abstractmethod
    def blocks(self, requests: Collection[str]) -> Iterable[int]:
        """Return the blocks of the cache that requests have."""

    def arrive(self, new: Any, scheduler_output: Any) -> None:
        """Tell the stage of a new request, if it says anything that could concern it."""
        if new.sampling_params is not None and new.sampling_params.extra_args:
            count = scheduler_output.num_scheduled_tokens[new.req_id]
            prompt = new.prompt_embeds if new.prompt_token_ids is None else new.prompt_token_ids
            whole = new.num_computed_tokens == 0 and count == len(prompt)
            self.stage.arrive(new.req_id, new.sampling_params.extra_args, whole)

    def execute_model(self, call: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        runner = self.runner
        gone = scheduler_output.finished_req_ids
        if gone and (requests := self.stage.gone(gone)):
            memory.wipe(runner.kv_caches, set(self.blocks(requests)), runner.kv_cache_config.num_blocks)
        self.hear(scheduler_output)
        output = None
        try:
            output = call(scheduler_output, *args, **kwargs)
            return output
        finally:
            if runner.execute_model_state is None:
                # No tokens are drawn here: nothing was to do, an error, or another stage of a pipeline.
                self.end(output)

    def compute_logits(self, call: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if self.aside:
            with self.stage.aside():
                return call(hidden, *args, **kwargs)
        self.stage.after_layers(hidden.shape[0])
        return self.stage.show("logits", call(hidden, *args, **kwargs))

    def end(self, output: Any) -> None:
        """End a step; what was handed out for it says which requests need not go on."""
        ended = self.stage.end()
        if ended and output is not None:
            getattr(output, self.held, output).nnsight_ended = ended
