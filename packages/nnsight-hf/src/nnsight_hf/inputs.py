"""Token ids turned into what a model takes: tensors and a mask, padded to one length.

A batch is padded to its longest row. Padding is done here and not by the tokenizer, so it needs no token of its own, and
a tokenizer that pads on the other side does no harm. On which side, and what follows for positions, is `padding.py`; how
text becomes ids is `text.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight_hf.padding import pad as fill_up

#: Names under which an input can be given by keyword.
INPUT_NAMES = ("input_ids", "inputs_embeds")

#: Arguments with one entry for each token [rows, positions], and what they hold where there is padding.
PER_TOKEN = {"input_ids": 0, "attention_mask": 0, "labels": -100, "position_ids": 0, "token_type_ids": 0}

#: The same for what an encoder-decoder's decoder gets. It is padded on the right, where nothing that it reads comes after.
FOR_DECODER = {"decoder_input_ids": 0, "decoder_attention_mask": 0, "decoder_position_ids": 0}

#: Those of them that hold token ids.
_IDS = ("input_ids", "decoder_input_ids")


def complete(
    given: Mapping[str, Any], pad: int = 0, side: str = "left", decodes: bool = False, at_least: int = 0
) -> dict[str, Any]:
    """Make tensors of the arguments that have an entry for each token, with a row dimension, and add a missing mask.

    Args:
        given: keyword arguments with `input_ids` or `inputs_embeds`; those that are None are left out.
        pad: what to fill shorter rows with.
        side: where.
        decodes: whether there is a decoder beside the encoder, whose labels they are.
        at_least: how long rows of ids must be.
    """
    data = {name: value for name, value in given.items() if value is not None}
    masks: dict[str, torch.Tensor | None] = {}
    for name, fill in {**PER_TOKEN, **FOR_DECODER}.items():
        if name in data:
            where = "right" if name in FOR_DECODER or (decodes and name == "labels") else side
            length = at_least if name == "input_ids" else 0
            data[name], masks[name] = _table(data[name], pad if name in _IDS else fill, name, where, length)
    for name in (*INPUT_NAMES, "decoder_inputs_embeds"):
        if name.endswith("embeds") and name in data:
            data[name] = _embeddings(data[name], name)
    if "input_ids" in data:
        _check_ids(data["input_ids"])
        shape = tuple(data["input_ids"].shape)
    else:
        shape = tuple(data["inputs_embeds"].shape[:2])
    if "attention_mask" not in data:
        mask = masks.get("input_ids")
        data["attention_mask"] = torch.ones(shape, dtype=torch.long) if mask is None else mask
    starts = masks.get("decoder_input_ids")
    if starts is not None and not bool(starts.all()):
        data.setdefault("decoder_attention_mask", starts)
    _check_rows(data, shape[0])
    return data


def _embeddings(value: Any, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() not in (2, 3):
        raise TypeError(f"`{name}` is a floating-point tensor [rows, positions, width], and this is {_short(value)}")
    return value[None] if value.dim() == 2 else value


def _check_rows(data: Mapping[str, Any], rows: int) -> None:
    for name in (*PER_TOKEN, *FOR_DECODER):
        if name in data and data[name].dim() == 2 and data[name].shape[0] not in (1, rows):
            raise ValueError(f"the input has {rows} rows, and `{name}` has {data[name].shape[0]}")


def _table(value: Any, fill: int, name: str, side: str, at_least: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what was given for each token as [rows, positions], and a mask if rows had to be padded."""
    mask = None
    if not isinstance(value, torch.Tensor):
        try:
            if _is_rows(value):
                rows = [torch.as_tensor(row) for row in value]
                length = max(at_least, *(len(row) for row in rows))
                if len(rows) == 1 and length == len(rows[0]):
                    return rows[0][None], None  # what most invokes give
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
    rows: Sequence[Mapping[str, Any]],
    pad: int,
    side: str = "left",
    mixes: bool = False,
    decodes: bool = False,
) -> dict[str, Any]:
    """Put several inputs into one batch, padded to the longest.

    Args:
        rows: the inputs.
        pad: what to fill shorter rows with.
        side: where.
        mixes: whether an input may lack what another says of each token: of its tokens, it is 0.
        decodes: whether there is a decoder beside the encoder, whose labels they are.
    """
    rows = [*rows]
    if decodes:
        decoded = _for_decoder(rows, pad)
        kept = [{name: value for name, value in row.items() if name not in decoded} for row in rows]
        return {**pad_together(kept, pad, side, mixes), **decoded}
    length = max(row["attention_mask"].shape[1] for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    batch: dict[str, Any] = {}
    for name in names:
        missing = [number for number, row in enumerate(rows) if name not in row]
        if missing and all(_counts_tokens(row, name) for row in rows if name in row) and mixes:
            # Which tokens stand for images: in an input without any, none do.
            rows = [{name: torch.zeros_like(row["attention_mask"]), **row} for row in rows]
        else:
            _refuse_missing(rows, name)
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


def _for_decoder(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    """Put together what the decoder gets."""
    fills = {**FOR_DECODER, "decoder_input_ids": pad, "decoder_inputs_embeds": 0, "labels": PER_TOKEN["labels"]}
    held = [name for name in fills if any(name in row for row in rows)]
    batch: dict[str, Any] = {}
    for name in held:
        if name == "decoder_attention_mask":
            continue
        _refuse_missing(rows, name)
        length = max(row[name].shape[1] for row in rows)
        batch[name] = torch.cat([fill_up(row[name], length, fills[name], "right") for row in rows])
    given = next((name for name in ("decoder_input_ids", "decoder_inputs_embeds") if name in batch), None)
    if given is not None:
        length = batch[given].shape[1]
        masks = [row.get("decoder_attention_mask", torch.ones(row[given].shape[:2], dtype=torch.long)) for row in rows]
        mask = torch.cat([fill_up(mask, length, 0, "right") for mask in masks])
        if "decoder_attention_mask" in held or not bool(mask.all()):
            batch["decoder_attention_mask"] = mask
    return batch


def _refuse_missing(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    missing = [number for number, row in enumerate(rows) if name not in row]
    if missing:
        raise ValueError(
            f"the input of invoke {missing[0]} has no `{name}` and another invoke's has, so they cannot share one "
            "forward: give it to each of them, or to the trace if it is an option, or trace them separately"
        )


def _counts_tokens(row: Mapping[str, Any], name: str) -> bool:
    """Say whether an argument has an entry for each token [rows, positions, ...]."""
    value = row[name]
    return isinstance(value, torch.Tensor) and value.shape[:2] == row["attention_mask"].shape


def targets(labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return labels without those that would be predicted from padding: a row alone has nothing before its first token."""
    after_padding = torch.nn.functional.pad(mask[:, :-1] == 0, (1, 0), value=False)
    return labels.masked_fill(after_padding, PER_TOKEN["labels"])
