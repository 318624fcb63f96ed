"""`VLLM`: a model that vLLM serves, with its insides.

The tree is built without weights (`skeleton.py`); the engine starts at the first run (`engine.py`). A trace is captured and
runs in the engine's workers (`worker/`), each invoke as a request of its own beside all others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nnsight.plugin import EngineTracer, Prepared, is_with_head, open_trace

from . import prompts, skeleton
from .engine import SyncEngine
from .worker.places import ServedModel

#: What an engine is started with unless something else is said: bodies run in modules, which graphs leave out.
DEFAULTS: dict[str, Any] = {"enforce_eager": True}


class VLLM(ServedModel):
    """A model that vLLM serves.

    Args:
        model: a hub id, or a local folder.
        dispatch: start the engine now, and not at the first run.
        rename, envoys: see `NNsight`.
        turn_seconds: how long one turn of a body may take, while the engine and all of its requests wait; 0 for as long as it
            likes.
        options: of vLLM's engine (`tensor_parallel_size=`, `dtype=`, `max_model_len=`, ...).

    Example::

        model = VLLM("openai-community/gpt2", dtype="float32")
        with model.trace("The Eiffel Tower is in the city of", temperature=0, max_tokens=3) as tracer:
            hidden = model.transformer.h[5].output.save()
            text = tracer.result.outputs[0].text.save()
    """

    def __init__(
        self,
        model: str,
        *,
        dispatch: bool = False,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
        turn_seconds: float = 60.0,
        **options: Any,
    ) -> None:
        options = {**DEFAULTS, "model": model, **options}
        super().__init__(skeleton.build(options), rename=rename, envoys=envoys)
        self.__dict__["_engine"] = SyncEngine(options, turn_seconds)
        if dispatch:
            self.dispatch()

    @property
    def dispatched(self) -> bool:
        """Whether the engine is there."""
        return bool(self.__dict__["_engine"].started)

    def dispatch(self) -> VLLM:
        """Start the engine, if it is not there yet."""
        self.__dict__["_engine"].start()
        return self

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the engine."""
        return self.__dict__["_engine"].tokenizer

    # -- runs --------------------------------------------------------------------------------------------------------

    def trace(self, *inputs: Any, backend: Any = None, remote: Any = None, **kwargs: Any) -> Any:
        """Run a request, or several, and look inside: `with model.trace(prompt, max_tokens=3):`.

        Without a prompt, the block opens invokes, each of which is a request with options of its own.

        Args:
            inputs: one prompt: text, token ids, or what a tokenizer returned.
            backend, remote: where to run, if not in an engine of this process; see `NNsight.trace`.
            kwargs: how tokens are drawn, as in `vllm.SamplingParams`, and `lora_request=`.
        """
        if backend is not None or remote:
            return open_trace(self, inputs, kwargs, backend=backend, remote=remote)
        return EngineTracer(self, self, inputs, kwargs, self.__dict__["_engine"])

    def _has_input(self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(inputs) or "input_ids" in kwargs

    def _prepare_input(self, *inputs: Any, **kwargs: Any) -> Prepared:
        if len(inputs) > 1:
            raise TypeError(f"a request has one prompt, and was given {len(inputs)}")
        beside = {name: kwargs.pop(name) for name in ("attention_mask",) if name in kwargs}
        given = inputs[0] if inputs else kwargs.pop("input_ids")
        others = {name: kwargs.pop(name) for name in prompts.OF_REQUESTS if name in kwargs}
        prompt = prompts.prompt_of(given, **beside)
        return (prompt, prompts.sampling(kwargs)), others, 1

    def generate(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run requests: as a plain call, return what vLLM gives for each; at the head of a `with`, the same as `trace`.

        Args:
            inputs: one prompt, or a list of them.
            kwargs: see `trace`.

        Returns:
            A `vllm.RequestOutput`, or a list of them.
        """
        if is_with_head(sys._getframe(1)):
            return self.trace(*inputs, **kwargs)
        given = inputs[0] if len(inputs) == 1 and prompts.are_several(inputs[0]) else None
        prepared = (
            [self._prepare_input(one, **kwargs) for one in given] if given else [self._prepare_input(*inputs, **kwargs)]
        )
        results = self.__dict__["_engine"].run(prepared)
        return results if given else results[0]
