"""What a user gives as text, turned into what a model takes: token ids and a mask, padded to one length.

A batch is padded to its longest row. Padding is done here and not by the tokenizer, so it needs no token of its own, and
a tokenizer that pads on the other side does no harm. On which side, and what follows for positions, is `padding.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from nnsight_hf.padding import pad as fill_up

#: Names under which an input can be given by keyword.
INPUT_NAMES = ("input_ids", "inputs_embeds")

#: Arguments with one entry for each token [rows, positions], and what they hold where there is padding.
PER_TOKEN = {"input_ids": 0, "attention_mask": 0, "labels": -100, "position_ids": 0, "token_type_ids": 0}


def tokenizer_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of an input's options those that are the tokenizer's.

    `max_length` is the tokenizer's beside `truncation=`, and the generation's elsewhere.
    """
    names = ["add_special_tokens", "truncation"]
    if options.get("truncation"):
        names.append("max_length")
    return {name: options.pop(name) for name in names if name in options}


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
    if isinstance(value, Mapping):
        if not any(name in value for name in INPUT_NAMES):
            raise ValueError(
                f"an input given as a dict holds `input_ids` or `inputs_embeds`; this one holds {list(value)}"
            )
        return dict(value)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return {"input_ids": value}
    if not texts:
        raise ValueError("the list of prompts is empty")
    if tokenizer is None:
        raise ValueError(
            "this model has no tokenizer, so it takes token ids and no text: pass `tokenizer=` with the model"
        )
    rows = tokenizer(list(texts), **options)["input_ids"]
    for text, row in zip(texts, rows):
        if not len(row):
            raise ValueError(
                f"the prompt {text!r} is empty: it has no token, so there is nothing for the model to read"
            )
    return {"input_ids": rows}


def complete(given: Mapping[str, Any], pad: int = 0, side: str = "left") -> dict[str, Any]:
    """Make tensors of the arguments that have an entry for each token, with a row dimension, and add a missing mask.

    Args:
        given: keyword arguments with `input_ids` or `inputs_embeds`; those that are None are left out.
        pad: what to fill shorter rows with.
        side: where.
    """
    data = {name: value for name, value in given.items() if value is not None}
    mask = None
    for name in PER_TOKEN:
        if name in data:
            data[name], real = _table(data[name], pad if name == "input_ids" else PER_TOKEN[name], name, side)
            mask = real if name == "input_ids" else mask
    if "input_ids" in data:
        _check_ids(data["input_ids"])
        shape = tuple(data["input_ids"].shape)
    else:
        embeds = data["inputs_embeds"]
        data["inputs_embeds"] = embeds[None] if embeds.dim() == 2 else embeds
        shape = tuple(data["inputs_embeds"].shape[:2])
    if "attention_mask" not in data:
        data["attention_mask"] = torch.ones(shape, dtype=torch.long) if mask is None else mask
    return data


def _table(value: Any, fill: int, name: str, side: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what was given for each token as [rows, positions], and a mask if rows had to be padded."""
    mask = None
    if not isinstance(value, torch.Tensor):
        try:
            if _is_rows(value):
                rows = [torch.as_tensor(row) for row in value]
                length = max(len(row) for row in rows)
                value = torch.stack([fill_up(row, length, fill, side, 0) for row in rows])
                mask = torch.stack([fill_up(torch.ones_like(row), length, 0, side, 0) for row in rows])
            else:
                value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            what = (
                "an input is a string, a list of strings, token ids or a tokenizer's output"
                if name == "input_ids"
                else f"`{name}` holds a number for each token"
            )
            raise TypeError(f"{what}, and this is a {type(value).__name__}: {_short(value)}") from None
    return (value[None] if value.dim() == 1 else value), mask


def _is_rows(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        return False
    return all(hasattr(row, "__len__") and getattr(row, "ndim", 1) for row in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_ids(ids: torch.Tensor) -> None:
    if ids.numel() == 0:
        raise ValueError("the input is empty: it has no token, so there is nothing for the model to read")
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"token ids are whole numbers [rows, positions], not {ids.dtype} of shape {tuple(ids.shape)}")


def pad_together(
    rows: Sequence[Mapping[str, Any]], pad: int, side: str = "left", optional: Collection[str] = ()
) -> dict[str, Any]:
    """Put several inputs into one batch, padded to the longest.

    Args:
        rows: the inputs.
        pad: what to fill shorter rows with.
        side: where.
        optional: arguments with one entry for something else than a row; not every input has them.
    """
    length = max(row["attention_mask"].shape[1] for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    batch: dict[str, Any] = {}
    for name in names:
        if name in optional:
            batch[name] = torch.cat([row[name] for row in rows if name in row])
            continue
        missing = [number for number, row in enumerate(rows) if name not in row]
        if missing and all(_counts_tokens(row, name) for row in rows if name in row) and optional:
            # Which tokens stand for images: in an input without any, none do.
            rows = [{name: torch.zeros_like(row["attention_mask"]), **row} for row in rows]
        elif missing:
            raise ValueError(
                f"the input of invoke {missing[0]} has no `{name}` and another invoke's has, so they cannot share one "
                "forward: give it to each of them, or to the trace if it is an option, or trace them separately"
            )
        values = [row[name] for row in rows]
        if name in PER_TOKEN or name == "inputs_embeds" or all(_counts_tokens(row, name) for row in rows):
            fill = pad if name == "input_ids" else PER_TOKEN.get(name, 0)
            batch[name] = torch.cat([fill_up(value, length, fill, side) for value in values])
        elif all(isinstance(value, torch.Tensor) and value.dim() for value in values):
            batch[name] = torch.cat(values)
        elif all(value is values[0] or value == values[0] for value in values):
            batch[name] = values[0]
        else:
            raise ValueError(f"the invokes differ in `{name}` ({values}), and one forward can take one value only")
    return batch


def _counts_tokens(row: Mapping[str, Any], name: str) -> bool:
    """Say whether an argument has an entry for each token [rows, positions, ...]."""
    value = row[name]
    return isinstance(value, torch.Tensor) and value.shape[:2] == row["attention_mask"].shape


def targets(labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return labels without those that would be predicted from padding: a row alone has nothing before its first token."""
    after_padding = torch.nn.functional.pad(mask[:, :-1] == 0, (1, 0), value=False)
    return labels.masked_fill(after_padding, PER_TOKEN["labels"])
