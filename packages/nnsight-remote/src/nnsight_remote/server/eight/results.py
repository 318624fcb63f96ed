"""What a block of nnsight 0.8 saved, written as its client reads it.

The one idea: it is what torch saves of a table of values. Of our own classes nothing may be in it, for the client has none
of them; what one of ours stands for over there is written as that.

relies on: what objects of `Cache`, `Entry` and `CacheView` hold, nnsight 0.8.1
"""

from __future__ import annotations

import io
import pickle
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import zstandard

from nnsight import Cache
from nnsight.plugin import Envoy, WireError

from ...fabric.stand_ins import Path, Paths, Thing

_LEVEL = 3  # that of NDIF's server
_CACHE, _ENTRY, _VIEW = (f"nnsight.intervention.cache:{name}" for name in ("Cache", "Entry", "CacheView"))
_OURS = frozenset(("nnsight", "nnsight_hf", "nnsight_vllm", "nnsight_diffusers", "nnsight_remote"))


def write(saved: Mapping[str, Any], *, compress: bool) -> bytes:
    """Write what a block saved, by name.

    Raises:
        WireError: something in it cannot be read over there.
    """
    file = io.BytesIO()
    try:
        torch.save(dict(saved), file, pickle_module=_WRITING)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise WireError(
            f"something that was saved cannot be sent: {error}. Save tensors, plain values, and objects of installed classes"
        ) from error
    data = file.getvalue()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data) if compress else data


class _Pickler(pickle.Pickler):
    """Writes one result."""

    def reducer_override(self, thing: Any) -> Any:
        """Say how something is made over there."""
        if isinstance(thing, Thing):
            return object.__new__, (thing.path,), thing.state
        if isinstance(thing, Path):
            return pkgutil.resolve_name, (thing.path,)
        if isinstance(thing, Cache):
            return object.__new__, (Path(_VIEW),), {"_cache": _cache(thing), "_envoy": None, "_path": None}
        if type(thing) is torch.Tensor and vars(thing):
            # What hangs on it is the run's: of which batch it shows rows.
            return thing.detach().requires_grad_(thing.requires_grad).__reduce_ex__(2)
        if isinstance(thing, Envoy):
            raise WireError(f"`{thing.path}` stands for a module, which is no result; save its `.output`")
        owner = thing if isinstance(thing, type) else type(thing)
        if str(owner.__module__).partition(".")[0] in _OURS:
            raise WireError(f"a {owner.__name__} of this server's nnsight was saved, which nnsight 0.8 does not have")
        return NotImplemented


def _cache(cache: Cache) -> Thing:
    """Return what stands for a cache: entries by path, one for each visit."""
    paths, entries = Paths(), {}
    for path, found in cache.items():
        visits = found if isinstance(found, list) else [found]
        entries[path] = [paths.thing(_ENTRY, output=visit.output, inputs=visit.inputs) for visit in visits]
    how = {"device": None, "dtype": None, "detach": True, "non_blocking": False}
    kept = {"include_output": True, "include_inputs": True, "targets": None}
    return paths.thing(_CACHE, model=None, entries=entries, _open={}, **how, **kept)


#: What torch is given in place of `pickle`.
_WRITING = ModuleType("pickle")
_WRITING.Pickler = _Pickler  # type: ignore[attr-defined]
