"""`LanguageModel`: causal language models, from text to sites.

What is loaded and how is `loading.py`, how text becomes a batch is `inputs.py`, what a generation adds is
`generation.py`. Here they are one family: prepare an input, batch several, run a forward or a generation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from nnsight.plugin import Layout, NNsight, PlainLayout, Prepared, is_with_head, open_trace
from nnsight_hf import generation, inputs, loading


class LanguageModel(NNsight):
    """A causal language model with its tokenizer.

    Built without weights, so that its tree can be explored and scanned at no cost; they are loaded at the first run, or at
    once with `dispatch=True`.

    Args:
        model: a hub id, a local folder, the name of an embedded model (`"nnsight/toy-landmarks"`), or a loaded module.
        tokenizer: a tokenizer, if not the model's own. A loaded module comes without one unless it is given.
        config: a configuration, if not the model's own.
        dispatch: load the weights now.
        automodel: the Auto class to load with, itself or by name.
        tokenizer_kwargs: options for loading the tokenizer.
        rename, envoys: see `NNsight`.
        kwargs: passed to `from_pretrained` (`device_map=`, `dtype=`, `revision=`, `attn_implementation=`, ...).

    Example::

        model = LanguageModel("nnsight/toy-landmarks")
        with model.trace("The Eiffel Tower is in the city of"):
            logits = model.lm_head.output
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | torch.nn.Module,
        *,
        tokenizer: Any = None,
        config: PretrainedConfig | None = None,
        dispatch: bool = False,
        automodel: Any = AutoModelForCausalLM,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(automodel, str):
            import transformers

            automodel = getattr(transformers, automodel)
        source = repo = None
        if isinstance(model, torch.nn.Module):
            if kwargs:
                raise TypeError(f"a loaded module takes no options for loading: {', '.join(kwargs)}")
            module = model
            config = config or getattr(model, "config", None)
        elif isinstance(model, (str, os.PathLike)):
            repo = os.fspath(model)
            source = loading.locate(model)
            config = config or loading.load_config(source, kwargs)
            module = (
                loading.load_weights(automodel, source, config, kwargs)
                if dispatch
                else loading.build_without_weights(automodel, config, kwargs)
            )
        else:
            raise TypeError(f"a model is a hub id, a local folder or a torch.nn.Module, not {type(model).__name__}")
        super().__init__(module, rename=rename, envoys=envoys)
        own = self.__dict__
        if tokenizer is None and source is not None:
            tokenizer = loading.load_tokenizer(source, kwargs, dict(tokenizer_kwargs or {}))
        own["tokenizer"] = loading.prepare_tokenizer(tokenizer) if tokenizer is not None else None
        own["config"] = config
        own["repo_id"] = repo
        own["dispatched"] = source is None or dispatch
        own["_source"] = source
        own["_automodel"] = automodel
        own["_load_options"] = kwargs
        self._attach("generator", generation.Generator(), stepless=True)

    @property
    def _model(self) -> torch.nn.Module:
        return self._module

    @property
    def name_or_path(self) -> str:
        """The hub id or folder that the model was loaded from; what its configuration says for a loaded module."""
        return self.__dict__["repo_id"] or getattr(self.__dict__["config"], "_name_or_path", "") or ""

    # -- weights -----------------------------------------------------------------------------------------------------

    def dispatch(self) -> LanguageModel:
        """Load the weights, if they are not there yet. Envoys that you hold stay valid."""
        own = self.__dict__
        if not own["dispatched"]:
            module = loading.load_weights(own["_automodel"], own["_source"], own["config"], own["_load_options"])
            self._rebind(module)
            own["dispatched"] = True
        return self

    def _ready(self) -> None:
        self.dispatch()

    def to(self, *args: Any, **kwargs: Any) -> LanguageModel:
        """Load the weights if need be, and move or cast the model."""
        self.dispatch()
        return super().to(*args, **kwargs)

    # -- inputs ------------------------------------------------------------------------------------------------------

    def _has_input(self, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(given) or any(kwargs.get(name) is not None for name in inputs.INPUT_NAMES)

    def _prepare_input(self, *given: Any, **kwargs: Any) -> Prepared:
        if len(given) > 1:
            raise TypeError(f"a language model takes one input, a list for several prompts; it was given {len(given)}")
        if given:
            data = {**inputs.encode(self.tokenizer, given[0], {}), **kwargs}
        else:
            data = inputs.complete(kwargs)
        return (), data, data["attention_mask"].shape[0]

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = [kwargs for _, kwargs, _ in prepared]
        if len(rows) == 1:
            data = dict(rows[0])
        else:
            data = inputs.pad_together(rows, getattr(self.tokenizer, "pad_token_id", None) or 0)
        device = None if self.device is None or self.device.type == "meta" else self.device
        if device is not None:
            data = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in data.items()}
        return (), data

    def _layout(self, total: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str | None) -> Layout:
        if method == "generate":
            return PlainLayout(total, generation.multiples(self._module, dict(kwargs)))
        return PlainLayout(total)

    # -- running -----------------------------------------------------------------------------------------------------

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        if method is None:
            return self._forward
        if method == "generate":
            return self._generate
        return super()._target(method)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        padded = mask is not None and mask.dim() == 2 and not bool(_all(mask))
        if padded and "position_ids" not in kwargs and inputs.takes(self._module, "position_ids"):
            kwargs["position_ids"] = inputs.positions(mask)
        return self._module(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        generator: Any = self.__dict__["_extras"]["generator"]
        if generation.streams(self._module, kwargs):
            kwargs["streamer"] = generation.Stream(generator.streamer)
        pad = getattr(self.tokenizer, "pad_token_id", None)
        if pad is not None and "generation_config" not in kwargs:
            kwargs.setdefault("pad_token_id", pad)
        generate: Any = self._module.generate
        return generator(generate(*args, **kwargs))

    def generate(self, *given: Any, backend: Any = None, remote: Any = None, **kwargs: Any) -> Any:
        """Generate text: a plain call returns the tokens, and `with model.generate(...) as tracer:` looks inside.

        Args:
            given: the prompt, as for `trace`; without one, the block opens invokes.
            kwargs: options of transformers' `generate` (`max_new_tokens=`, `do_sample=`, ...).

        Returns:
            The tokens [rows, positions], or a `Tracer` at the head of a `with`.
        """
        if backend is None and remote in (None, False) and not is_with_head(sys._getframe(1)):
            return self._run_now("generate", given, kwargs)
        return open_trace(self, given, kwargs, method="generate", backend=backend, remote=remote)


def _all(mask: torch.Tensor) -> Any:
    """Say whether a mask hides nothing. Fake tensors have no numbers to ask: there, say that it may hide some."""
    from torch._subclasses.fake_tensor import FakeTensor

    return False if isinstance(mask, FakeTensor) else mask.all()
