"""On which side the shorter rows of a batch are padded, so that each gives what it gives alone.

The left is the custom of text models: the last token of every row is at -1, and a generation goes on from there. It needs
a model that is told the positions, or counts none. Others count them over the padding, or carry a state through it; for
those a forward is padded on the right, where nothing that a causal model reads comes after padding, and a generation
takes rows of one length only. What stands in the lists here is measured by the oracle (`nnsight_hf.oracle`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._subclasses.fake_tensor import FakeTensor

from nnsight import RowsError

#: Model types without `position_ids` that give a row padded on the left what it gets alone: they count no positions but
#: distances, or a state that heeds the mask.
LEFT = frozenset(
    {
        "blip-2",
        "bloom",
        "cpmant",
        "falcon_mamba",
        "instructblip",
        "mamba",
        "mamba2",
        "moss_transcribe_diarize",
        "mpt",
        "xlnet",
    }
)

#: Model types with `position_ids` that do not, because a state goes through the padding or lengths are counted from the left.
RIGHT = frozenset({"recurrent_gemma", "xlm"})

#: Model types that give no row with padding what it gets alone.
NOWHERE = frozenset({"prophetnet", "reformer"})

#: Model types whose forward is right with padding on the left and whose generation is not.
FORWARD_ONLY = frozenset({"git", "kosmos-2", "xlnet"})

#: Model types whose generation from several rows is not what each gets alone, even at one length: transformers' RWKV
#: mixes up the states of its rows.
ALONE = frozenset({"rwkv"})


#: How many positions a model has, once looked up.
_rooms: WeakKeyDictionary[torch.nn.Module, int | None] = WeakKeyDictionary()

#: Whether a model counts positions itself, once looked up.
_counting: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def takes(module: torch.nn.Module, name: str) -> bool:
    """Say whether a module's forward has a parameter of this name."""
    return name in _parameters(type(module).forward)


@functools.lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    # Each invoke asks, and reading a signature takes longer than all else that is done with a short prompt.
    return frozenset(inspect.signature(forward).parameters)


def _type(module: torch.nn.Module) -> str:
    return getattr(getattr(module, "config", None), "model_type", "")


def side(module: torch.nn.Module) -> str:
    """Return "left" or "right"."""
    kind = _type(module)
    if kind in RIGHT:
        return "right"
    return "left" if kind in LEFT or takes(module, "position_ids") else "right"


def takes_padding(module: torch.nn.Module) -> bool:
    """Say whether a forward of this model takes rows of different lengths."""
    return _type(module) not in NOWHERE


def counts_itself(module: torch.nn.Module) -> bool:
    """Say whether a model makes positions of its own that heed padding, other than a count of the real tokens from 0.

    RoBERTa and its kin count from another number; models of images and text place the patches of an image in a plane.
    """
    if module not in _counting:
        own = ("create_position_ids_from_input_ids", "get_rope_index")
        _counting[module] = any(hasattr(part, name) for part in module.modules() for name in own)
    return _counting[module]


def refuse_together(module: torch.nn.Module, mask: Any, generates: bool) -> None:
    """Raise if rows of different lengths cannot share a run of this model.

    Args:
        module: the model.
        mask: which tokens are real [rows, positions]; not a fake.
        generates: whether the run is a generation.

    Raises:
        RowsError: the rows would not get what they get alone.
    """
    kind = _type(module)
    if generates and kind in ALONE and mask.shape[0] > 1:
        raise RowsError(
            f"{type(module).__name__} cannot generate from several inputs in one batch: transformers mixes up the states of "
            "its rows. Generate from each in a run of its own."
        )
    if bool(mask.all()):
        return
    if not takes_padding(module):
        why = "has no way to tell padding from text"
    elif generates and not encodes(module) and (kind in FORWARD_ONLY or side(module) == "right"):
        why = "counts positions over padding, or carries a state through it, so it cannot continue a padded row"
    else:
        return
    lengths: Sequence[int] = mask.sum(-1).tolist()
    raise RowsError(
        f"The inputs have {sorted(set(lengths))} tokens, and {type(module).__name__} {why}: in one batch they would not get "
        f"what they get alone. {'Generate from' if generates else 'Trace'} each in a run of its own, or give inputs of one "
        "length."
    )


def refuse_starts(mask: Any) -> None:
    """Raise if the rows of a generation begin their decoder with starts of different lengths, as this mask tells."""
    if mask is not None and not isinstance(mask, FakeTensor) and not bool(mask.all()):
        raise RowsError(
            "The inputs start the decoder with `decoder_input_ids` of different lengths, and a generation continues all "
            "rows from one position. Generate from each in a run of its own, or give starts of one length."
        )


def encodes(module: torch.nn.Module) -> bool:
    """Say whether there is an encoder beside the decoder."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def room(module: torch.nn.Module) -> int | None:
    """Return how many positions a model has learned, None if it counts them in another way (distances, rotations)."""
    config = getattr(module, "config", None)
    known = getattr(config, "max_position_embeddings", None)
    for name, part in module.named_modules() if isinstance(known, int) else ():
        leaf = name.rpartition(".")[2]
        table = isinstance(part, torch.nn.Embedding) and ("pos" in leaf or leaf == "wpe") and "rel" not in leaf
        if not table or part.num_embeddings - (offset := int(getattr(part, "offset", 0))) != known:
            continue
        # RoBERTa and its kin use up numbers for padding and before it.
        used = 0 if offset or not counts_itself(module) else (part.padding_idx or 0) + 1
        return int(known) - used
    return None


def refuse_beyond(module: torch.nn.Module, data: dict[str, Any]) -> None:
    """Raise if an input has more tokens than a model has positions.

    Raises:
        ValueError: it has.
    """
    count = data["attention_mask"].shape[-1]
    most: int | None = _rooms.get(module, 0)
    if most == 0:
        most = _rooms[module] = room(module)
    if most is not None and count > most and "position_ids" not in data:
        longest = int(data["attention_mask"].sum(-1).max())
        if longest > most:
            raise ValueError(
                f"the input has {longest} tokens, and {type(module).__name__} has learned {most} positions: cut it "
                f"(`truncation=True, max_length={most}`) or give it in parts"
            )


def pad(tensor: torch.Tensor, length: int, fill: float, where: str, dim: int = 1) -> torch.Tensor:
    """Return a tensor with its dimension `dim` filled up to a length, on the left or on the right."""
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    widths = (missing, 0) if where == "left" else (0, missing)
    return torch.nn.functional.pad(tensor, (0, 0) * (tensor.dim() - dim - 1) + widths, value=fill)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the position of every token, counted over real tokens: [rows, positions]."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
