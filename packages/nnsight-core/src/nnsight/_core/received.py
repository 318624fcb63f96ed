"""A cache that was filled elsewhere.

The one idea: over here there may be no model, so what mirrors the tree are the paths of the entries alone. Names that the
model gave its modules besides are not known. Where a module was given another one, a `Stayed` stands for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .cache import Cache
from .entries import Entry, Visits
from .errors import ChangedValueError, WireError
from .wire import Decoder, Encoder
from .wire.kinds import makes, writes


@writes(Cache)
def write_cache(encoder: Encoder, cache: Cache) -> int:
    """Write a cache: by path, what each visit gave and took, and which of that is no longer what passed."""
    said = {path: [_said(entry) for entry in visits] for path, visits in cache._entries.items()}
    before, encoder.kept["stand_in"] = encoder.kept.get("stand_in"), cache._path_of
    try:
        return encoder.emit("cache", cache._root_path(), encoder.value(said))
    finally:
        encoder.kept["stand_in"] = before


def _said(entry: Entry) -> tuple[Any, Any, list[str]]:
    kept: dict[str, Any] = {}
    changed = []
    for name in ("output", "inputs"):
        try:
            kept[name] = getattr(entry, name)
        except ChangedValueError:
            changed.append(name)
    return kept.get("output"), kept.get("inputs"), changed


@makes("cache", safe=True)
def _make_cache(decoder: Decoder, step: list[Any]) -> ReceivedCache:
    _, root, paths = step
    said, entries = decoder.value(paths), {}
    if not isinstance(root, str) or type(said) is not dict:
        raise WireError("a cache is not stated as it should be")
    for path, visits in said.items():
        # Of these very types: others may be endless, or run something when they are gone through.
        if not isinstance(path, str) or type(visits) is not list or not all(map(_is_visit, visits)):
            raise WireError("a visit in a cache is not stated as it should be")
        entries[path] = Visits(Entry.told(path, *visit) for visit in visits)
    return ReceivedCache(root, entries)


def _is_visit(said: Any) -> bool:
    return type(said) is tuple and len(said) == 3 and type(said[2]) is list


class Stayed:
    """A module that was among what a module took or gave: it stayed where the run was."""

    def __init__(self, path: str, kind: str) -> None:
        #: Where it is in the model; empty if it is none of the model's.
        self.path = path
        self._kind = kind

    def __repr__(self) -> str:
        return f"<{self._kind} at {self.path or 'no path of the model'}, where the run was>"


@writes(Stayed)
def _write_stayed(encoder: Encoder, stayed: Stayed) -> int:
    return encoder.emit("stayed", stayed.path, stayed._kind)


@makes("stayed", safe=True)
def _make_stayed(decoder: Decoder, step: list[Any]) -> Stayed:
    _, path, kind = step
    if not isinstance(path, str) or not isinstance(kind, str):
        raise WireError("what stayed at the other end is not stated as it should be")
    return Stayed(path, kind)


class ReceivedCache(Cache):
    """What `tracer.cache()` returned where the block ran; see `Cache`."""

    def __init__(self, root: str, entries: dict[str, Visits]) -> None:
        self._root = root
        self._entries = entries

    def _root_path(self) -> str:
        return self._root

    def _path_of(self, module: torch.nn.Module) -> tuple[str, str]:
        return "", type(module).__name__

    def _resolve(self, key: str) -> str:
        for path in (key, f"{self._root}.{key}"):
            if path in self._entries:
                return path
        raise KeyError(f"{key!r} is not in this cache, which holds {', '.join(self._entries) or 'nothing'}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        way = Way(self, self._root)
        return way if name == self._root else getattr(way, name)


def join_caches(caches: Iterable[ReceivedCache]) -> ReceivedCache:
    """Put caches together that were filled in several places, each with modules of its own; the last given last."""
    first, *others = caches
    entries = dict(first._entries)
    for other in others:
        entries.update(other._entries)
    return ReceivedCache(first._root, entries)


class Way:
    """The way into a received cache by attributes."""

    def __init__(self, cache: ReceivedCache, path: str) -> None:
        self._cache = cache
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        below = f"{self._path}.{name}"
        if any(path == below or path.startswith(f"{below}.") for path in self._cache):
            return Way(self._cache, below)
        plain = name.removeprefix("nns_")
        if plain in ("output", "inputs", "input") and self._path in self._cache:
            return getattr(self._cache[self._path], plain)
        raise AttributeError(f"this cache has nothing at `{below}`: {self._cache!r}")

    def __getitem__(self, key: Any) -> Any:
        below = self._below()
        if isinstance(key, str) and key in below:
            return Way(self._cache, f"{self._path}.{key}")
        numbers = [name for name in below if name.isdigit()]
        if numbers:
            found = numbers[key]
            ways = [
                Way(self._cache, f"{self._path}.{name}") for name in (found if isinstance(found, list) else [found])
            ]
            return ways if isinstance(key, slice) else ways[0]
        return self._cache[self._path][key]

    def __len__(self) -> int:
        return len(self._below())

    def __iter__(self) -> Iterator[Any]:
        return (Way(self._cache, f"{self._path}.{name}") for name in self._below())

    def _below(self) -> list[str]:
        """Return the names right below this path, in the order of the model."""
        inside = (path[len(self._path) + 1 :] for path in self._cache if path.startswith(f"{self._path}."))
        names = list(dict.fromkeys(path.partition(".")[0] for path in inside))
        # Modules of a list are numbered, and may have been visited in another order.
        return sorted(names, key=int) if all(map(str.isdigit, names)) else names

    def __repr__(self) -> str:
        return f"<cached {self._path}>"
