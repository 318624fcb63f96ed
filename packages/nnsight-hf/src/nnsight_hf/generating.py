"""`GeneratingModel`: what the families share whose models can generate, whatever they read.

The places that a generation adds (`model.generator.output`, `model.generator.streamer.output`) and its options are
`generation.py`; what is asked of the inputs before it begins is left to the families.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnsight.plugin import Place, Rows, end_steps, is_with_head, open_trace, run_there
from nnsight_hf import generation, progress
from nnsight_hf.pretrained import PretrainedModel
from nnsight_hf.tokens import Tokens, describe


class GeneratingModel(PretrainedModel):
    """A model of transformers that may have a generation beside its forward."""

    @property
    def _generates(self) -> bool:
        """Whether there is a generation."""
        can: Any = getattr(self._module, "can_generate", None)
        return bool(can()) if can is not None else hasattr(self._module, "generate")

    def _add_generator(self) -> None:
        """Let the tree have the places of a generation."""
        self._attach("generator", generation.Generator(), stepless=True)

    @property
    def _beyond(self) -> tuple[str, ...]:
        """Below which paths there are no modules of transformers."""
        return "result", f"{self._path}.generator"

    @property
    def _padding_token(self) -> int | None:
        """The token that a generation fills ended rows with, if the family knows it."""
        return None

    def _multiples(self, kwargs: Mapping[str, Any], method: str | None) -> Sequence[int]:
        """How many times in a row each row of an input may lie in the values of a run, the most last."""
        return generation.multiples(self._module, kwargs) if method == "generate" else (1,)

    def _tokens(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Rows | None, method: str | None
    ) -> Tokens:
        return describe(kwargs, self.tokenizer, rows, self._multiples(kwargs, method)[-1])

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        return self._generate if method == "generate" else super()._target(method)

    def _step_place(self, method: str | Callable[..., Any] | None) -> Place | None:
        steps = generation.STEPS.get(type(self._module).__name__) if method == "generate" else None
        return super()._step_place(method) if steps is None else self.get(steps)._place()

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        generator: Any = self.__dict__["_extras"]["generator"]
        if generation.streams(self._module, kwargs):
            kwargs["streamer"] = generation.Stream(generator.streamer, kwargs.get("streamer"))
        helper = kwargs.get("assistant_model")
        if isinstance(helper, PretrainedModel):
            helper._ready()
            kwargs["assistant_model"] = helper._module
        if self._padding_token is not None and kwargs.get("generation_config") is None:
            kwargs.setdefault("pad_token_id", self._padding_token)
        sharding: Any = self.__dict__["_sharding"]
        if sharding is not None and generation.samples(self._module, kwargs):
            sharding.check_seeds()
        generate: Any = self._module.generate
        with progress.over_steps(kwargs.pop("progress", None), self._module, kwargs) as options:
            made = generate(*args, **options)
        generation.mark_beams(self._module, kwargs, made)
        end_steps()
        return generator(made)

    def generate(
        self,
        *given: Any,
        progress: bool | None = None,
        backend: Any = None,
        remote: Any = None,
        blocking: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Generate: a plain call returns the tokens, and `with model.generate(...) as tracer:` looks inside.

        Args:
            given: the prompt, or what the model hears or sees, as for `trace`; without one, the block opens invokes.
            progress: show a bar over the steps. If it is not said, a bar appears in a notebook or at a prompt when the
                generation has taken two seconds, and never in a script.
            backend, remote, blocking: where to run, and whether to wait for it; see `trace`.
            kwargs: options of transformers' `generate` (`max_new_tokens=`, `do_sample=`, ...).

        Returns:
            The tokens [rows, positions], or whatever else this model's `generate` makes, such as a waveform; a `Tracer`
            at the head of a `with`; a job, of which `result()["result"]` is that, for a call that does not wait.

        Raises:
            TypeError: this model does not generate.
        """
        if not self._generates:
            raise TypeError(f"{type(self._module).__name__} does not generate: use `trace`")
        if progress is not None:
            kwargs["progress"] = progress
        where: dict[str, Any] = {"backend": backend, "remote": remote, "blocking": blocking}
        if is_with_head(sys._getframe(1)):
            return open_trace(self, given, kwargs, method="generate", **where)
        if backend is None and blocking and remote in (None, False):
            return self._run_now("generate", given, kwargs)
        return run_there(self, given, kwargs, method="generate", **where)
