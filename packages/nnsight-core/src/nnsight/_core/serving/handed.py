"""What bodies saved, on its way to a caller in the same process.

One idea: where nothing has to be crossed, values need no bytes. They become the caller's own all the same: containers and
tensors are copied, but for those that were the body's own, and what shared memory shares it afterwards; tensors come to lie
on the CPU, as those that travelled do.
Anything that is more than data (an object of a class, a function) is left to the bytes, which know how it travels.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

#: Set on a tensor whose memory was made for one body, and is nobody else's: it is handed over itself.
OWN = "_nnsight_own"

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})


class _NotDataError(Exception):
    """Something is more than data."""


def hand_over(
    values: Mapping[str, Any], as_they_are: tuple[type, ...] = (), own: Collection[int] = ()
) -> dict[str, Any] | None:
    """Return copies of values that a caller in this process may keep and change; None if they hold more than data.

    Args:
        values: by name.
        as_they_are: objects of these types were made for the caller, and are handed over themselves.
        own: what else was, by its id.
    """
    plain = _plain(as_they_are)
    if all(id(value) in own or type(value) in plain for value in values.values()):
        return dict(values)
    try:
        with torch.inference_mode(False), torch.no_grad():
            return _Copies(plain, own).of(values)
    except (_NotDataError, RecursionError):
        return None


@functools.cache
def _plain(as_they_are: tuple[type, ...]) -> frozenset[type]:
    return _ATOMS.union(as_they_are)


class _Copies:
    """Copies of values, which share what these share."""

    def __init__(self, plain: frozenset[type], own: Collection[int]) -> None:
        self._plain = plain
        self._own = own
        self._seen: set[int] = set()
        self._copies: dict[int, Any] = {}
        #: The tensors that lie in each storage, and those that were the body's own, most of which nobody shares.
        self._stored: dict[int, list[torch.Tensor]] = {}
        self._owned: list[torch.Tensor] = []

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return copies of values, by name."""
        self.look(values.values())
        if self._stored:
            for tensor in self._owned:
                beside = self._stored.get(tensor.untyped_storage()._cdata)
                if beside is not None:
                    beside.append(tensor)
        for tensors in self._stored.values():
            self._copy_storage(tensors)
        for tensor in self._owned:
            del tensor.__dict__[OWN]
            self._copies[id(tensor)] = tensor
        return {name: self.copy(value) for name, value in values.items()}

    def look(self, values: Iterable[Any]) -> None:
        """Find the tensors in values.

        Raises:
            _NotDataError: one holds something that is neither a tensor nor a plain container of plain values.
        """
        waiting, seen = list(values), self._seen
        for value in waiting:  # which grows: a list may hold a tensor of each step
            kind = type(value)
            if kind in self._plain or id(value) in seen or id(value) in self._own:
                continue
            seen.add(id(value))
            if kind is torch.Tensor:
                if _is_own(value):
                    self._owned.append(value)
                else:
                    self._look_at(value)
            elif kind is dict:
                waiting += value
                waiting += value.values()
            elif kind in (list, tuple, set, frozenset):
                waiting += value
            else:
                raise _NotDataError

    def _look_at(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            raise _NotDataError
        if tensor.is_conj() or tensor.is_neg():
            raise _NotDataError
        self._stored.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def copy(self, value: Any) -> Any:
        """Return the copy of a value that was looked at."""
        kind = type(value)
        if kind in self._plain or id(value) in self._own:
            return value
        found = self._copies.get(id(value))
        if found is not None:
            return found
        if kind is list:
            copies = self._copies
            made = copies[id(value)] = []
            made += [copies[id(part)] if id(part) in copies else self.copy(part) for part in value]
        elif kind is dict:
            filled = self._copies[id(value)] = {}
            filled.update((self.copy(key), self.copy(part)) for key, part in value.items())
        else:
            self._copies[id(value)] = kind(map(self.copy, value))
        return self._copies[id(value)]

    def _copy_storage(self, tensors: list[torch.Tensor]) -> None:
        if len(tensors) == 1:
            (tensor,) = tensors
            self._copies[id(tensor)] = tensor.clone() if tensor.is_cpu else tensor.cpu()
            return
        storage = tensors[0].untyped_storage()
        if any(map(_is_own, tensors)):
            self._show(storage, [tensor for tensor in tensors if not _is_own(tensor)])
            return
        if storage.nbytes() > 2 * sum(tensor.numel() * tensor.itemsize for tensor in tensors):
            raise _NotDataError  # the bytes take along just the part that is shown
        numbers = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        self._show((numbers.clone() if numbers.is_cpu else numbers.cpu()).untyped_storage(), tensors)

    def _show(self, storage: torch.UntypedStorage, tensors: list[torch.Tensor]) -> None:
        """Let copies of tensors show a storage as these show theirs."""
        for tensor in tensors:
            made = torch.empty(0, dtype=tensor.dtype)
            self._copies[id(tensor)] = made.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _is_own(tensor: torch.Tensor) -> bool:
    """Say whether a tensor may be handed over itself: its memory is nobody else's, and it is data and nothing more."""
    return hasattr(tensor, OWN) and tensor.is_cpu and not tensor.requires_grad
