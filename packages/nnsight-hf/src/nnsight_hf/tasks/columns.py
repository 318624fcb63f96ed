"""Several inputs of a task put into one batch, argument by argument, so that each gets what it gets alone.

Rows are padded on the right, where absolute positions, masks and the last token of a causal classifier are what they are
alone. Where a model cannot tell padding from input, inputs of different sizes are refused. Text that is continued is padded
by `inputs.py` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight import RowsError
from nnsight_hf.padding import pad, takes

#: Arguments that hold what a model reads, other than text.
SIGHTS = ("pixel_values", "pixel_values_videos", "flattened_patches")
SOUNDS = ("input_values", "input_features")

#: What hides padding of which argument.
_MASKS = {"pixel_values": "pixel_mask", "pixel_mask": "pixel_mask"}

#: Model types of text in which a row with padding does not get what it gets alone, whatever the mask says: convolutions
#: reach into the padding, or attention goes over landmarks that it shifts. Measured over the encoders of transformers 5.23.
_READ_PADDING = frozenset(
    {"convbert", "mobilebert", "nystromformer", "perceiver", "t5gemma", "t5gemma2", "xlnet", "yoso"}
)

#: Model types in which a mask of sound hides all that padding does, measured likewise. In others convolutions or
#: normalisations reach into it.
_HEAR_NO_PADDING = frozenset(
    {
        "canary",
        "hubert",
        "lasr_ctc",
        "parakeet_ctc",
        "seamless_m4t",
        "seamless_m4t_v2",
        "unispeech",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-bert",
        "wavlm",
    }
)

#: Model types in which a mask of pixels hides all that padding does. In others convolutions see its border.
_SEE_NO_PADDING = frozenset({"vilt"})


def join(rows: Sequence[Mapping[str, Any]], module: Any, fills: Mapping[str, float]) -> dict[str, Any]:
    """Put several inputs into one batch, padded on the right to the longest.

    Args:
        rows: the inputs, each as arguments of the model.
        module: the model.
        fills: what to fill shorter rows with, by argument; 0 for one that is not named.

    Raises:
        RowsError: they have other arguments, or sizes that this model cannot tell from padding.
    """
    if len(rows) == 1:
        return dict(rows[0])
    names = list(rows[0])
    if any(set(row) != set(names) for row in rows):
        raise RowsError(
            f"The inputs have other arguments ({' and '.join(str(sorted(row)) for row in rows)}), so they cannot "
            "share one forward: give the same to each, or trace them separately."
        )
    rows = _with_decoder_masks(rows, module)
    return {name: _column(name, [row[name] for row in rows], rows[0], module, fills) for name in rows[0]}


def _with_decoder_masks(rows: Sequence[Mapping[str, Any]], module: Any) -> Sequence[Mapping[str, Any]]:
    """Mask what a decoder begins with, where the rows begin with different lengths."""
    starts = [row.get("decoder_input_ids") for row in rows]
    lengths = {start.shape[-1] for start in starts if isinstance(start, torch.Tensor)}
    if len(lengths) < 2 or "decoder_attention_mask" in rows[0] or not takes(module, "decoder_attention_mask"):
        return rows
    return [{**row, "decoder_attention_mask": torch.ones_like(row["decoder_input_ids"])} for row in rows]


def _column(name: str, values: Sequence[Any], row: Mapping[str, Any], module: Any, fills: Mapping[str, float]) -> Any:
    if not all(isinstance(value, torch.Tensor) and value.dim() for value in values):
        if any(value is not values[0] and value != values[0] for value in values):
            raise RowsError(f"The inputs differ in `{name}` ({list(values)}), and one forward can take one value only.")
        return values[0]
    if any(value.dim() != values[0].dim() for value in values):
        raise RowsError(_unlike(name, values, module))
    sizes = [max(value.shape[dim] for value in values) for dim in range(1, values[0].dim())]
    if any(list(value.shape[1:]) != sizes for value in values):
        if not _hidden(name, row, module):
            raise RowsError(_unlike(name, values, module))
        fill = fills.get(name, 0)
        for dim, size in enumerate(sizes, 1):
            values = [pad(value, size, fill, "right", dim) for value in values]
    return torch.cat(list(values))


def _hidden(name: str, row: Mapping[str, Any], module: Any) -> bool:
    """Say whether padding of an argument is hidden from the model."""
    if name.startswith("decoder_"):
        return "decoder_attention_mask" in row
    if name == "labels":
        return True
    mask = _MASKS.get(name, "attention_mask")
    if mask not in row:
        return False
    config = getattr(module, "config", None)
    if mask == "pixel_mask":
        return getattr(config, "model_type", None) in _SEE_NO_PADDING
    kind = getattr(config, "model_type", None)
    if any(sound in row for sound in SOUNDS):
        # The normalisation over groups goes over all samples of a row, padding too.
        return kind in _HEAR_NO_PADDING and getattr(config, "feat_extract_norm", None) != "group"
    # TAPAS can average padding with the tokens that stand in no cell.
    return kind not in _READ_PADDING and not getattr(config, "average_logits_per_cell", False)


def _unlike(name: str, values: Sequence[torch.Tensor], module: Any) -> str:
    return (
        f"The inputs have `{name}` of the shapes {[tuple(value.shape) for value in values]}, and "
        f"{type(module).__name__} cannot tell padding from input: in one batch they would not get what they get alone. "
        "Trace each in a run of its own, or give inputs of one size."
    )


def longer(batch: Mapping[str, Any], reads: str, fills: Mapping[str, float]) -> dict[str, Any]:
    """Return the same batch with room for more tokens or samples, where a mask would hide them."""
    mask, held = batch.get("attention_mask"), batch.get(reads)
    if mask is None or held is None or mask.shape[1:2] != held.shape[1:2]:
        return dict(batch)
    length = mask.shape[1]
    # One token; of samples so many that there are more frames.
    more = length + 1 if reads == "input_ids" else 2 * length
    return {
        name: pad(value, more, fills.get(name, 0), "right") if value.shape[1:2] == (length,) else value
        for name, value in batch.items()
    }


def shapes(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes batches of which rows may lie in another way: sizes that no mask lets vary."""
    mask = batch.get("attention_mask")
    length = mask.shape[1:2] if isinstance(mask, torch.Tensor) else None
    return tuple(
        (name, None if value.shape[1:2] == length else tuple(value.shape[1:]))
        for name, value in sorted(batch.items())
        if isinstance(value, torch.Tensor) and value.dim()
    )


#: Classes that make sounds of lengths that they find themselves, through convolutions that see the end of the longest.
_OWN_LENGTHS = frozenset(
    {
        "BarkModel",
        "FastSpeech2ConformerModel",
        "FastSpeech2ConformerWithHifiGan",
        "SpeechT5ForSpeechToSpeech",
        "SpeechT5ForTextToSpeech",
        "VitsModel",
    }
)


def refuse_together(data: Mapping[str, Any], module: Any) -> None:
    """Raise for an input that would not get in a batch what it gets alone, whatever the others are."""
    if type(module).__name__ in _OWN_LENGTHS:
        raise RowsError(
            f"{type(module).__name__} makes sounds of which each has a length of its own, and in one batch the shorter would "
            "not end as alone. Trace each in a run of its own."
        )
    seen = [data[name].shape[0] for name in (*SIGHTS, *SOUNDS) if name in data]
    if not seen or "input_ids" not in data:
        return
    if hasattr(module, "get_text_features") or data["input_ids"].shape[0] != seen[0]:
        raise RowsError(
            f"{type(module).__name__} compares each text with every other input of a batch, so the inputs of several invokes "
            "cannot share one forward. Trace them separately."
        )
