"""Whether a checkpoint has every weight of a component: the libraries draw anew what it lacks, and only log that.

The names in the files are compared with those of the module, which reads no numbers. Where they differ it may be because a
library renames weights while it loads them, so the component is loaded once more by itself and the library is asked: this
costs time for old checkpoints, and is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def missing(module: torch.nn.Module, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """Return the weights of a loaded component that its folder does not have.

    Args:
        module: the component, loaded.
        folder: where its files are.
        options: those of `from_pretrained` that say which of them.
    """
    names = _names_in(folder, options.get("variant"))
    if (
        names is None
        or not hasattr(type(module), "from_pretrained")
        or getattr(module, "hf_quantizer", None) is not None
    ):
        return []
    if not _absent(module, names):
        return []
    loader: Any = type(module)
    _, told = loader.from_pretrained(folder, output_loading_info=True, **options)
    return sorted(told["missing_keys"])


def _absent(module: torch.nn.Module, names: Iterable[str]) -> list[str]:
    """Return the weights of a module whose names are not among those of a file, but for what stands before them."""
    known = set(names)
    ends = {end for name in known for end in _ends(name)}
    here: dict[int, list[str]] = {}
    for name, tensor in module.state_dict().items():
        # Weights that are tied are one tensor, of which a file needs one name.
        here.setdefault(tensor.data_ptr() or id(tensor), []).append(name)
    return [
        tied[0]
        for tied in here.values()
        if not any(name in ends or any(end in known for end in _ends(name)) for name in tied)
    ]


def _ends(name: str) -> Iterable[str]:
    """Return a name and what is left of it without what stands before, down to two parts."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(max(1, len(parts) - 2))]


def _names_in(folder: Path, variant: str | None) -> set[str] | None:
    """Return the names of all weights in a component's files; None where there are none to be read."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        chosen = [file for file in files if variant and f".{variant}" in file.name] or [
            file for file in files if file.name.count(".") == 1
        ]
        if chosen:
            return {name for file in chosen for name in _names_of(file)}
    return None


def _names_of(file: Path) -> Iterable[str]:
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    return list(torch.load(file, map_location="meta", mmap=True, weights_only=True))
