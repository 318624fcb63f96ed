"""What a model is, as a short string: two ends that hold the same string hold the same model.

A model of the hub is its repository and the commit that was loaded. A folder is a fingerprint of what lies in it: its
configuration, and of each file of weights its size, its header and a few numbers of every tensor, so that a checkpoint
of many gigabytes takes milliseconds. Adapters and quantisation are parts of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

#: Files of weights; where there are safetensors, nothing else is read.
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")

#: Files up to this size are read whole; of others, so many bytes at so many places of every tensor.
_SMALL = 1 << 20
_BYTES, _PLACES = 256, 5

#: What says where or by whom a configuration was saved, not what the model is.
_INCIDENTAL = ("_name_or_path", "transformers_version", "name_or_path", "base_model_name_or_path", "inference_mode")


def of_checkpoint(where: str, hub: Mapping[str, Any]) -> str | None:
    """Return what a checkpoint is: `hub:owner/name@commit`, or `local:` and the fingerprint of a folder.

    Args:
        where: a hub id or a folder.
        hub: the options that say where its files are (`revision=`, `cache_dir=`, ...).
    """
    folder = Path(where, hub.get("subfolder") or "")
    if folder.is_dir():
        return f"local:{fingerprint(folder)}"
    commit = _commit(where, hub)
    inside = f"/{hub['subfolder']}" if hub.get("subfolder") else ""
    return None if commit is None else f"hub:{where}{inside}@{commit}"


def _commit(repository: str, hub: Mapping[str, Any]) -> str | None:
    """Return the commit whose files lie in the cache for a revision: the one that was loaded, not a newer one."""
    from transformers.utils import cached_file

    options = {name: value for name, value in hub.items() if name not in ("trust_remote_code", "force_download")}
    for name in ("config.json", "adapter_config.json"):
        found = cached_file(
            repository, name, _raise_exceptions_for_missing_entries=False, **{**options, "local_files_only": True}
        )
        # The cache of huggingface_hub keeps the files of a commit in a folder of that name.
        commit = found and re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(found))
        if commit:
            return str(commit[1])
    return None


def fingerprint(folder: Path) -> str:
    """Return the fingerprint of a checkpoint's folder, the same wherever the folder lies.

    A change of a few numbers inside a tensor of many can go unseen: of a large tensor only parts are read.
    """
    digest = hashlib.sha256()
    for config in sorted(folder.glob("*config.json")):
        if config.name in ("config.json", "adapter_config.json"):
            said = json.loads(config.read_text(encoding="utf-8"))
            kept = {name: value for name, value in said.items() if name not in _INCIDENTAL}
            digest.update(json.dumps(kept, sort_keys=True).encode())
    for path in weights(folder):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        with path.open("rb") as file:
            for part in _parts(path, file):
                digest.update(part)
    return digest.hexdigest()[:32]


def weights(folder: Path) -> list[Path]:
    """Return a folder's files of weights."""
    return next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _parts(path: Path, file: BinaryIO) -> Iterator[bytes]:
    size = path.stat().st_size
    if size <= _SMALL:
        yield file.read()
        return
    spans = [(0, size)]
    if path.suffix == ".safetensors":
        start, header = header_of(file)
        yield json.dumps(header, sort_keys=True).encode()
        spans = [(start + tensor["data_offsets"][0], start + tensor["data_offsets"][1]) for tensor in header.values()]
    for first, last in sorted(spans):
        for place in range(_PLACES):
            file.seek(first + max(0, last - first - _BYTES) * place // (_PLACES - 1))
            yield file.read(min(_BYTES, last - first))


def header_of(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Return where the numbers of a safetensors file begin, and what its header says of each tensor.

    Raises:
        ValueError: the file has no such header.
    """
    length = file.read(8)
    if len(length) < 8:
        raise ValueError("the file ends within its first eight bytes")
    (size,) = struct.unpack("<Q", length)
    header = json.loads(file.read(min(size, 100 << 20)))
    header.pop("__metadata__", None)
    return 8 + size, header


def broken(folder: Path) -> list[str]:
    """Return, of a folder's safetensors, those that are cut short or are none, each with what is wrong."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            try:
                start, header = header_of(file)
            except ValueError as error:
                found.append(f"{path.name} (not a safetensors file: {error})")
                continue
        needed = start + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if path.stat().st_size != needed:
            found.append(f"{path.name} ({path.stat().st_size} bytes, where its header says {needed})")
    return found
