"""`LanguageModel`: models of text, from a prompt to sites.

What is loaded and how is `loading.py` and `pretrained.py`, how text becomes a batch is `inputs.py`, what a generation adds is
`generation.py` and `generating.py`. Here they are one family: prepare an input, batch several, run a forward or a generation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig

from nnsight import AbsentNameError, NNsightError
from nnsight.plugin import Layout, Prepared
from nnsight_hf import fitting, generation, inputs, loading, padding, text
from nnsight_hf.generating import GeneratingModel
from nnsight_hf.losses import Losses
from nnsight_hf.rows import Facts, ProbedLayout, probe
from nnsight_hf.standard import Corrections, StandardNames, resolve


class LanguageModel(GeneratingModel):
    """A causal language model with its tokenizer.

    Built without weights, so that its tree can be explored and scanned at no cost; they are loaded at the first run, or at
    once with `dispatch=True`.

    Args:
        model: a hub id, a local folder, the name of an embedded model (`"nnsight/toy-landmarks"`), a configuration (for new
            weights), or a loaded module.
        tokenizer: a tokenizer, if not the model's own. A loaded module comes without one unless it is given.
        config: a configuration, if not the model's own.
        dispatch: load the weights now.
        automodel: the Auto class to load with, itself or by name, if not the one that fits the configuration.
        tokenizer_kwargs: options for loading the tokenizer.
        rename: other names for submodules; see `NNsight`.
        envoys: classes for envoys; see `NNsight`.
        kwargs: passed to `from_pretrained` (`device_map=`, `dtype=`, `revision=`, `attn_implementation=`, ...).

    Example::

        model = LanguageModel("nnsight/toy-landmarks")
        with model.trace("The Eiffel Tower is in the city of"):
            logits = model.lm_head.output
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PretrainedConfig | torch.nn.Module,
        *,
        tokenizer: Any = None,
        config: PretrainedConfig | None = None,
        dispatch: bool = False,
        automodel: Any = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
        **kwargs: Any,
    ) -> None:
        origin = loading.find(model, config, automodel, self._choose, kwargs)
        if tokenizer is None and origin.where is not None:
            tokenizer = loading.load_tokenizer(origin.where, kwargs, dict(tokenizer_kwargs or {}))
        super().__init__(origin, dispatch=dispatch, rename=rename, envoys=envoys)
        self.__dict__["tokenizer"] = tokenizer
        self._add_generator()

    @staticmethod
    def _choose(config: PretrainedConfig) -> Any:
        """Return the Auto class that fits a configuration."""
        automodel: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        fitting.check(config, automodel.__name__, "LanguageModel")
        return automodel

    #: Whether an input may lack what another says of each token (which of them stand for images).
    _mixes = False

    # -- inputs ------------------------------------------------------------------------------------------------------

    @property
    def _padding_token(self) -> int | None:
        pad: int | None = getattr(self.tokenizer, "pad_token_id", None)
        return pad

    @property
    def _filler(self) -> int:
        """The token that shorter rows are filled with; some models tell padding by it."""
        pad = self._padding_token
        if pad is None:
            pad = getattr(self.config, "pad_token_id", None)
        return pad if isinstance(pad, int) else 0

    def _has_input(self, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(given) or any(kwargs.get(name) is not None for name in inputs.INPUT_NAMES)

    def _prepare_input(self, *given: Any, **kwargs: Any) -> Prepared:
        if len(given) > 1:
            raise TypeError(f"a language model takes one input, a list for several prompts; it was given {len(given)}")
        module = self._module
        options = text.take_options(kwargs)
        if options and not given:
            raise TypeError(f"`{next(iter(options))}=` belongs to the tokenizer, and this input has no text")
        encoded, length = text.encode(self.tokenizer, given[0], options, inputs.INPUT_NAMES) if given else ({}, 0)
        side, decodes = padding.side(module), padding.encodes(module)
        data = inputs.complete({**encoded, **kwargs}, self._filler, side, decodes, length)
        if "token_type_ids" in encoded and not padding.takes(module, "token_type_ids"):
            del data["token_type_ids"]  # tokenizers give it whatever the model
        padding.refuse_beyond(module, data)
        return (), data, data["attention_mask"].shape[0]

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = [kwargs for _, kwargs, _ in prepared]
        return (), self._placed(dict(rows[0]) if len(rows) == 1 else self._together(rows))

    def _together(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put several inputs into one batch."""
        module = self._module
        return inputs.pad_together(rows, self._filler, padding.side(module), self._mixes, padding.encodes(module))

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        stray = [name for name in kwargs if name in text.OPTIONS]
        if stray:
            raise TypeError(
                f"`{stray[0]}=` belongs to the tokenizer: give it to each invoke, with the text that it is for"
            )
        return dict(kwargs)

    def _layout(self, total: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str | None) -> Layout:
        layout = self._laid(total, kwargs, method)
        layout.losses = self._losses(kwargs, method)
        return layout

    def _laid(self, total: int, kwargs: Mapping[str, Any], method: str | None) -> ProbedLayout:
        """Return the layout of a run with these inputs."""
        return ProbedLayout(total, self._multiples(kwargs, method), self._facts(), self._beyond)

    def _losses(self, kwargs: Mapping[str, Any], method: str | None) -> Losses | None:
        labels = kwargs.get("labels")
        if method is not None or not isinstance(labels, torch.Tensor):
            return None
        return Losses(self._targets(labels, kwargs.get("attention_mask")))

    def _targets(self, labels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return labels of the input's own tokens without those that padding would predict; a decoder's as they are."""
        if mask is None or padding.encodes(self._module) or labels.shape != mask.shape:
            return labels
        return inputs.targets(labels, mask)

    def _facts(self) -> Facts:
        """How rows lie in the values of this module, found out when it is first asked."""
        return self._found("rows", lambda: probe(self._whole()))

    def _settle(self) -> None:
        super()._settle()
        self._facts()
        with suppress(NNsightError):  # not every architecture has the names; whoever asks for them is told why
            self.standard  # noqa: B018

    # -- names -------------------------------------------------------------------------------------------------------

    @property
    def standard(self) -> StandardNames:
        """This model under standard names (`layers_output[i]`, `mlps_output[i]`, ...); see `nnsight_hf.standard`.

        What they mean is found out when they are first asked for, by a small run, for which the weights are loaded.
        """
        return self._standard(self.__dict__.get("_corrections"))

    def _standard(self, given: Corrections | None) -> StandardNames:
        """Return this model under standard names, with what a user says about them."""
        self.dispatch()
        # Another implementation computes attention probabilities, or does not.
        how = getattr(self.config.get_text_config(), "_attn_implementation", None)
        return StandardNames(self, self._found(f"names: {how}, {given}", lambda: resolve(self._module, given)))

    def standardize(
        self,
        *,
        layers: str | None = None,
        attention: str | Sequence[str] | None = None,
        mixer: str | Sequence[str] | None = None,
        mlp: str | Sequence[str] | None = None,
    ) -> StandardNames:
        """Say where standard names lie that are not found, or are to be another module; from now on `standard` has them.

        What is said goes through the same sums as what is found. Without arguments, what was said before is forgotten.

        Args:
            layers: the path of the list of layers, below the model (`"model.layers"`).
            attention: the module below a layer whose output is what attention adds; several if theirs are added up.
            mixer: likewise for what mixes positions without being attention.
            mlp: likewise for the feed-forward part.

        Raises:
            AbsentNameError: it is not so; nothing is changed.
        """
        given = Corrections.of(layers, attention=attention, mixer=mixer, mlp=mlp)
        self.dispatch()
        before = self.__dict__.get("_corrections")
        self.__dict__["_corrections"] = given
        try:
            return self.standard
        except AbsentNameError:
            self.__dict__["_corrections"] = before
            raise

    # -- running -----------------------------------------------------------------------------------------------------

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        return self._forward if method is None else super()._target(method)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        generation.refuse_in_forward(self._module, kwargs)
        mask: Any = kwargs.get("attention_mask")
        padded = mask is not None and mask.dim() == 2 and not bool(_all(mask))
        if padded:
            if not isinstance(mask, FakeTensor):
                padding.refuse_together(self._module, mask, generates=False)
            if (
                "position_ids" not in kwargs
                and padding.takes(self._module, "position_ids")
                and padding.takes_padding(self._module)
                and not padding.counts_itself(self._module)
            ):
                kwargs["position_ids"] = padding.positions(mask)
        labels = kwargs.get("labels")
        if padded and labels is not None:
            kwargs["labels"] = self._targets(labels, mask)
        return self._module(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        mask: Any = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and not isinstance(mask, FakeTensor):
            padding.refuse_together(self._module, mask, generates=True)
        padding.refuse_starts(kwargs.get("decoder_attention_mask"))
        return super()._generate(*args, **kwargs)


def _all(mask: torch.Tensor) -> Any:
    """Say whether a mask hides nothing. Fake tensors have no numbers to ask: there, say that it may hide some."""
    return False if isinstance(mask, FakeTensor) else mask.all()
