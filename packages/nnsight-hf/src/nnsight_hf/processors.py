"""What turns text, images and sound into tensors: a tokenizer, an image processor, a feature extractor.

Each is loaded by transformers' Auto class when it is first asked for, so a checkpoint need have only those that its task
uses. What comes out is padded and batched in `task.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy
import torch
import transformers

from nnsight_hf import images, loading

#: The parts, and the Auto classes that load them.
AUTO = {
    "tokenizer": "AutoTokenizer",
    "image_processor": "AutoImageProcessor",
    "feature_extractor": "AutoFeatureExtractor",
    "processor": "AutoProcessor",
}


class Processors:
    """The processors of one checkpoint.

    Args:
        where: what `from_pretrained` is given; None if there is nothing to load from.
        given: those that the user gave, by part.
        options: options for loading, by part.
    """

    def __init__(self, where: str | None, given: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> None:
        self._where = where
        self._options = options
        self._parts = {part: value for part, value in given.items() if value is not None}

    def get(self, part: str) -> Any:
        """Return a part, loaded if need be; None if there is nothing to load it from."""
        if part not in self._parts:
            whole = getattr(self._parts.get("processor"), part, None)
            if whole is None and self._where is not None:
                auto: Any = getattr(transformers, AUTO[part])
                whole = auto.from_pretrained(self._where, **self._options.get(part, {}))
                if part == "tokenizer":
                    loading.let_pad(whole)
            self._parts[part] = whole
        return self._parts[part]

    def need(self, part: str) -> Any:
        """Return a part.

        Raises:
            ValueError: there is none.
        """
        found = self.get(part)
        if found is None:
            raise ValueError(
                f"this model has no {part.replace('_', ' ')}, so it takes prepared tensors only: "
                f"pass `{part}=` with the model"
            )
        return found

    def text(self, text: Any, pair: Any, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the arguments for each text, or pair of texts: one row each, not padded."""
        tokenizer = self.need("tokenizer")
        texts = [text] if isinstance(text, str) else list(text)
        pairs = [pair] if pair is None or isinstance(pair, str) else list(pair)
        if not texts or len(pairs) not in (1, len(texts)):
            raise ValueError(f"{len(texts)} texts were given with {len(pairs)} second ones: give one for each")
        pairs = pairs * len(texts) if len(pairs) == 1 else pairs
        return [dict(tokenizer(a, b, return_tensors="pt", **options)) for a, b in zip(texts, pairs)]

    def pictures(self, pictures: Any) -> list[dict[str, Any]]:
        """Return the arguments for each image: one row each."""
        process = self.need("image_processor")
        several = isinstance(pictures, (list, tuple))
        return [dict(process(images.opened(one), return_tensors="pt")) for one in (pictures if several else [pictures])]

    def sound(self, sound: Any, rate: int | None) -> list[dict[str, Any]]:
        """Return the arguments for each waveform [samples]: one row each.

        Raises:
            TypeError: it is a path.
            ValueError: its sampling rate is not the one that the model was trained with.
        """
        extract = self.need("feature_extractor")
        if isinstance(sound, (str, os.PathLike)):
            raise TypeError(f"audio is given as an array of samples, not as a path: read {os.fspath(sound)!r} first")
        waves = list(sound) if isinstance(sound, (list, tuple)) and numpy.ndim(sound[0]) else [sound]
        rate = extract.sampling_rate if rate is None else rate
        if rate != extract.sampling_rate:
            raise ValueError(
                f"the audio has {rate} samples a second and this model takes {extract.sampling_rate}: resample it first"
            )
        return [
            dict(extract(torch.as_tensor(wave).numpy(), sampling_rate=rate, return_tensors="pt", **_masked(extract)))
            for wave in waves
        ]


def _masked(extract: Any) -> dict[str, Any]:
    """Ask for a mask of waveforms, which a batch of several lengths needs; spectrograms have one length."""
    return {"return_attention_mask": True} if extract.model_input_names[0] == "input_values" else {}
