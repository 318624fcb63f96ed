"""Bytes that are meant to hurt: read, or refused with a `WireError`, soon, in little memory, and no code runs for results.

`NNSIGHT_FUZZ` says how many cases each property tries; `nox -s fuzz` tries thousands.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import functools
import json
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import nnsight
from nnsight import NNsight, NNsightWarning, WireError
from nnsight._core.wire import Encoder
from nnsight._core.wire.records import _registered
from nnsight.plugin import (
    decode_error,
    decode_message,
    decode_request,
    decode_results,
    encode_error,
    encode_message,
    encode_request,
    encode_results,
)
from nnsight.testing.models import MLP, seeded

CASES = int(os.environ.get("NNSIGHT_FUZZ", "25"))
X = torch.linspace(-1, 1, 12).reshape(3, 4)
PRIME = 2**61 - 1  # Python's hash of a number is what remains of it by this


def message(steps: list[Any], buffers: tuple[bytes, ...] = (), kind: str = "results", root: Any = None) -> bytes:
    encoder = Encoder(results=True)
    encoder.nodes, encoder.buffers = steps, list(buffers)
    return encoder.pack(kind, [len(steps) - 1] if root is None else root, {"message": "value"})


def doubled(times: int) -> list[Any]:
    """Steps for a tuple of two references to a tuple of two references ..."""
    return [["tuple", []], *(["tuple", [[n], [n]]] for n in range(times))]


def nested(deep: int) -> list[Any]:
    return [["tuple", []], *(["tuple", [[n]]] for n in range(deep))]


EIGHT = b"\0" * 8
ONE = ["tensor", 0, "int64", [1, 10**11], [0, 0], 0, False]
HURTING: dict[str, Any] = {
    "a set of a tuple that doubles": lambda: message([*doubled(60), ["set", [[60]]], ["dict", ["a", [61]]]]),
    "a key that doubles": lambda: message([*doubled(60), ["dict", [[60], 1]]]),
    "a frozenset of a tuple that doubles": lambda: message([*doubled(60), ["frozenset", [[60]]]]),
    "a set of a tuple that is deeper than the stack": lambda: message([*nested(30_000), ["set", [[30_000]]]]),
    "a key that is deeper than the stack": lambda: message([*nested(30_000), ["dict", [[30_000], 1]]]),
    "an OrderedDict of one": lambda: message([*nested(30_000), ["OrderedDict", [[30_000], 1]]]),
    "a record of one": lambda: message([*nested(30_000), ["record", "a:b", "dict", [], [[], [[30_000], 1]]]]),
    "numbers of one hash": lambda: message(
        [*(["int", hex(PRIME * n)] for n in range(20_000)), ["set", [[n] for n in range(20_000)]]]
    ),
    "indices that are one number": lambda: message(
        [
            ["storage", 0, 8, "cpu"],
            ONE,
            ["storage", 1, 8, "cpu"],
            ["tensor", 2, "float32", [10**11], [0], 0, False],
            ["sparse", [[1], [3]], [5], True],
        ],
        (EIGHT, EIGHT),
    ),
    "a buffer taken again and again": lambda: message([["bytes", 0]] * 2000, (bytes(1 << 20),)),
    "a cache of an endless visit": lambda: message(
        [["range", [0, 10**12, 1]], ["list", [[0]]], ["dict", ["p", [1]]], ["cache", "model", [2]]]
    ),
    "a cache that looks through a range": lambda: message(
        [
            ["range", [0, 10**12, 1]],
            ["tuple", [None, None, [0]]],
            ["list", [[1]]],
            ["dict", ["p", [2]]],
            ["cache", "model", [3]],
        ]
    ),
    "an array of one text of two gigabytes": lambda: message([["array", "U500000000", [0], "C", 0]], (b"",)),
    "a type of numpy's that is a program": lambda: message([["array", ["i4", "O"], [0], "C", 0]], (b"",)),
    "a root that is deep": lambda: message([["dict", []]], root=json.loads("[" * 500 + "]" * 500)),
    "a step whose kind is deep": lambda: message([[json.loads("[" * 500 + "]" * 500)]]),
    "a name that is no text": lambda: message([["dict", [1, 2]]]),
    "results that are of a class": lambda: message([["record", "a:b", "dict", [], [[], ["a", 1]]]]),
    "a tensor of more elements than there are numbers": lambda: message(
        [["storage", 0, 8, "cpu"], ["tensor", 0, "float32", [2**40, 2**40], [0, 0], 0, False]], (EIGHT,)
    ),
    "a tensor behind its storage": lambda: message(
        [["storage", 0, 8, "cpu"], ["tensor", 0, "float32", [1], [1], 2**61, False]], (EIGHT,)
    ),
    "a range of a registered thing": lambda: message(
        [["record", f"{__name__}:Canary", "object", [], [[], []]], ["range", [[0], 1, 1]]]
    ),
}


#: Without numpy these are refused because it is missing, which Python finds out by looking into folders.
OF_NUMPY = {"an array of one text of two gigabytes", "a type of numpy's that is a program"}


@pytest.mark.parametrize("what", HURTING)
@pytest.mark.timeout(60)
def test_what_is_meant_to_hurt_is_refused_soon(what: str, canary: None) -> None:
    if what in OF_NUMPY:
        pytest.importorskip("numpy")
    data = HURTING[what]()
    with no_code(), soon(), pytest.raises(WireError) as caught:
        decode_results(data)
    assert not isinstance(caught.value.__cause__, MemoryError) and len(str(caught.value)) < 5000


@pytest.mark.timeout(60)
def test_an_error_whose_arguments_would_fill_the_memory_when_shown_is_told_without_them() -> None:
    data = message(
        [*doubled(60), ["error", ["builtins:ValueError"], "what it said", [[60]], [], [], "", None]], kind="error"
    )
    with soon():
        error = decode_error(data)
        assert isinstance(error, nnsight.RemoteError) and "what it said" in str(error)


def test_buffers_that_lie_in_each_other_are_refused() -> None:
    data = message([["dict", []]], (EIGHT, EIGHT))
    document = document_of(data)
    document["buffers"] = [[0, 8], [4, 8]]
    with pytest.raises(WireError, match="lies in another"):
        decode_results(forged(data, document))


def test_keys_that_people_have_are_no_matter_of_price() -> None:
    grid = {(a, b, c): -a for a in range(-20, 20) for b in range(-20, 20) for c in (-1, -2, 2**70)}
    value = {
        "grid": grid,
        "set": set(range(-50_000, 50_000)),
        "deep": {((((1,),),),): frozenset({frozenset({(1, 2)})})},
    }
    assert decode_results(encode_results(value)) == value


def test_a_record_that_holds_itself_can_be_shown() -> None:
    class Own:
        pass

    own = Own()
    own.itself = own
    assert "Record[...]" in repr(decode_results(encode_results({"a": own}))["a"])


def test_names_that_the_block_does_not_have_are_not_bound() -> None:
    class Lying:
        def run(self, request: Any) -> dict[str, Any]:
            return {"out": 1, "key": "stolen", "__builtins__": {}, "X": 2}

    key = "secret"
    model = NNsight(seeded(MLP))
    with pytest.warns(NNsightWarning, match="'X', '__builtins__', 'key'"):
        with model.trace(torch.ones(1, 4), backend=Lying()):
            out = model.output.save()
    assert out == 1 and key == "secret" and isinstance(X, torch.Tensor)


# -- changed in every way --------------------------------------------------------------------------------------------


class Canary:
    """Registered, so that results may hold it; whatever of it is called is seen."""

    called: list[str] = []

    def __init__(self, *args: Any) -> None:
        Canary.called.append("__init__")

    def __new__(cls, *args: Any) -> Any:
        Canary.called.append("__new__")
        return object.__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        Canary.called.append("__setattr__")

    def __setstate__(self, state: Any) -> None:
        Canary.called.append("__setstate__")

    def __iter__(self) -> Any:
        Canary.called.append("__iter__")
        return iter(())

    def __index__(self) -> int:
        Canary.called.append("__index__")
        return 1

    def items(self) -> Any:
        Canary.called.append("items")
        return []

    @property
    def shown(self) -> int:
        Canary.called.append("shown")
        return 1


class CanaryDict(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        Canary.called.append("__setitem__")

    def items(self) -> Any:
        Canary.called.append("items")
        return []


class Colour(enum.Enum):
    RED = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        Canary.called.append("_missing_")


class Flags(enum.IntFlag):
    A = 1
    B = 2


Pair = namedtuple("Pair", "one other")


@dataclasses.dataclass(frozen=True)
class Frozen:
    inside: Any


@pytest.fixture
def canary() -> Any:
    before = list(_registered)
    for cls in (Canary, CanaryDict, Colour, Flags, Pair, Frozen):
        nnsight.register(cls)
    yield
    _registered[:] = before


_watched: list[str] | None = None


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event.partition(".")[0] in (
        *("import", "exec", "compile", "open", "os", "subprocess", "socket", "ctypes", "pickle", "marshal", "code"),
    ):
        _watched.append(f"{event} {args!r:.100}")


@functools.cache
def _listen() -> None:
    # Not before it is needed: a hook cannot be taken off, and with one CPython 3.11 refuses to install the trace functions of
    # two threads at once.
    sys.addaudithook(_hear)


class no_code:
    """See that nothing is imported, compiled, opened, or asked of the registered classes."""

    def __enter__(self) -> None:
        global _watched
        _listen()
        _watched = []
        Canary.called.clear()

    def __exit__(self, *error: Any) -> None:
        global _watched
        heard, _watched = _watched, None
        assert not heard and not Canary.called, (heard, Canary.called)


class soon:
    """See that it takes no more than some seconds of this thread."""

    def __enter__(self) -> None:
        self.began = time.thread_time()

    def __exit__(self, *error: Any) -> None:
        assert time.thread_time() - self.began < 10


def forged(data: bytes, document: Any = None, body: bytes | None = None) -> bytes:
    """Give bytes with another document, or other bytes behind the header, and a checksum that fits."""
    [length] = struct.unpack("<Q", data[16:24])
    rest = data[24:]
    if document is not None:
        text = json.dumps(document).encode()
        rest = text + bytes(-(24 + len(text)) % 64) + data[24 + length + -(24 + length) % 64 :]
        length = len(text)
    rest = rest if body is None else body
    return data[:8] + struct.pack("<HHIQ", 1, 0, zlib.crc32(rest), length) + rest


def document_of(data: bytes) -> Any:
    [length] = struct.unpack("<Q", data[16:24])
    return json.loads(data[24 : 24 + length])


def everything() -> dict[str, Any]:
    whole = torch.arange(24.0).reshape(4, 6)
    cycle: list[Any] = [1, {"k": (1, 2)}]
    cycle.append(cycle)
    canary = object.__new__(Canary)
    vars(canary)["shown"] = whole
    found = {
        "tensors": [
            whole,
            whole.t(),
            whole[1],
            whole.view(torch.int32),
            X.bool(),
            X.to_sparse(),
            torch.nn.Parameter(X),
        ],
        "numbers": (1, -(10**30), 0.5, float("inf"), 3 + 4j, Decimal("1.5"), Fraction(1, 3)),
        "bytes": [b"abc", bytearray(b"x"), "tüx\ud800"],
        "containers": [cycle, {1, 2}, frozenset("ab"), {(1, 2): 3}, OrderedDict(a=1), Counter("aab"), deque([1], 3)],
        "others": [defaultdict(list, a=[1]), range(1, 9, 2), slice(1, None), ..., int, torch.float16, torch.Size([2])],
        "times": [datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), datetime.date(2024, 1, 1)],
        "objects": [canary, CanaryDict(a=1), Colour.RED, Flags.A | Flags.B, Pair(1, [2]), {Frozen((1,)): 1}, Colour],
    }
    numpy = pytest.importorskip("numpy") if "numpy" in sys.modules else None
    if numpy is not None:
        found["arrays"] = [numpy.arange(6).reshape(2, 3), numpy.float32(1.5), numpy.array(["a", "bc"])]
    model = NNsight(seeded(MLP))
    with model.trace(X) as tracer:
        found["cache"] = tracer.cache(include_inputs=True)
    return found


SCALE = 2.0


class Base:
    def value(self, x: Any) -> Any:
        return x * SCALE


class Heir(Base):
    table = {"a": [1, 2]}

    def value(self, x: Any) -> Any:
        return super().value(x) + 1


def some_request() -> tuple[bytes, NNsight]:
    class Catch:
        data = b""

        def run(self, request: Any) -> dict[str, Any]:
            self.data = encode_request(request)
            return {}

    catch, model = Catch(), NNsight(seeded(MLP))
    weight, layer, key = torch.ones(8), model.layers[1], {"k": [X, (1, b"x")], "f": lambda x: x * SCALE}
    with model.edit() as edited:
        model.layers[0].output = model.layers[0].output * 2
    with edited.trace(X, backend=catch) as tracer:
        hidden = key["f"](Heir().value(edited.layers[0].output)) * weight
        layer.output.save()
    return catch.data, model


ODD = [
    *(None, True, -1, 0, 1, 2, 7, 64, 10**9, 2**31, 2**62, 2**64, -(2**63), 10**30, 1.5, -0.0, 1e308, "", "x", "a.b.c"),
    *(
        "torch.float32",
        "float32",
        "cpu",
        "cuda:9",
        "meta",
        "tuple",
        "dict",
        "object",
        "builtins:ValueError",
        "\ud800\0",
    ),
    *(
        f"{__name__}:Canary",
        f"{__name__}:CanaryDict",
        f"{__name__}:Colour",
        "os:environ",
        "a:b",
        "__class__",
        "__dict__",
    ),
    *([], [0], [1], [2], [5], [-1], [[0]], [None], {}, {"a": 1}, {"attributes": [0]}, [10**9], [[0], [0]], "0x1" * 9),
]


def places(value: Any, above: Any = None, at: Any = None) -> list[tuple[Any, Any]]:
    """Give every part of a JSON value, as what it lies in and its key there."""
    found = [] if above is None else [(above, at)]
    inside = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, part in list(inside):
        found += places(part, value, key)
    return found


def changed(document: Any, chance: random.Random) -> Any:
    """Change a document in a few places: replaced, copied from elsewhere, removed, repeated, moved by a little."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 2, 4, 9))):
        known = places(document)
        above, at = chance.choice(known)
        other, there = chance.choice(known)
        way = chance.randrange(7)
        if way < 2:
            above[at] = chance.choice(ODD)
        elif way == 2:
            above[at] = copy.deepcopy(other[there])
        elif way == 3:
            del above[at]
        elif way == 4 and isinstance(above, list):
            above.insert(at, copy.deepcopy(other[there]))
        elif way == 5 and type(above[at]) is int:
            above[at] += chance.choice((-1, 1, 2, 64, 1 << 33))
        elif isinstance(above[at], str):
            text = above[at]
            cut = chance.randrange(len(text) + 1)
            above[at] = text[:cut] + chance.choice(("", "\0", "(", "\n", "é", "._", ":", text)) + text[cut + 1 :]
    return document


def flipped(data: bytes, chance: random.Random) -> bytes:
    """Change bytes behind the header, and let the checksum fit."""
    body = bytearray(data[24:])
    for _ in range(chance.choice((1, 2, 5))):
        at = chance.randrange(len(body))
        body[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
    return forged(data, body=bytes(body[: chance.choice((len(body), chance.randrange(len(body) + 1)))]))


READERS: dict[str, Any] = {"results": decode_results, "error": decode_error, "message": decode_message}


@pytest.fixture(scope="module")
def samples() -> dict[str, Any]:
    try:
        raise ValueError("a", 3, [1, {"k": (2,)}]) from KeyError("k")
    except ValueError as error:
        failed = encode_error(error)
    found = {"results": encode_results(everything()), "error": failed, "message": encode_message("value", everything())}
    for kind, data in found.items():
        READERS[kind](data)  # imports what is imported once
    return {kind: (data, document_of(data)) for kind, data in found.items()}


FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize="NNSIGHT_FUZZ" not in os.environ,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", READERS)
@given(seed=st.integers(0, 2**60))
@FUZZ
def test_what_comes_back_is_read_or_refused_however_it_was_changed(
    kind: str, samples: Any, canary: None, seed: int
) -> None:
    (data, document), chance = samples[kind], random.Random(seed)
    hurt = flipped(data, chance) if chance.random() < 0.2 else forged(data, changed(document, chance))
    with no_code(), soon():
        try:
            READERS[kind](hurt)
        except WireError as error:
            assert not isinstance(error.__cause__, MemoryError), error
            assert len(str(error)) < 10_000


@pytest.fixture(scope="module")
def request_there() -> tuple[bytes, NNsight]:
    return some_request()


@given(seed=st.integers(0, 2**60))
@FUZZ
def test_a_request_is_read_or_refused_however_it_was_changed(request_there: Any, seed: int) -> None:
    (data, model), chance = request_there, random.Random(seed)
    hurt = flipped(data, chance) if chance.random() < 0.2 else forged(data, changed(document_of(data), chance))
    with soon():
        try:
            decode_request(hurt, model)
        except WireError as error:
            assert len(str(error)) < 10_000
    assert not model.__dict__["_edits"], "what came for one block stayed on the model"
