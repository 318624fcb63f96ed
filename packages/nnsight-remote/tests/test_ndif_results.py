"""What NDIF sends back is data: nothing in it is run here."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from nnsight import WireError, register
from nnsight_remote.client.errors import ProtocolError
from nnsight_remote.fabric.objects import is_possible
from nnsight_remote.fabric.response import read
from nnsight_remote.fabric.results import decode


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return open, (str(self.place), "w")


@pytest.mark.parametrize("compressed", [False, True])
def test_tensors_and_plain_values_come_back(compressed: bool) -> None:
    values = {
        "tensor": torch.arange(6).reshape(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "array": np.arange(3.0),
        "number": np.float32(2.5),
        "nested": [1, ("two", {3: None}), {4, 5}, 6j, slice(1, 2), range(3), b"seven", frozenset([8])],
        "ordered": collections.OrderedDict(a=torch.Size([2])),
        "dtype": torch.float16,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    data = saved(values)
    found = decode(zstandard.ZstdCompressor().compress(data) if compressed else data)
    assert found.keys() == values.keys()
    assert torch.equal(found["tensor"], values["tensor"]) and found["half"].dtype == torch.bfloat16
    assert np.array_equal(found["array"], values["array"]) and found["number"] == np.float32(2.5)
    assert found["nested"] == values["nested"] and found["ordered"] == values["ordered"]
    assert found["dtype"] == torch.float16 and torch.equal(found["parameter"], torch.ones(2))


@pytest.mark.skipif(not is_possible(), reason="this torch has no way to say it")
@pytest.mark.parametrize("place", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_another_numpy_come_back(place: bytes) -> None:
    file, made = io.BytesIO(saved({"array": np.arange(3.0), "number": np.float32(2.5)})), io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(made, "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy" in data
                data = data.replace(b"cnumpy._core.multiarray", b"c" + place).replace(
                    b"cnumpy.core.multiarray", b"c" + place
                )
            other.writestr(name, data)
    found = decode(made.getvalue())
    assert np.array_equal(found["array"], np.arange(3.0)) and found["number"] == np.float32(2.5)


def test_a_stream_that_does_not_say_how_large_it_will_be_is_read() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    data = packer.compress(saved({"one": 1})) + packer.flush()
    assert decode(data) == {"one": 1}


def test_tensors_that_share_numbers_still_do() -> None:
    one = torch.zeros(3)
    found = decode(saved({"one": one, "same": one[1:]}))
    found["one"][1] = 5
    assert found["same"][0] == 5


@pytest.mark.parametrize("where", ["value", "key", "nested"])
def test_a_hostile_result_runs_nothing(where: str, tmp_path: Path) -> None:
    place = tmp_path / "made"
    evil = Hostile(place)
    values = {"value": {"x": evil}, "key": {evil: 1}, "nested": {"x": [({"y": evil},)]}}[where]
    with pytest.raises(WireError, match="neither a tensor nor a plain value"):
        decode(saved(values))
    assert not place.exists()


def test_a_host_that_is_trusted_may_send_objects(tmp_path: Path) -> None:
    place = tmp_path / "made"
    decode(saved({"x": Hostile(place)}), trusted=True)["x"].close()
    assert place.exists()


@pytest.mark.parametrize("path", ["builtins eval", "os system", "torch load", "subprocess Popen", "builtins getattr"])
def test_no_name_that_could_do_harm_is_known(path: str, tmp_path: Path) -> None:
    module, name = path.split()
    body = b"\x80\x04" + f"(dS'x'\nc{module}\n{name}\n(S'1'\ntRs.".encode()
    file = io.BytesIO(saved({}))
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, body if name.endswith("data.pkl") else data)
    with pytest.raises((WireError, ProtocolError)):
        decode(made.getvalue())


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"\x28\xb5\x2f\xfdnonsense", pickle.dumps({"x": 1}), b"PK\x03\x04" + b"\0" * 40]
)
def test_what_is_no_result_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def test_a_result_is_a_table_by_name() -> None:
    for value in ([1], {1: 2}, torch.ones(1)):
        with pytest.raises(ProtocolError, match="no table"):
            decode(saved(value))


def test_a_message_with_anything_but_plain_values_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "made"
    for value in (Hostile(place), torch.ones(1), Path("x")):
        with pytest.raises(ProtocolError, match="not understood"):
            read(saved({"id": "1", "status": "COMPLETED", "data": value}))
    assert not place.exists()


@pytest.mark.parametrize(
    "message",
    ["", "{}", "[]", '{"id": 1, "status": "RUNNING"}', '{"id": "1", "status": "DANCING"}', "\x00", b"", b"PK\x05\x06"],
)
def test_a_message_that_is_none_is_refused(message: str | bytes) -> None:
    with pytest.raises(ProtocolError, match="not understood"):
        read(message)


class Output(collections.OrderedDict):  # type: ignore[type-arg]
    """As outputs of transformers are: a dictionary that is pickled with its parts as arguments."""

    def __init__(self, *given: Any) -> None:
        ran.append("output")
        super().__init__()

    def __reduce__(self) -> Any:
        made, _, *rest = super().__reduce__()  # type: ignore[misc]
        return made, (1, 2), *rest


class Cache:
    """As caches are: an object with attributes, one of which is what holds it."""

    def __init__(self) -> None:
        ran.append("cache")

    def __setstate__(self, state: Any) -> None:
        ran.append("state")


ran: list[str] = []


@pytest.mark.skipif(not is_possible(), reason="this torch has no way to say it")
def test_objects_of_registered_classes_are_filled_without_asking_them() -> None:
    register(Output)
    register(Cache)
    output, cache = Output(), Cache()
    output["logits"] = torch.ones(2)
    output.extra = [cache]
    cache.layers, cache.owner = (torch.zeros(1), {"again": cache}), output
    data = saved({"output": output, "cache": cache})
    del ran[:]
    found = decode(data)
    assert ran == []
    assert type(found["output"]) is Output and type(found["cache"]) is Cache
    assert torch.equal(found["output"]["logits"], torch.ones(2)) and found["output"].extra == [found["cache"]]
    assert found["cache"].owner is found["output"] and found["cache"].layers[1]["again"] is found["cache"]


class Unregistered:
    pass


def test_relies_on_what_the_reader_of_torch_says_that_it_takes() -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert is_possible() or version < (2, 7)


def test_objects_of_other_classes_are_refused() -> None:
    with pytest.raises(WireError, match="Unregistered"):
        decode(saved({"x": Unregistered()}))
