"""`tracer.cache()`: keep what chosen modules gave and took, without asking for each.

A cache watches; it never holds the run up, and it sees a value after everybody at that site has had their turn. Values
are kept as they are (detached, and moved or cast if asked): no copy is made that was not asked for. What is kept for a
visit is `entries.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from . import complaints
from .batching import Layout, Rows
from .entries import Entry, Visits
from .errors import UnmetSiteWarning
from .here import narrow
from .saved import save
from .sites import INPUT, OUTPUT, Place
from .structures import tree_map

if TYPE_CHECKING:
    from .interleaver import Interleaver
    from .tree import Node


class Cache(Mapping[str, Any]):
    """What `tracer.cache()` returns: entries by path, or by attributes as on the model.

    `cache["model.layers.0"].output` and `cache.model.layers[0].output` are the same. A module that was visited several
    times (generation, recurrence) has a list of entries, one a visit, in order.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._entries: dict[str, Visits] = {}

    def _add(self, path: str) -> Entry:
        visits = self._entries.get(path)
        if visits is None:
            visits = self._entries[path] = Visits()
        entry = Entry(path)
        visits.append(entry)
        return entry

    def _root_path(self) -> str:
        return self._node._root._path

    def _path_of(self, module: torch.nn.Module) -> tuple[str, str]:
        """Return where a module is in the model, for those who have no model, and of what class it is."""
        root = self._node._root
        found = (name for name, one in root._module.named_modules() if one is module)
        path = next((f"{root._path}.{name}" if name else root._path for name in found), "")
        return path, type(module).__name__

    def _resolve(self, key: str) -> str:
        if key in self._entries:
            return key
        root = self._node._root
        for path in (key, f"{root._path}.{key}"):
            if path in self._entries:
                return path
            if path.startswith(root._path + "."):
                try:
                    real = root._walk(path[len(root._path) + 1 :])._path
                except AttributeError:
                    continue
                if real in self._entries:
                    return real
        raise KeyError(f"{key!r} is not in this cache, which holds {_some(list(self._entries))}")

    def __getitem__(self, key: str) -> Any:
        visits = self._entries[self._resolve(key)]
        return visits[0] if len(visits) == 1 else visits

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and bool(self._resolve(key))
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        root = self.__dict__["_node"]._root
        if name == root._path:
            return Branch(self, root)
        return getattr(Branch(self, root), name)

    def save(self) -> Cache:
        """Return itself, as `save` of any value does; a cache is part of the result in any case."""
        return save(self)

    def __repr__(self) -> str:
        return f"Cache({_some(list(self._entries))})"


class Branch:
    """The way into a cache by attributes: mirrors the tree of the model."""

    def __init__(self, cache: Cache, node: Node) -> None:
        self._cache = cache
        self._node = node

    def _entry(self) -> Any:
        return self._cache[self._node._path]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("output", "inputs", "input") and name not in self._node._module._modules:
            return getattr(self._entry(), name)
        if name in ("nns_output", "nns_inputs", "nns_input"):
            return getattr(self._entry(), name[4:])
        try:
            return Branch(self._cache, self._node._walk(name))
        except AttributeError:
            raise AttributeError(f"this cache has nothing at `{self._node._path}.{name}`: {self._cache!r}") from None

    def __getitem__(self, key: Any) -> Any:
        try:
            node = self._node[key]
        except (TypeError, IndexError, KeyError):
            entry = self._entry()
            if isinstance(entry, list):
                return entry[key]
            raise
        return [Branch(self._cache, n) for n in node] if isinstance(node, list) else Branch(self._cache, node)

    def __len__(self) -> int:
        return len(self._node)

    def __iter__(self) -> Iterator[Any]:
        return (Branch(self._cache, node) for node in self._node)

    def __repr__(self) -> str:
        return f"<cached {self._node._path}>"


class CacheWatcher:
    """Fills a cache during a run."""

    def __init__(
        self,
        cache: Cache,
        rows: Rows | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        detach: bool,
        copy: bool,
        stages: tuple[str, ...],
    ) -> None:
        self.cache = cache
        self.rows = rows
        self.device = device
        self.dtype = dtype
        self.detach = detach
        self.copy = copy
        self.stages = stages
        self.paths: dict[Place, str] = {}
        self.open: dict[Place, Entry] = {}
        self.seen = False
        self.plain = device is None and dtype is None and not copy
        #: The entries, whose values the run may still change.
        self.kept: list[Entry] = []

    def install(self, run: Interleaver, nodes: Iterable[Node] | None) -> None:
        """Watch the modules of these envoys from now on; all that the run's tree holds, if not given."""
        if nodes is None:
            run.rigging.follow()
            self.paths = run.rigging.held
            run.watch(self.paths, self.stages, self)
            return
        outside: list[Place] = []
        for node in nodes:
            place = node._place()
            if run.rigging.has(place):
                self.paths[place] = node._path
            else:
                outside.append(place)
        run.watch(self.paths, self.stages, self)
        if outside and not self.paths:
            warnings.warn(complaints.unmet_cache(outside), UnmetSiteWarning, stacklevel=4)

    def see(self, place: Place, stage: str, value: Any, layout: Layout | None) -> None:
        """Keep the value that lies at a place."""
        if stage not in self.stages:
            return
        self.seen = True
        if self.rows is not None and layout is not None:
            value = narrow(value, self.rows, layout, place.path)
        value = self.keep(value) if type(value) is torch.Tensor else tree_map(self.keep, value)
        if stage is INPUT:
            entry = self.open[place] = self.cache._add(self.paths[place])
            entry.keep_inputs(value)
        else:
            entry = self.open.pop(place) if place in self.open else self.cache._add(self.paths[place])
            entry.keep_output(value)
        self.kept.append(entry)

    def end(self) -> None:
        """Hear that the run is over: what happens to values from here on is the user's doing."""
        for entry in self.kept:
            entry.settle()
        self.kept.clear()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as the cache keeps it."""
        if self.detach and tensor.requires_grad:
            tensor = tensor.detach()
        if self.plain:
            return tensor
        # Token ids and masks are not what a type was chosen for, and half precision would spoil them.
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(device=self.device, dtype=dtype, copy=self.copy)


def chosen(node: Node, modules: Iterable[Any]) -> list[Node]:
    """Return the envoys that a cache is to watch, given as envoys or paths."""
    if isinstance(modules, str):
        raise TypeError(f"cache(modules=...) takes a list: write modules=[{modules!r}]")
    root = node._root
    found: list[Node] = []
    for module in modules:
        if isinstance(module, str):
            found.append(_at(root, module))
        elif hasattr(module, "_place"):
            found.append(module)
        else:
            raise TypeError(f"cache(modules=...) takes envoys or their paths, not {type(module).__name__}")
    return found


def _at(root: Node, path: str) -> Node:
    """Return the envoy at a path, which may begin with the root's own name; a part of it may have that name too."""
    if path == root._path:
        return root
    for way in (path.removeprefix(f"{root._path}."), path):
        try:
            return root._walk(way)
        except AttributeError:
            continue
    raise KeyError(f"cache(modules=...): the model has no module {path!r}")


def stages(include_output: bool, include_inputs: bool) -> tuple[str, ...]:
    """Return the stages that a cache keeps."""
    if not (include_output or include_inputs):
        raise ValueError("a cache of neither outputs nor inputs would be empty: leave one of them on")
    return (OUTPUT,) * include_output + (INPUT,) * include_inputs


def _some(paths: list[str]) -> str:
    if len(paths) <= 6:
        return ", ".join(paths) or "nothing"
    return ", ".join(paths[:5]) + f" and {len(paths) - 5} more"
