"""What an input of each task is, and which of the model's processors reads it.

A bare value is read by what the model's forward is made for: text, an image, a sound. What needs several things comes as a
dict (`composite.py`). Here one input becomes rows of arguments; how rows are put together is `columns.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch

from nnsight_hf.images import is_image
from nnsight_hf.padding import takes
from nnsight_hf.tasks import columns, composite, sound
from nnsight_hf.tasks.processors import Processors

_TEXT = "a string, a list of strings, two strings that make a pair, or token ids"
_IMAGE = "an image (PIL, a path, or an array [height, width, colour]), or a list of them"
_LABELS = '"candidate_labels": [...], and if you like "hypothesis_template": "... {} ..."'

#: What an input of a task is, in words, where it is not what the forward's main argument tells.
SAYS = {
    "question-answering": '{"question": ..., "context": ...}',
    "zero-shot-classification": f'{{"text": ..., {_LABELS}}}',
    "zero-shot-image-classification": f'{{"image": ..., {_LABELS}}}',
    "zero-shot-audio-classification": f'{{"audio": ..., {_LABELS}}}',
    "zero-shot-object-detection": '{"image": ..., "candidate_labels": [...]}',
    "table-question-answering": '{"table": a dict of columns or a pandas frame, "query": ...}',
    "document-question-answering": '{"image": ..., "question": ..., "word_boxes": [(word, [x0, y0, x1, y1]), ...]}, with '
    "boxes from 0 to 1000 across the page",
    "visual-question-answering": '{"image": ..., "question": ...}',
    "video-classification": "the frames of a video: a list of images, or an array [frames, height, width, colour]",
    "keypoint-matching": "two images",
    "mask-generation": 'an image, or {"image": ..., "input_points": [objects][points][x, y], "input_labels": '
    '[objects][points], "input_boxes": [objects][x0, y0, x1, y1]}',
    "image-to-text": f'{_IMAGE}, or {{"image": ..., "text": how the text begins}}',
}

Row = dict[str, Any]


class Reader:
    """Reads the inputs of one model.

    Args:
        module: the model.
        task: its task; None if nobody knows.
        processors: its processors.

    Attributes:
        reads: the argument of the forward that holds the input.
        type: the type of the model, as its configuration names it.
    """

    def __init__(self, module: torch.nn.Module, task: str | None, processors: Processors) -> None:
        self.module = module
        self.task = task
        self.processors = processors
        self.reads = _main_input(module)
        self.type: str = getattr(getattr(module, "config", None), "model_type", "")

    def read(self, given: Sequence[Any], options: Mapping[str, Any]) -> list[Row]:
        """Return the arguments that an input makes: of each row if they are made here, or as they were given.

        Args:
            given: the input; two texts or images that make a pair.
            options: options for the tokenizer.

        Raises:
            TypeError: it is no input of this task; the message says what is.
            ValueError: it lacks something, or what reads it is not there.
        """
        first = given[0]
        if isinstance(first, Mapping) and len(given) == 1 and not self._is_named(first):
            return [dict(first)]
        rows = self._rows(given, options)
        if options and not any(name in row for row in rows for name in ("input_ids", "decoder_input_ids")):
            raise TypeError(f"`{next(iter(options))}=` belongs to the tokenizer, and this input has no text")
        return [{name: value for name, value in row.items() if self.takes(name)} for row in rows]

    def takes(self, name: str) -> bool:
        """Say whether the forward has an argument of this name. Processors make more, for who reads the results."""
        return takes(self.module, name)

    def _is_named(self, given: Mapping[str, Any]) -> bool:
        """Say whether a dict holds things by the names that pipelines have for them, and no tensors ready for the forward."""
        if self.reads in given or "inputs_embeds" in given or "inputs" in given:
            return False
        return "image" in given or not any(self.takes(name) for name in given)

    def wrong(self, given: Any) -> TypeError:
        """Return the error for what is no input of this model."""
        what = f"a dict with {sorted(map(str, given))}" if isinstance(given, Mapping) else _described(given)
        serves = f"serves {self.task!r} and " if self.task else ""
        return TypeError(
            f"{type(self.module).__name__} {serves}reads {self._says()}; or tensors by the names that its forward has. "
            f"This is {what}."
        )

    def _says(self) -> str:
        if self.task in SAYS:
            return SAYS[self.task]
        kinds = {**dict.fromkeys(columns.SIGHTS, _IMAGE), **dict.fromkeys(columns.SOUNDS, sound.SAYS)}
        return {**kinds, "input_ids": _TEXT}.get(self.reads, f"`{self.reads}`")

    def _rows(self, given: Sequence[Any], options: Mapping[str, Any]) -> list[Row]:
        first = given[0]
        if len(given) == 2 and self.task == "keypoint-matching":
            return self.matched(given)
        if len(given) == 2 and self.reads == "input_ids" and not isinstance(first, Mapping):
            return self.texts(first, given[1], options)
        if len(given) > 1:
            raise TypeError("a model takes one input (a list for several rows), or two texts that make a pair")
        if isinstance(first, Mapping):
            return composite.read(self, first, options)
        if self.task in ("video-classification", "keypoint-matching") and not _is_ready(first, 5):
            return self.videos(first) if self.task == "video-classification" else self.matched(first)
        if self.reads in columns.SIGHTS:
            return [{self.reads: first}] if _is_ready(first, 3 + (self.reads == "pixel_values")) else self.images(first)
        if self.reads in columns.SOUNDS:
            return [{self.reads: first}] if _is_ready(first, 2) else self.sounds(first)
        if self.reads == "input_ids":
            return self._texts_or_ids(first, options)
        raise self.wrong(first)

    # -- what is read ------------------------------------------------------------------------------------------------

    def _texts_or_ids(self, given: Any, options: Mapping[str, Any]) -> list[Row]:
        texts = [given] if isinstance(given, str) else given
        if isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts):
            return self.texts([texts] if options.get("is_split_into_words") else texts, None, options)
        if not isinstance(given, (list, tuple, numpy.ndarray, torch.Tensor)):
            raise self.wrong(given)
        try:
            ragged = isinstance(given, (list, tuple)) and given and all(numpy.ndim(row) == 1 for row in given)
            ids = [torch.as_tensor(row)[None] for row in given] if ragged else [torch.as_tensor(given)]
        except (TypeError, ValueError, RuntimeError):
            raise self.wrong(given) from None
        if any(row.is_floating_point() or row.dim() not in (1, 2) or not row.numel() for row in ids):
            raise self.wrong(given)
        ids = [row if row.dim() == 2 else row[None] for row in ids]
        return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]

    def texts(self, texts: Any, pairs: Any, options: Mapping[str, Any]) -> list[Row]:
        """Read texts, or pairs of texts."""
        if not self.takes("input_ids"):
            raise self.wrong(texts)
        options = dict(options)
        made = self.processors.text(texts, options.pop("text_pair", pairs), options)
        return [{name: value for name, value in row.items() if self.takes(name)} for row in made]

    def images(self, given: Any) -> list[Row]:
        """Read an image, or a list of them."""
        pictures = list(given) if isinstance(given, (list, tuple)) or _is_stack(given) else [given]
        if not pictures or not all(map(is_image, pictures)) or not any(map(self.takes, (*columns.SIGHTS, "image"))):
            raise self.wrong(given)
        return self.processors.pictures(pictures)

    def matched(self, given: Any) -> list[Row]:
        """Read two images that are compared with each other, or a list of such pairs."""
        pairs = given if isinstance(given, (list, tuple)) else []
        pairs = pairs if pairs and isinstance(pairs[0], (list, tuple)) else [pairs]
        if not all(len(pair) == 2 and all(map(is_image, pair)) for pair in pairs):
            raise self.wrong(given)
        return [self.processors.together(pair) for pair in pairs]

    def videos(self, given: Any) -> list[Row]:
        """Read the frames of a video, or a list of videos."""
        listed = isinstance(given, (list, tuple)) and given
        several = listed and (isinstance(given[0], (list, tuple)) or _is_stack(given[0]))
        films = given if several else [given]
        if not all(_is_stack(film) or (isinstance(film, (list, tuple)) and film) for film in films):
            raise self.wrong(given)
        if not all(is_image(frame) for film in films for frame in film):
            raise self.wrong(given)
        part = "video_processor" if self.reads == "pixel_values_videos" else "image_processor"
        return [self.processors.together(film, part) for film in films]

    def sounds(self, given: Any) -> list[Row]:
        """Read a sound, or a list of them."""
        if not isinstance(given, (str, bytes, Mapping, list, tuple)) and not hasattr(given, "__array__"):
            if not hasattr(given, "__fspath__"):
                raise self.wrong(given)
        if hasattr(given, "getbands") or not any(map(self.takes, columns.SOUNDS)):  # an image is an array too
            raise self.wrong(given)
        return self.processors.sound(sound.listed(given))

    # -- together ----------------------------------------------------------------------------------------------------

    def joined(self, rows: Sequence[Mapping[str, Any]]) -> Row:
        """Put several rows into one batch; see `columns.join`."""
        return columns.join(rows, self.module, self.fills(rows[0]))

    def fills(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return what shorter rows are filled with, by argument."""
        fills: dict[str, float] = {"labels": -100}
        if "input_ids" in row or "decoder_input_ids" in row:
            fills |= dict.fromkeys(("input_ids", "decoder_input_ids"), self.processors.filler(self.module))
        sounds = [name for name in columns.SOUNDS if name in row]
        return {**fills, **dict.fromkeys(sounds, self.processors.silence())} if sounds else fills


def _main_input(module: Any) -> str:
    name = str(getattr(module, "main_input_name", "input_ids"))
    if name == "inputs":  # of any kind: what stands for them in this class
        names = (*columns.SIGHTS, *columns.SOUNDS, "input_ids")
        return next((other for other in names if takes(module, other)), name)
    return name


def _is_ready(value: Any, dims: int) -> bool:
    """Say whether a value is a tensor that a processor has made."""
    return isinstance(value, torch.Tensor) and value.dim() >= dims and value.is_floating_point()


def _is_stack(value: Any) -> bool:
    """Say whether a value is an array of several images."""
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) == 4


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    text = repr(value) if shape is None else f"of shape {tuple(shape)}"
    return f"a {type(value).__name__}" + (f" {text}" if shape is not None else f": {text[:60]}")
