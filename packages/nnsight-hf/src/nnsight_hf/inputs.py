"""What a user gives as text, turned into what a model takes: token ids and a mask, padded on the left.

A batch is padded to its longest row, and positions are derived from the mask: models that count them over the padding
predict garbage for the shorter rows, and a row in a batch must give what it gives alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: Names under which an input can be given by keyword.
INPUT_NAMES = ("input_ids", "inputs_embeds")

#: What padding is filled with, for tensors that have one entry for each token.
_FILL = {"labels": -100}


def encode(tokenizer: Any, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn one input into keyword arguments of the model.

    Args:
        tokenizer: the tokenizer; None is allowed where the input holds token ids already.
        value: a string, a list of strings, token ids (list, ragged lists, tensor, array), or a tokenizer's output.
        options: options for the tokenizer.

    Raises:
        TypeError: the value is none of these.
        ValueError: it is empty.
    """
    if isinstance(value, Mapping) or hasattr(value, "input_ids"):
        data = dict(value) if isinstance(value, Mapping) else dict(value.data)
        if not any(name in data for name in INPUT_NAMES):
            raise ValueError(f"an input given as a dict holds `input_ids` or `inputs_embeds`; this one holds {list(data)}")
        return complete(data)
    if isinstance(value, str) or _is_texts(value):
        texts = [value] if isinstance(value, str) else list(value)
        if tokenizer is None:
            raise ValueError("this model has no tokenizer, so it takes token ids and no text: pass `tokenizer=` with the model")
        if not texts:
            raise ValueError("the list of prompts is empty")
        encoded = tokenizer(texts, return_tensors="pt", padding=True, **options)
        if encoded["input_ids"].shape[-1] == 0:
            raise ValueError("the prompt is empty: it has no token, so there is nothing for the model to read")
        return complete(dict(encoded))
    return complete({"input_ids": value}, pad=0 if tokenizer is None else (tokenizer.pad_token_id or 0))


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def complete(data: dict[str, Any], pad: int = 0) -> dict[str, Any]:
    """Make tensors of the token ids, with a row dimension, and add the mask if it is missing."""
    data = {name: value for name, value in data.items() if value is not None and name != "token_type_ids" or name == "labels"}
    mask = data.get("attention_mask")
    if "input_ids" in data:
        ids, derived = _ids(data["input_ids"], pad)
        data["input_ids"] = ids
        shape: tuple[int, ...] = tuple(ids.shape)
    else:
        embeds = data["inputs_embeds"]
        if embeds.dim() == 2:
            embeds = data["inputs_embeds"] = embeds[None]
        shape, derived = tuple(embeds.shape[:2]), None
    if mask is None:
        mask = derived if derived is not None else torch.ones(shape, dtype=torch.long)
    mask = torch.as_tensor(mask)
    data["attention_mask"] = mask[None] if mask.dim() == 1 else mask
    return data


def _ids(value: Any, pad: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return token ids [rows, positions], and their mask if rows had to be padded."""
    if isinstance(value, torch.Tensor):
        ids = value
    elif isinstance(value, Sequence) and value and all(isinstance(row, (Sequence, torch.Tensor)) for row in value):
        rows = [torch.as_tensor(row, dtype=torch.long) for row in value]
        length = max(len(row) for row in rows)
        ids = torch.stack([torch.nn.functional.pad(row, (length - len(row), 0), value=pad) for row in rows])
        mask = torch.stack([torch.nn.functional.pad(torch.ones_like(r), (length - len(r), 0)) for r in rows])
        _check_ids(ids)
        return ids, mask
    else:
        try:
            ids = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"an input is a string, a list of strings, token ids or a tokenizer's output, not {type(value).__name__}"
            ) from None
    ids = ids[None] if ids.dim() == 1 else ids
    _check_ids(ids)
    return ids, None


def _check_ids(ids: torch.Tensor) -> None:
    if ids.numel() == 0:
        raise ValueError("the input is empty: it has no token, so there is nothing for the model to read")
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"token ids are whole numbers [rows, positions], not {ids.dtype} of shape {tuple(ids.shape)}")


def pad_together(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    """Put several inputs into one batch, padded on the left to the longest."""
    length = max(row["attention_mask"].shape[1] for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    batch: dict[str, Any] = {}
    for name in names:
        missing = [number for number, row in enumerate(rows) if name not in row]
        if missing:
            raise ValueError(
                f"invoke {missing[0]} has no `{name}` and another invoke has one, so they cannot share one forward: give it "
                "to each of them, or trace them separately"
            )
        values = [row[name] for row in rows]
        if name in ("input_ids", "attention_mask", "inputs_embeds", "labels", "position_ids"):
            fill = pad if name == "input_ids" else _FILL.get(name, 0)
            batch[name] = torch.cat([_pad_left(value, length, fill) for value in values])
        elif all(isinstance(value, torch.Tensor) and value.dim() for value in values):
            batch[name] = torch.cat(values)
        elif all(value is values[0] or value == values[0] for value in values):
            batch[name] = values[0]
        else:
            raise ValueError(f"the invokes differ in `{name}` ({values}), and one forward can take one value only")
    return batch


def _pad_left(tensor: torch.Tensor, length: int, fill: float) -> torch.Tensor:
    missing = length - tensor.shape[1]
    if not missing:
        return tensor
    widths = (missing, 0) if tensor.dim() == 2 else (0, 0) * (tensor.dim() - 2) + (missing, 0)
    return torch.nn.functional.pad(tensor, widths, value=fill)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the position of every token, counted over real tokens: [rows, positions]."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def takes(module: torch.nn.Module, name: str) -> bool:
    """Say whether a module's forward has a parameter of this name."""
    return name in inspect.signature(type(module).forward).parameters
