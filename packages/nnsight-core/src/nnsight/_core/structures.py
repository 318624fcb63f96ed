"""Tensors in nested containers, the way modules take and return them.

A structure is a leaf, or a tuple, list, dict or dataclass of structures, of whatever subclass. Anything else is a leaf,
and so is a `torch.Size`. The idea is to change nothing that need not change: what a function leaves alone keeps its
identity, up to the whole, and what is rebuilt keeps its type and its other attributes.

Dicts that are dataclasses too (the outputs of some libraries of models) hold each value twice, as an item and as an
attribute; both are kept in step, and neither library is needed to do so.
"""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, UserDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

_Slot = types.MemberDescriptorType

# Asked first, because what a call takes and returns is full of these and the other questions are slow.
_ATOMS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})


def tree_map(fn: Callable[[Tensor], Any], value: Any) -> Any:
    """Return `value` with each tensor in it replaced by `fn(tensor)`.

    Where `fn` returns its argument nothing is copied: if it does so for every tensor, the result *is* `value`.

    Example:
        >>> tree_map(torch.neg, (torch.tensor(1), {"k": torch.tensor(2)}, "text"))
        (tensor(-1), {'k': tensor(-2)}, 'text')
    """
    if isinstance(value, Tensor):
        return fn(value)
    parts = _parts(value)
    return value if parts is None else _rebuilt(value, parts, [tree_map(fn, part) for part in parts])


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors in `value`, in its order; one that is there twice, twice."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def zip_map(fn: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """Return `a` with each leaf in it, tensor or not, replaced by `fn(leaf, its counterpart in b)`.

    `b` has the shape of `a` if it has the same items at the same places: a tuple may stand for a list, and a plain dict
    for one of another type. The result is of the types of `a`.

    Raises:
        ValueError: `b` has another shape; the message names the first place where it differs.

    Example:
        >>> zip_map(max, [1, {"k": 5}], (2, {"k": 3}))
        [2, {'k': 5}]
    """
    return _zip_map(fn, a, b, "")


def first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the first positional argument, else the first keyword's value, else None."""
    return args[0] if args else next(iter(kwargs.values()), None)


def items(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the parts of a container with what tells them apart, an index or a name; None for a leaf."""
    parts = _parts(value)
    return None if parts is None else list(zip(_keys(value), parts))


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    for part in _parts(value) or ():
        _gather(part, found)


def _parts(value: Any) -> Collection[Any] | None:
    """Return what a container holds, in its order; None for a leaf."""
    cls = type(value)
    if cls in _ATOMS:
        return None
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, (dict, UserDict)):
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, (type, Module)):
        return [_field(value, name) for name in _fields(value)]
    return None


def _keys(value: Any) -> list[Any]:
    """Return by what the parts of a container are told apart, in their order."""
    if isinstance(value, (tuple, list)):
        return list(range(len(value)))
    return list(value) if isinstance(value, (dict, UserDict)) else _fields(value)


def _fields(value: Any) -> list[str]:
    # What the instance holds, asked of it alone: an attribute that a class computes may refuse to be read.
    own, cls = getattr(value, "__dict__", {}), type(value)
    return [
        field.name
        for field in fields(value)
        if field.name in own or (isinstance(getattr(cls, field.name, None), _Slot) and hasattr(value, field.name))
    ]


def _field(value: Any, name: str) -> Any:
    own = getattr(value, "__dict__", {})
    return own[name] if name in own else getattr(value, name)


def _rebuilt(value: Any, old: Collection[Any], new: list[Any]) -> Any:
    """Return a container like `value` that holds `new` instead of `old`; itself, if that is no change."""
    for before, after in zip(old, new, strict=True):
        if before is not after:
            break
    else:
        return value
    cls = type(value)
    if cls is tuple:
        return tuple(new)
    if cls is list:
        return new
    if isinstance(value, tuple):
        return _tuple_like(value, new)
    copied = _copied(value)
    if isinstance(value, list):
        copied[:] = new
        return copied
    for key, before, after in zip(_keys(value), old, new, strict=True):
        if before is not after:
            _put(copied, key, before, after)
    return copied


def _tuple_like(value: tuple[Any, ...], new: list[Any]) -> Any:
    cls: Any = type(value)
    if hasattr(cls, "n_sequence_fields"):  # torch.return_types: built in C, and only ever by its own constructor
        return cls(new)
    # Not by the constructor: a namedtuple's takes the items one by one, a subclass's whatever it likes.
    made = tuple.__new__(cls, new)
    if hasattr(value, "__dict__"):
        made.__dict__.update(value.__dict__)
    return made


def _copied(value: Any) -> Any:
    """Return a shallow copy; of an output or a dataclass without running its constructor, which checks and converts."""
    if isinstance(value, OrderedDict):
        made = OrderedDict.__new__(type(value))
        for key, part in value.items():
            OrderedDict.__setitem__(made, key, part)
        made.__dict__.update(value.__dict__)
        return made
    if isinstance(value, (dict, list, UserDict)):
        return copy.copy(value)
    # Not by `copy`: it assigns the slots of a frozen dataclass, which refuses.
    cls: Any = type(value)
    bare = cls.__new__(cls)
    attributes = getattr(value, "__dict__", {})
    for name in dict.fromkeys((*attributes, *_fields(value))):
        object.__setattr__(bare, name, _field(value, name))
    return bare


def _put(container: Any, key: Any, before: Any, after: Any) -> None:
    """Replace one part, past whatever the container's class would make of an assignment."""
    if isinstance(container, (dict, UserDict)):
        if isinstance(container, UserDict):
            container.data[key] = after
        else:
            setter = OrderedDict.__setitem__ if isinstance(container, OrderedDict) else dict.__setitem__
            setter(container, key, after)
        attributes = getattr(container, "__dict__", {})
        if key in attributes and attributes[key] is before:
            attributes[key] = after
    else:
        object.__setattr__(container, key, after)


def _zip_map(fn: Callable[[Any, Any], Any], a: Any, b: Any, path: str) -> Any:
    parts, others = _parts(a), _parts(b)
    if parts is None and others is None:
        return fn(a, b)
    if parts is None or others is None or _kind(a) != _kind(b):
        raise ValueError(_mismatch(path, f"{_said(a)} against {_said(b)}"))
    keys, theirs = _keys(a), dict(zip(_keys(b), others, strict=True))
    strange = [*(key for key in keys if key not in theirs), *(key for key in theirs if key not in set(keys))]
    if strange:
        missing = "second" if strange[0] in set(keys) else "first"
        where = path + _spelled(a, strange[0])
        raise ValueError(_mismatch(where, f"{_said(a)} against {_said(b)}, and the {missing} has no such item"))
    new = [_zip_map(fn, part, theirs[key], path + _spelled(a, key)) for key, part in zip(keys, parts, strict=True)]
    return _rebuilt(a, parts, new)


def _kind(value: Any) -> object:
    if isinstance(value, (tuple, list)):
        return tuple
    return dict if isinstance(value, (dict, UserDict)) else type(value)


def _spelled(value: Any, key: Any) -> str:
    return f"[{key!r}]" if isinstance(value, (tuple, list, dict, UserDict)) else f".{key}"


def _said(value: Any) -> str:
    parts, name = _parts(value), type(value).__name__
    return name if parts is None else f"{name} of {len(parts)}"


def _mismatch(path: str, what: str) -> str:
    return f"the two values differ in shape at {path or 'the outermost'}: {what}"
