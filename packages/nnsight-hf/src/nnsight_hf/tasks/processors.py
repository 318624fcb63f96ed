"""What turns text, images and sound into tensors: a tokenizer, an image processor, a feature extractor.

Each is loaded by transformers' Auto class when it is first asked for, so a checkpoint need have only those that its task
uses. What comes out is one row for each input, not padded; which of them reads what is `reading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from nnsight_hf import images, loading
from nnsight_hf.tasks import sound

#: The parts, and the Auto classes that load them.
AUTO = {
    "tokenizer": "AutoTokenizer",
    "image_processor": "AutoImageProcessor",
    "video_processor": "AutoVideoProcessor",
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
        if not all(isinstance(one, str) or options.get("is_split_into_words") for one in texts):
            raise TypeError(f"a text is a string, and among these is something else: {texts}")
        pairs = [pair] if pair is None or isinstance(pair, str) else list(pair)
        if not texts or len(pairs) not in (1, len(texts)):
            raise ValueError(f"{len(texts)} texts were given with {len(pairs)} second ones: give one for each")
        pairs = pairs * len(texts) if len(pairs) == 1 else pairs
        rows = [dict(tokenizer(a, b, return_tensors="pt", **options)) for a, b in zip(texts, pairs)]
        for one, row in zip(texts, rows):
            if not row["input_ids"].numel():
                raise ValueError(
                    f"the text {one!r} is empty: it has no token, so there is nothing for the model to read"
                )
        return rows

    def pictures(self, pictures: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the arguments for each image: one row each."""
        process = self.need("image_processor")
        return [dict(process(images.opened(one), return_tensors="pt")) for one in pictures]

    def together(self, pictures: Sequence[Any], part: str = "image_processor") -> dict[str, Any]:
        """Return the arguments for images that make one row: a pair to match, the frames of a video."""
        return dict(self.need(part)([images.opened(one) for one in pictures], return_tensors="pt"))

    def sound(self, sounds: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the arguments for each sound: one row each."""
        extract = self.need("feature_extractor")
        rate = extract.sampling_rate
        return [
            dict(extract(sound.waveform(one, rate), sampling_rate=rate, return_tensors="pt", **_masked(extract)))
            for one in sounds
        ]

    def filler(self, module: Any) -> int:
        """Return the token that shorter rows are filled with."""
        own = getattr(getattr(module, "config", None), "pad_token_id", None)
        token = own if isinstance(own, int) else getattr(self.get("tokenizer"), "pad_token_id", None)
        return token if isinstance(token, int) else 0

    def silence(self) -> float:
        """Return what shorter sounds are filled with."""
        return float(getattr(self.get("feature_extractor"), "padding_value", 0))


def _masked(extract: Any) -> dict[str, Any]:
    """Ask for a mask of waveforms, which a batch of several lengths needs; most spectrograms have one length."""
    return {"return_attention_mask": True} if extract.model_input_names[0] == "input_values" else {}
