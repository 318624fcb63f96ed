"""What a pipeline is called with: the arguments of one invoke, how many rows they are, and several put together.

A pipeline takes its input by names that mean the same in all of them: texts and images are lists with an entry for each
row, embeddings and latents tensors with rows along dimension 0. Whatever else there is must be the same for all.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from PIL.Image import Image

from nnsight import RowsError
from nnsight_diffusers.source import guidance_of, plain_call

#: Arguments of which one is the input, of a pipeline that takes any of them; the rest is then said beside it.
_FIRST = ("prompt", "prompt_embeds", "class_labels")

#: What may be the input of another pipeline. The first that is given says how many rows there are.
_OTHERS = ("image", "video", "audio", "image_embeds", "latents", "batch_size")

#: Options of ours, beside the pipeline's own.
OURS = ("gradients", "progress", "seed")

_TEXTS = re.compile(r"(negative_)?prompts?(_\d)?|source_prompt")
_IMAGES = re.compile(r".*image|.*images|video|mask|class_labels")

#: How many images (videos, sounds) a pipeline makes of each row.
_SEVERAL = re.compile(r"num_\w+_per_prompt")


@functools.cache
def parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """Return what pipelines of a class are called with, by name."""
    found = dict(inspect.signature(plain_call(cls)).parameters)
    return {
        name: parameter
        for name, parameter in found.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def named(cls: type, given: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; one mapping may stand for several.

    Raises:
        TypeError: the pipeline takes no such argument, or gets one twice.
    """
    known = parameters(cls)
    whole = given[0] if len(given) == 1 else None
    if isinstance(whole, Mapping):
        given, options = (), {**whole, **options}
    if len(given) > len(known):
        raise TypeError(f"{cls.__name__} takes at most {len(known)} arguments, and was given {len(given)}")
    named = dict(zip(known, given))
    twice = sorted(set(named) & set(options))
    if twice:
        raise TypeError(f"{cls.__name__} was given `{twice[0]}` twice, by position and by name")
    named.update(options)
    check(cls, named)
    return named


def check(cls: type, names: Mapping[str, Any]) -> None:
    """Refuse what the pipeline does not take.

    Raises:
        TypeError: there is no such argument; the message names the nearest.
    """
    others = guidance_of(cls).others
    if others is None:
        return
    known = {*parameters(cls), *OURS, *others}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            raise TypeError(
                f"{cls.__name__} takes no argument `{name}`" + (f": did you mean `{near[0]}`?" if near else "")
            )


def is_input(cls: type, given: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Say whether these arguments hold an input."""
    return bool(given) or any(options.get(name) is not None for name in _inputs(cls))


def _inputs(cls: type) -> tuple[str, ...]:
    """Return the names of what is an input of a pipeline, and not an option of the call."""
    known = parameters(cls)
    found = tuple(name for name in _FIRST if name in known)
    return found or (*_OTHERS, *list(known)[:1])


def count(cls: type, arguments: Mapping[str, Any]) -> int:
    """Return how many rows an input has.

    Raises:
        ValueError: it is an empty list.
    """
    name = next((name for name in (*_inputs(cls), *_OTHERS) if arguments.get(name) is not None), None)
    if name is None:
        return 1
    value = arguments[name]
    if name == "batch_size":
        return int(value)
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        rows = 1 if _IMAGES.fullmatch(name) and value.ndim == 3 else value.shape[0]
    else:
        rows = len(value) if isinstance(value, (list, tuple)) else 1
    if not rows:
        raise ValueError(f"`{name}` is empty: give at least one")
    return int(rows)


def several(options: Mapping[str, Any], cls: type) -> int:
    """Return how many images (videos, sounds) a call makes of each row."""
    for name, parameter in parameters(cls).items():
        if _SEVERAL.fullmatch(name):
            value = options.get(name, parameter.default)
            return 1 if value in (None, inspect.Parameter.empty) else int(value)
    return 1


def join(cls: type, pipeline: Any, each: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Put the arguments of several invokes into one call.

    Args:
        cls: the pipeline's class.
        pipeline: the pipeline.
        each: of each invoke its arguments, but for those of its own (seed, generator, guidance), and its rows.

    Raises:
        RowsError: they cannot share a call; the message says which argument is in the way.
    """
    names = list(dict.fromkeys(name for arguments, _ in each for name in arguments))
    return {
        name: _joined(name, [_of(cls, pipeline, name, arguments, each) for arguments, _ in each], [n for _, n in each])
        for name in names
    }


def spread(options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return arguments in which texts and images are lists with an entry for each row, where one stood for all."""
    found = dict(options)
    for name, value in options.items():
        if value is not None and not isinstance(value, torch.Tensor):
            if _TEXTS.fullmatch(name):
                found[name] = _texts(name, value, rows)
            elif _IMAGES.fullmatch(name):
                found[name] = _images(name, value, rows)
    return found


def _of(cls: type, pipeline: Any, name: str, arguments: Mapping[str, Any], each: Sequence[Any]) -> Any:
    """Return an invoke's argument, or what stands for it where it gives none and another does."""
    if name in arguments:
        return arguments[name]
    parameter = parameters(cls).get(name)
    default = None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
    if not _TEXTS.fullmatch(name):
        return default
    if isinstance(default, str):
        return default
    # Without a negative prompt these do something else than with an empty one: no guidance, or zeros for its embedding.
    differs = "true_cfg_scale" in parameters(cls) or getattr(pipeline.config, "force_zeros_for_empty_prompt", False)
    if name.startswith("negative_prompt") and not differs:
        return ""
    raise RowsError(
        f"One invoke gives `{name}` and another does not, which {cls.__name__} cannot do in one call. Give it in all of "
        "them or in none, or run separate traces."
    )


def _joined(name: str, values: list[Any], counts: list[int]) -> Any:
    if name == "batch_size":
        return sum(counts)
    if _TEXTS.fullmatch(name):
        return [entry for value, rows in zip(values, counts) for entry in _texts(name, value, rows)]
    if all(isinstance(value, torch.Tensor) and value.dim() for value in values):
        return _concatenated(name, [_rowed(name, value, rows) for value, rows in zip(values, counts)])
    if _IMAGES.fullmatch(name) and any(value is not None for value in values):
        return [entry for value, rows in zip(values, counts) for entry in _images(name, value, rows)]
    if any(value is None for value in values) and any(isinstance(value, torch.Tensor) for value in values):
        raise RowsError(f"One invoke gives `{name}` and another does not. Give it in all of them, or in none.")
    first = values[0]
    if all(value is first or _equal(value, first) for value in values):
        return first
    raise RowsError(
        f"The invokes' `{name}` differ ({', '.join(map(_shown, values))}), and one call takes one for all. Pass the same in "
        "each invoke, or run separate traces."
    )


def _texts(name: str, value: Any, rows: int) -> list[Any]:
    if value is None:
        raise RowsError(
            f"One invoke gives `{name}` and another does not. Give all of them alike, as texts or as embeddings."
        )
    entries = [value] if isinstance(value, str) else list(value)
    if len(entries) == 1:
        return entries * rows
    if len(entries) != rows:
        raise RowsError(f"an invoke of {rows} rows gives {len(entries)} entries in `{name}`")
    return entries


def _images(name: str, value: Any, rows: int) -> list[Any]:
    if value is None:
        raise RowsError(f"One invoke gives `{name}` and another does not. Give it in all of them, or in none.")
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        entries = [value] if value.ndim == 3 else list(value)
    elif isinstance(value, (Image, str, int)):
        entries = [value]
    else:
        entries = list(value)
        if any(isinstance(entry, (list, tuple)) for entry in entries):
            raise RowsError(
                f"`{name}` is a list of lists, which belongs to several conditions at once; whose row is whose cannot be "
                "told. Run separate traces."
            )
    if len(entries) == 1:
        return entries * rows
    if len(entries) != rows:
        raise RowsError(f"an invoke of {rows} rows gives {len(entries)} entries in `{name}`")
    return entries


def _rowed(name: str, value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a tensor with entries for all rows along dimension 0."""
    if _IMAGES.fullmatch(name) and value.dim() == 3:
        value = value[None]
    if value.shape[0] % rows:
        if value.shape[0] == 1:
            return value.expand(rows, *value.shape[1:])
        raise RowsError(f"an invoke of {rows} rows gives {value.shape[0]} in `{name}`")
    return value


def _concatenated(name: str, values: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1:
        raise RowsError(
            f"The invokes' `{name}` have shapes {[tuple(value.shape) for value in values]}, which cannot be stacked along "
            "dimension 0. Bring them to one shape, or run separate traces."
        )
    return torch.cat(values)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (torch.Tensor, numpy.ndarray)) or isinstance(b, (torch.Tensor, numpy.ndarray)):
        return False
    return bool(a == b)


def _shown(value: Any) -> str:
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return f"{type(value).__name__} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
