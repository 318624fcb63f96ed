"""`VisionLanguageModel`: models that read text with images in it.

A language model whose inputs go through a processor, and whose batch holds images beside rows. What users give as images
is `images.py`, whose they are in a batch `shares.py`, how they lie in the values of modules `sights.py`, and what single
families need or cannot do `families.py`; everything else is as in `language.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

from nnsight import RowsError
from nnsight.plugin import Prepared
from nnsight_hf import fitting, images, loading, text
from nnsight_hf.images import in_messages
from nnsight_hf.inputs import PER_TOKEN
from nnsight_hf.language import LanguageModel
from nnsight_hf.rows import Facts, ProbedLayout
from nnsight_hf.vision import families, shares, sights
from nnsight_hf.vision.sights import ImagesLayout, Sights


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

    _mixes = True

    # -- inputs ------------------------------------------------------------------------------------------------------

    def _prepare_input(self, *given: Any, images: Any = None, **kwargs: Any) -> Prepared:
        if "videos" in kwargs:
            raise TypeError(
                "`videos=` is not taken here, since how frames are chosen is the processor's business: call it by hand, and "
                "pass what it gives: `model.trace(dict(model.processor(text=[...], videos=[...], return_tensors='pt')))`"
            )
        if given and text.is_chat(given[0]) and images is None:
            held = in_messages(given[0])
            images = held if any(held) or self.processor is not None else None
        if images is None or not given or isinstance(given[0], Mapping):
            if images is not None:
                raise TypeError(
                    "`images=` goes with text: an input of tokens holds what a processor made of its images "
                    "(`pixel_values` and more), as `model.processor(images=..., text=..., return_tensors='pt')` gives it"
                )
            if given and self.processor is not None:
                self._refuse_empty_places(given[0])
            prepared = super()._prepare_input(*given, **kwargs)
        else:
            prepared = super()._prepare_input(self._processed(given, images, kwargs), **kwargs)
        families.check(self._module, prepared[1])
        return prepared

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
        made = [self._row(text, row, options) for text, row in zip(texts, rows)]
        if len(made) == 1:
            return made[0]
        families.refuse_together(self._module, made)
        return self._together(made)

    def _row(self, prompt: str, pictures: list[Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model takes of one prompt with its images."""
        if not pictures:
            self._refuse_empty_places(prompt)
            _, data, _ = super()._prepare_input(prompt, **options)
            return data
        places = prompt.count(mark) if (mark := self._mark("image_token")) else 0
        if places and places != len(pictures):
            raise ValueError(
                f"the prompt has {places} places for images ({mark!r}) and {len(pictures)} images were given: give one for "
                "each"
            )
        # In a list of their own where a processor asks how many images are one prompt's.
        nested = families.kind(self._module) == "llava_onevision"
        data = dict(
            self.processor(images=[pictures] if nested else pictures, text=[prompt], return_tensors="pt", **options)
        )
        labels = data.get("labels")
        if labels is not None and not bool((labels != PER_TOKEN["labels"]).any()):
            del data["labels"]  # of a prompt without anything to predict
        if self._image_token is not None and not bool((data["input_ids"] == self._image_token).any()):
            raise ValueError(
                f"{len(pictures)} images were given and the prompt has no place for them: write {mark!r} once for each, "
                "where it is to be read"
            )
        return data

    @property
    def _image_token(self) -> int | None:
        """The token that holds a place for a part of an image."""
        known = getattr(self.config, "image_token_id", getattr(self.config, "image_token_index", None))
        return known if isinstance(known, int) else None

    def _mark(self, name: str) -> str | None:
        """Return a placeholder as text."""
        mark = getattr(self.processor, name, None)
        return getattr(mark, "content", mark)

    def _refuse_empty_places(self, given: Any) -> None:
        """Raise if text has a place for an image and is given without one."""
        texts = [given] if isinstance(given, str) else given if isinstance(given, (list, tuple)) else []
        for name in ("image_token", "video_token"):
            mark = self._mark(name)
            found = next((text for text in texts if mark and isinstance(text, str) and mark in text), None)
            if found is not None:
                how = "`images=`" if name == "image_token" else "what the processor makes of the video"
                raise ValueError(
                    f"the prompt {found!r} has {found.count(str(mark))} places for {name.split('_')[0]}s ({mark!r}) and "
                    f"nothing was given for them: pass {how}"
                )

    def _together(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        made = [dict(row) for row in rows]
        wide = [row["cross_attention_mask"] for row in made if "cross_attention_mask" in row]
        for row in made if wide else ():
            blank = wide[0].new_zeros((*row["attention_mask"].shape, *wide[0].shape[2:]))
            row.setdefault("cross_attention_mask", blank)
        if wide:
            for row, mask in zip(made, shares.widened([row["cross_attention_mask"] for row in made], 2)):
                row["cross_attention_mask"] = mask
        words = [{name: value for name, value in row.items() if name not in shares.APART} for row in made]
        return {**super()._together(words), **shares.join(made)}

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(prepared) > 1:
            families.refuse_together(self._module, [data for _, data, _ in prepared])
        args, data = super()._batch(prepared)
        if len(prepared) > 1 and shares.has_pixels(data):
            shares.note(data, shares.count([(kwargs, rows) for _, kwargs, rows in prepared], self._image_token))
        return args, data

    # -- rows and images ---------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        return {} if families.needs(self._module) else super()._facts()

    def _laid(self, total: int, kwargs: Mapping[str, Any], method: str | None) -> ProbedLayout:
        mine = shares.noted(kwargs)
        if mine is None:
            return super()._laid(total, kwargs, method)
        facts, seen = self._facts(), self._sights(mine, kwargs)
        alone = [
            None if mine.alike or not shares.has_pixels(data) else self._alone(data, mine.extents(number), seen)
            for number, data in enumerate(mine.inputs)
        ]
        root = self._path if method is None else None
        return ImagesLayout(mine, seen, alone, root, total, self._multiples(kwargs, method), facts, self._beyond)

    def _sights(self, mine: shares.Shares, kwargs: Mapping[str, Any]) -> Sights:
        """How images lie in the values of modules, found out when a batch first has some of this shape."""
        one = shares.like(mine.inputs[mine.first], kwargs)
        shapes = {name: tuple(one[name].shape[1:]) for name in shares.NAMES if isinstance(one.get(name), torch.Tensor)}

        def find() -> Sights:
            return sights.beside(self._tried(mine, one), self._facts())

        return self._found(f"images {shapes} {mine.even}", find)

    def _tried(self, mine: shares.Shares, one: Mapping[str, Any]) -> Sights:
        model, text = self._whole(), _TEXT if families.mixes(self._module) else None
        try:
            return sights.find(model, self._together, one, mine.units, text)
        except Exception as error:  # of the model's own code: it may take no text beside images
            if text is None:
                raise
            if not mine.even:
                raise RowsError(
                    f"{type(self._module).__name__} failed on an image beside text alone ({type(error).__name__}: {error}), "
                    "so it cannot be found out which of its values are whose. Trace inputs with one number of images, and "
                    "of one extent, together, and others in runs of their own."
                ) from error
        return sights.find(model, self._together, one, mine.units, None)

    def _alone(self, data: Mapping[str, Any], extents: tuple[Any, ...], seen: Sights) -> sights.Alone:
        """What an input with images of these extents has alone in the modules that see them."""
        return self._found(f"extents {extents}", lambda: sights.alone(self._whole(), data, seen, self._facts()))


#: Text that stands beside images while it is found out what counts which.
_TEXT = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
