"""Which class an envoy is of: the one that was chosen for its path or its module's type, made to fit its module.

A submodule may be called like something of ours (BERT's `output`). Then the envoy is of a class made for that module, in
which the submodule has the name, and ours is reachable with the prefix `nns_`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from .tree import Node

N = TypeVar("N", bound="Node")

#: The classes of the envoys of a tree: one for all, or by module type or path suffix.
EnvoyClasses = type | Mapping[type | str, type] | None


def children_of(module: torch.nn.Module) -> Mapping[str, torch.nn.Module | None]:
    """Return the submodules of a module by name. A scripted module is a leaf: nothing inside it can be reached."""
    return {} if isinstance(module, torch.jit.ScriptModule) else module._modules


def class_for(module: torch.nn.Module, path: str, root: Node) -> type[Node]:
    """Choose the class of an envoy: by path suffix, by module type, or the tree's own."""
    default: type[Node] = root.__dict__["_default_class"]
    chosen: EnvoyClasses = root.__dict__["_classes"]
    cls: type[Node] = default
    if isinstance(chosen, type):
        cls = chosen
    elif chosen is not None:
        relative = path[len(root._path) + 1 :]
        by_path = [(key, value) for key, value in chosen.items() if isinstance(key, str) and _ends(relative, key)]
        by_type = [
            (type(module).__mro__.index(key), value)
            for key, value in chosen.items()
            if isinstance(key, type) and isinstance(module, key)
        ]
        if by_path:
            cls = max(by_path, key=lambda item: len(item[0]))[1]
        elif by_type:
            cls = min(by_type, key=lambda item: item[0])[1]
    return without_collisions(cls, module)


def _ends(path: str, suffix: str) -> bool:
    parts, wanted = path.split("."), suffix.lstrip(".").split(".")
    tail = parts[-len(wanted) :]
    return len(tail) == len(wanted) and all(w in ("*", part) for part, w in zip(tail, wanted))


class _Submodule:
    """Gives a submodule whose name we use ourselves; ours is then `nns_` and the name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, node: Any, owner: type | None = None) -> Any:
        if node is None:
            return self
        module = children_of(node._module).get(self.name)
        if module is None:
            return getattr(node, f"nns_{self.name}")
        return node._child(self.name, module)

    def __set__(self, node: Any, value: Any) -> None:
        is_envoy = not isinstance(value, torch.nn.Module) and hasattr(value, "_module")
        setattr(node._module, self.name, value._module if is_envoy else value)


_made: dict[tuple[type, tuple[str, ...]], type] = {}


def without_collisions(cls: type[N], module: torch.nn.Module) -> type[N]:
    """Return `cls`, or a class like it in which submodules with names of ours are reachable by their names."""
    names = tuple(sorted(n for n in children_of(module) if not n.startswith("_") and hasattr(cls, n)))
    if not names:
        return cls
    made = _made.get((cls, names))
    if made is None:
        body: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__}
        for name in names:
            body[name] = _Submodule(name)
            body[f"nns_{name}"] = inspect.getattr_static(cls, name)
        body["_without"] = cls
        made = _made[cls, names] = type(cls.__name__, (cls,), body)
    return made
