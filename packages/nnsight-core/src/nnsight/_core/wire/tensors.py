"""Tensors: their bytes, and where in them each one lies.

The one idea: a storage is one buffer, of which just the part travels that some tensor shows; tensors that share it share
it over there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import WireError
from ..readonly import ReadOnly
from .decoder import Decoder
from .encoder import Encoder
from .format import Buffer
from .kinds import FAMILIES, makes, writes
from .natives import native

DTYPES = {str(one).removeprefix("torch."): one for one in vars(torch).values() if isinstance(one, torch.dtype)}


def _named(cls: type) -> Callable[[str], Any]:
    known = {str(one): one for one in vars(torch).values() if isinstance(one, cls)}
    return lambda said: known[said]


native(torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), lambda said: DTYPES[said])
native(torch.device, str, torch.device)
native(torch.layout, str, _named(torch.layout))
native(torch.memory_format, str, _named(torch.memory_format))
native(torch.Size, list, torch.Size)
native(torch.finfo, lambda info: info.dtype, lambda said: torch.finfo(DTYPES[said]))
native(torch.iinfo, lambda info: info.dtype, lambda said: torch.iinfo(DTYPES[said]))


class _Storage:
    """A storage that is being sent, and the steps of the tensors in it."""

    def __init__(self, tensor: torch.Tensor, number: int) -> None:
        self.tensor = tensor  # keeps it alive, and at its address
        self.number = number
        self.steps: list[tuple[list[Any], torch.Tensor]] = []


@writes(torch.Tensor)
def _write_tensor(encoder: Encoder, tensor: torch.Tensor) -> int:
    if tensor.layout is not torch.strided:
        return _write_sparse(encoder, tensor)
    if tensor.is_quantized or tensor.is_nested:
        what, instead = (
            ("quantised", "send `.dequantize()` of it") if tensor.is_quantized else ("nested", "send its parts")
        )
        raise encoder.refusal(f"a {what} tensor has a form of its own", instead)
    grad = tensor.requires_grad and tensor.is_leaf and not encoder.results
    plain = tensor.detach().resolve_conj().resolve_neg()
    storage = _storage(encoder, plain)
    dtype = str(plain.dtype).removeprefix("torch.")
    number = encoder.emit(
        "tensor", storage.number, dtype, list(plain.shape), list(plain.stride()), plain.storage_offset(), grad
    )
    storage.steps.append((encoder.nodes[number], plain))
    return number


def _write_sparse(encoder: Encoder, tensor: torch.Tensor) -> int:
    if tensor.layout is not torch.sparse_coo:
        raise encoder.refusal(f"a tensor of the layout {tensor.layout} is not carried", "send `.to_sparse_coo()` of it")
    tensor = tensor.detach()
    parts = [encoder.value(part.contiguous()) for part in (tensor._indices(), tensor._values())]
    return encoder.emit("sparse", parts, list(tensor.shape), tensor.is_coalesced())


@writes(torch.nn.Parameter)
def _write_parameter(encoder: Encoder, parameter: torch.nn.Parameter) -> int:
    data = encoder.value(parameter.detach())
    return encoder.emit("parameter", data, parameter.requires_grad)


@writes(ReadOnly, family=True)
def _write_read_only(encoder: Encoder, tensor: ReadOnly) -> int:
    return _write_tensor(encoder, tensor.plain)


def _write_other(encoder: Encoder, tensor: torch.Tensor) -> int:
    raise encoder.refusal(f"a {type(tensor).__name__} is no plain tensor", "send the plain tensors that it is made of")


FAMILIES[torch.Tensor] = _write_other


def _storage(encoder: Encoder, tensor: torch.Tensor) -> _Storage:
    storages: dict[int, _Storage] = encoder.kept.setdefault("storages", {})
    if not storages:
        encoder.closing.append(lambda: _close_all(encoder, storages.values()))
    storage = tensor.untyped_storage()
    known = storages.get(storage._cdata)
    if known is None:
        weight: Callable[[torch.Tensor], str | None] = encoder.kept.get("weight_of", lambda tensor: None)
        path = weight(tensor)
        step = ["storage"] if path is None else ["weights", path, storage.nbytes()]
        known = storages[storage._cdata] = _Storage(tensor, encoder.emit(*step))
    return known


def _close_all(encoder: Encoder, storages: Iterable[_Storage]) -> None:
    for storage in storages:
        _close(encoder, storage)


def _close(encoder: Encoder, storage: _Storage) -> None:
    """State the buffer of a storage, now that all tensors in it are known."""
    step = encoder.nodes[storage.number]
    if step[0] == "weights":
        return
    tensor = storage.tensor
    if len(storage.steps) == 1 and not _is_dense(storage.steps[0][1]):
        # A column of a large matrix, that nobody shares: the numbers between are left out.
        said, shown = storage.steps[0]
        tensor = shown.contiguous()
        said[4:6] = [list(tensor.stride()), 0]
        first, last = 0, tensor.numel() * tensor.itemsize
    else:
        spans = [_span(shown) for _, shown in storage.steps]
        # From a whole number of everybody's elements on.
        first = min((start for start, _ in spans)) // 64 * 64
        last = max(end for _, end in spans)
        for said, shown in storage.steps:
            said[5] -= first // shown.itemsize
    place = encoder.kept.get("model_device")
    where = "model" if place is not None and tensor.device == place and place.type != "cpu" else str(tensor.device)
    size = max(last - first, 0)
    if tensor.device.type == "meta":
        step += [None, size, where]
        return
    step += [encoder.buffer(_bytes(tensor, first, size)), size, where]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of its storage that a tensor shows, and the one after the last."""
    start = int(tensor.storage_offset())
    length = extent(tensor.shape, tensor.stride())
    return start * tensor.itemsize, (start + length) * tensor.itemsize


def extent(shape: Any, stride: Any) -> int:
    """Return how many elements there are from the first to the last that a tensor shows."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride))


def _is_dense(tensor: torch.Tensor) -> bool:
    start, end = _span(tensor)
    return end - start <= 2 * tensor.numel() * tensor.itemsize


#: Up to as many bytes are copied: that takes less than making a view of them.
_SMALL = 1 << 16


def _bytes(tensor: torch.Tensor, first: int, size: int) -> Buffer:
    if not size:
        return b""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    part = whole[first : first + size].cpu()
    if size <= _SMALL:
        return ctypes.string_at(part.data_ptr(), size)
    # Without numpy, which need not be there, and without a copy.
    found = (ctypes.c_char * size).from_address(part.data_ptr())
    found._tensor = part  # type: ignore[attr-defined]  # the memory stays as long as the view of it
    return memoryview(found).cast("B")


# -- over there ------------------------------------------------------------------------------------------------------


@makes("storage", safe=True)
def _make_storage(decoder: Decoder, step: list[Any]) -> torch.UntypedStorage:
    _, buffer, size, where = step
    if buffer is None:
        return _empty(size, "meta")
    data = decoder.buffer(buffer)
    if len(data) != size:
        raise WireError(f"a storage of {size} bytes has {len(data)}")
    if not size:
        return _empty(0, "cpu")
    own = data if decoder.kept.get("mapped") else bytearray(data)
    numbers = torch.frombuffer(own, dtype=torch.uint8)
    return numbers.to(_device(decoder, where)).untyped_storage()


def _empty(size: int, device: str) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()


def _device(decoder: Decoder, where: str) -> torch.device:
    if not decoder.trusted:
        return torch.device("cpu")
    if where == "model":
        asked = decoder.kept.get("model_device")
        place: torch.device = (None if asked is None else asked()) or torch.device("cpu")
        return torch.device("cpu") if place.type == "meta" else place
    wanted = torch.device(where)
    if wanted.type == "cuda":
        return wanted if (wanted.index or 0) < torch.cuda.device_count() else torch.device("cpu")
    if wanted.type == "mps":
        return wanted if torch.backends.mps.is_available() else torch.device("cpu")
    return wanted if wanted.type in ("cpu", "meta") else torch.device("cpu")


@makes("weights")
def _make_weights(decoder: Decoder, step: list[Any]) -> torch.UntypedStorage:
    _, path, size = step
    storage: torch.UntypedStorage = decoder.kept["weight"](path).untyped_storage()
    if storage.nbytes() != size:
        raise WireError(
            f"a view of `{path}` was sent, which has {size} bytes there and {storage.nbytes()} here: the two models are not "
            "of one type. Compute the view inside the block"
        )
    return storage


@makes("tensor", safe=True)
def _make_tensor(decoder: Decoder, step: list[Any]) -> torch.Tensor:
    _, number, said, shape, stride, offset, grad = step
    storage, dtype = decoder.value([number]), DTYPES[said]
    if not isinstance(storage, torch.UntypedStorage) or len(shape) != len(stride) or len(shape) > 64:
        raise WireError("a tensor is not stated as it should be")
    if any(type(one) is not int or one < 0 for one in (*shape, *stride, offset)):
        raise WireError("the shape of a tensor is not stated in whole numbers")
    size = extent(shape, stride)
    if size and (offset + size) * dtype.itemsize > storage.nbytes():
        raise WireError(f"a tensor of shape {shape} is larger than the bytes that came with it")
    made = torch.empty(0, dtype=dtype, device=storage.device)
    made.set_(storage, offset if size else 0, tuple(shape), tuple(stride))
    return made.requires_grad_() if grad is True else made


@makes("sparse", safe=True)
def _make_sparse(decoder: Decoder, step: list[Any]) -> torch.Tensor:
    _, parts, shape, coalesced = step
    indices, values = decoder.values(parts)
    if not all(type(one) is torch.Tensor and one.is_contiguous() for one in (indices, values)):
        raise WireError("the parts of a sparse tensor are not stated as they should be")
    decoder.allowance.spend(indices.numel() + values.numel())  # each is looked at
    made = torch.sparse_coo_tensor(indices, values, tuple(shape), check_invariants=True)
    return made._coalesced_(coalesced is True)


@makes("parameter", safe=True)
def _make_parameter(decoder: Decoder, step: list[Any]) -> torch.nn.Parameter:
    data = decoder.value(step[1])
    if type(data) is not torch.Tensor:
        raise WireError("a parameter is made of something else than a tensor")
    return torch.nn.Parameter(data, requires_grad=step[2] is True)


@writes(torch.Generator)
def _write_generator(encoder: Encoder, generator: torch.Generator) -> int:
    return encoder.emit("generator", str(generator.device), encoder.value(generator.get_state()))


@makes("generator")
def _make_generator(decoder: Decoder, step: list[Any]) -> torch.Generator:
    made = torch.Generator(_device(decoder, step[1]))
    made.set_state(decoder.value(step[2]))
    return made
