"""`VisionLanguageModel`: models that read text with images in it.

A language model whose inputs go through a processor, and whose batch holds images beside rows. What images are and whose
they are is `images.py`; everything else is as in `language.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

from nnsight.plugin import Prepared, Rows, put_together
from nnsight_hf import fitting, images, loading, text
from nnsight_hf.images import in_messages
from nnsight_hf.language import LanguageModel
from nnsight_hf.rows import Facts, Pattern, ProbedLayout, compare


class VisionLanguageModel(LanguageModel):
    """A language model that reads images too, with its processor.

    Text alone is given as to a `LanguageModel`. Images are PIL images, paths or arrays; the prompt holds the model's
    placeholder once for each. In a conversation they may stand in the messages: `{"type": "image", "image": ...}`.

    Args:
        model: a hub id, a local folder, a configuration (for new weights), or a loaded module.
        processor: a processor, if not the model's own. A loaded module comes without one unless it is given.
        processor_kwargs: options for loading the processor.
        kwargs: as for `LanguageModel`.

    Example::

        model = VisionLanguageModel("llava-hf/llava-interleave-qwen-0.5b-hf")
        with model.trace("<image>\\nDescribe this image", images=[image]):
            seen = model.model.multi_modal_projector.output
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PretrainedConfig | torch.nn.Module,
        *,
        processor: Any = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, (str, os.PathLike)) and kwargs.get("automodel") is None:
            # Before the processor is looked for, which a model of another kind may not have.
            where = loading.locate(model)
            self._choose(kwargs.get("config") or AutoConfig.from_pretrained(where, **loading.hub_options(kwargs)))
        if processor is None and isinstance(model, (str, os.PathLike)):
            options = {**loading.hub_options(kwargs), **(processor_kwargs or {})}
            processor = AutoProcessor.from_pretrained(loading.locate(model), **options)
        if tokenizer is None:
            tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is not None:
            loading.let_pad(tokenizer)
        super().__init__(model, tokenizer=tokenizer, **kwargs)
        self.__dict__["processor"] = processor

    @staticmethod
    def _choose(config: PretrainedConfig) -> Any:
        fitting.check(config, "AutoModelForImageTextToText", "VisionLanguageModel")
        return AutoModelForImageTextToText

    _apart = images.NAMES

    # -- inputs ------------------------------------------------------------------------------------------------------

    def _prepare_input(self, *given: Any, images: Any = None, **kwargs: Any) -> Prepared:
        if given and text.is_chat(given[0]) and images is None:
            held = in_messages(given[0])
            images = held if any(held) or self.processor is not None else None
        if images is None or not given or isinstance(given[0], Mapping):
            args, data, rows = super()._prepare_input(*given, **kwargs)
        else:
            args, data, rows = super()._prepare_input(self._processed(given, images, kwargs), **kwargs)
        return args, data, rows

    def _processed(self, given: tuple[Any, ...], pictures: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.processor is None:
            raise ValueError("this model has no processor, so it takes no images: pass `processor=` with the model")
        options = text.take_options(kwargs)
        if text.is_chat(given[0]):
            speaks = self.processor if getattr(self.processor, "chat_template", None) else self.tokenizer
            texts = text.render(speaks, given[0], options)
            begin = getattr(self.tokenizer, "bos_token", None)
            if begin and texts[0].startswith(begin):
                options.setdefault("add_special_tokens", False)  # the template has written it
        else:
            texts = [given[0]] if isinstance(given[0], str) else list(given[0])
        if len(given) > 1 or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                "with `images=`, the input is a string, a list of strings or a conversation, with a placeholder for each "
                "image"
            )
        rows = images.nested(pictures, len(texts))
        # One at a time and padded here: the processor would pad on whichever side its tokenizer was saved with.
        made = [
            dict(self.processor(images=row or None, text=[text], return_tensors="pt", **options))
            for text, row in zip(texts, rows)
        ]
        return made[0] if len(made) == 1 else self._together(made)

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, data = super()._batch(prepared)
        pixels = data.get("pixel_values")
        if pixels is not None:
            setattr(pixels, images.SHARES, images.count([(kwargs, rows) for _, kwargs, rows in prepared]))
        return args, data

    def _laid(self, total: int, multiples: Sequence[int], kwargs: Mapping[str, Any]) -> ProbedLayout:
        shares = getattr(kwargs.get("pixel_values"), images.SHARES, None)
        if shares is None:
            return super()._laid(total, multiples, kwargs)
        return ImagesLayout(shares, self._pictured(kwargs, shares), total, multiples, self._facts(), self._beyond)

    def _pictured(self, kwargs: Mapping[str, Any], shares: images.Shares) -> Facts:
        """How images lie in the values of modules that see nothing else, found out when a batch first has any."""

        def find() -> Facts:
            one = images.first(kwargs, shares)
            seen = compare(self, [self._together([one] * number) for number in (3, 5, 4)])
            text = self._facts()
            return {path: patterns for path, patterns in seen.items() if path not in text}

        return self._found("images", find)


class ImagesLayout(ProbedLayout):
    """Rows as in any language model, and where a module sees images only, the images of an invoke.

    Args:
        shares: which images are whose.
        pictured: how images lie in the values of the modules that see nothing else.
        others: as for `ProbedLayout`.
    """

    def __init__(self, shares: images.Shares, pictured: Facts, *others: Any) -> None:
        super().__init__(*others)
        self._shares = shares
        self._pictured = pictured

    def take(self, value: torch.Tensor, rows: Rows, path: str) -> torch.Tensor | None:
        """Return the rows, or the images, of one invoke as a view; None for a value without any."""
        patterns = self._pictured.get(path)
        if patterns is None:
            return super().take(value, rows, path)
        dim = self._dimension(value, patterns)
        part = None if dim is None else self._shares.part(rows, value.shape[dim])
        return None if dim is None or part is None else value.narrow(dim, *part)

    def join(self, value: torch.Tensor, pieces: Mapping[Rows, torch.Tensor], path: str) -> torch.Tensor:
        """Return the value with the pieces put where the images of their invokes lie."""
        patterns = self._pictured.get(path)
        if patterns is None:
            return super().join(value, pieces, path)
        dim = self._dimension(value, patterns)
        assert dim is not None, "only values that are divided have pieces"
        laid = ((self._shares.part(rows, value.shape[dim]), piece) for rows, piece in pieces.items())
        return put_together(value, ((part, piece) for part, piece in laid if part is not None), dim)

    def _dimension(self, value: torch.Tensor, patterns: Sequence[Pattern]) -> int | None:
        fitting = {pattern.rows for pattern in patterns if pattern.fits(value.shape)}
        return fitting.pop() if len(fitting) == 1 and not isinstance(value, torch.nn.Parameter) else None
