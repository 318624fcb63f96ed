"""Programs that nobody wrote go over the wire and compute the same; bytes that nobody sent are refused."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib

import pytest
import torch
from block_contexts import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnsight import NNsight, WireError
from nnsight._core.wire import Decoder, Encoder
from nnsight.plugin import decode_request, decode_results, encode_request, encode_results
from nnsight.testing.models import MLP, seeded

settings.register_profile("wire", deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
X = torch.linspace(-1, 1, 12).reshape(3, 4)


# -- programs --------------------------------------------------------------------------------------------------------


@st.composite
def expressions(draw, names, calls=(), depth=2):
    """An expression in whole numbers of the given names, which may call the given functions of one argument."""
    inner = expressions(names, calls, depth - 1) if depth else None
    forms = ["constant", "name"] + (["operation", "choice", "lambda", "sum", "text", "walrus"] if depth else [])
    forms += ["call"] if calls and depth else []
    form = draw(st.sampled_from(forms))
    if form == "constant":
        return str(draw(st.integers(-9, 9)))
    if form == "name":
        return draw(st.sampled_from(names))
    if form == "operation":
        return f"({draw(inner)} {draw(st.sampled_from(['+', '-', '*', '&', '^']))} {draw(inner)})"
    if form == "choice":
        return f"({draw(inner)} if {draw(inner)} < {draw(inner)} else {draw(inner)})"
    if form == "lambda":
        more = expressions([*names, "p"], calls, depth - 1)
        return f"(lambda p, q={draw(inner)}: {draw(more)} + q)({draw(inner)})"
    if form == "sum":
        more = expressions([*names, "i"], calls, depth - 1)
        return f"sum([{draw(more)} for i in range({draw(st.integers(0, 3))})])"
    if form == "text":
        return "len(f'{" + draw(st.sampled_from(names)) + " * 100}')"
    if form == "walrus":
        return f"(w := {draw(inner)}) + w"
    return f"{draw(st.sampled_from(list(calls)))}({draw(inner)} % 7)"


@st.composite
def programs(draw):
    """A module of constants, functions, classes and closures; `everything(n)` uses all of it."""
    constants = [f"K{number}" for number in range(draw(st.integers(1, 3)))]
    lines = [f"{name} = {draw(st.integers(-5, 5))}" for name in constants]
    lines += ["def deco(f):", "    def inner(*args):", f"        return f(*args) + {constants[0]}", "    return inner"]
    calls: list[str] = []
    for number in range(draw(st.integers(1, 4))):
        kind, name = draw(st.sampled_from(["function", "closure", "class", "lambda"])), f"f{number}"
        value = expressions(["n", *constants], tuple(calls))
        if kind == "function":
            lines += ["@deco"] * draw(st.booleans())
            lines += [f"def {name}(n, d={draw(st.integers(0, 3))}):", f"    r = {draw(value)}", "    return r + d"]
        elif kind == "lambda":
            other = expressions(["n", *constants], tuple(calls), 1)
            lines += [f"{name}, g{number} = lambda n: {draw(value)}, lambda n: {draw(other)}"]
            calls.append(f"g{number}")
        elif kind == "closure":
            inner = expressions(["n", "c", *constants], tuple(calls))
            lines += [
                f"def make{number}(c):",
                f"    def {name}(n):",
                "        nonlocal c",
                f"        c = ({draw(inner)}) % 100",
            ]
            lines += ["        return c", f"    return {name}", f"{name} = make{number}({draw(st.integers(-5, 5))})"]
        else:
            lines += [f"class A{number}:", f"    table = [{draw(st.integers(0, 5))}]", "    def __init__(self, n):"]
            lines += ["        self.__n = n", "    @property", "    def n(self):", "        return self.__n"]
            lines += ["    def value(self, n):", f"        return {draw(value)} + self.n + A{number}.table[0]"]
            lines += [f"class B{number}(A{number}):", "    def value(self, n):", "        return super().value(n) * 2"]
            lines += [f"def {name}(n):", f"    return B{number}(n).value(n)"]
        calls.append(name)
    lines += ["def everything(n):", f"    return [{', '.join(f'{name}(n)' for name in calls)}]"]
    return "\n".join(lines) + "\n"


@given(programs())
@settings(settings.get_profile("wire"))
def test_programs_compute_the_same_there(text):
    everything = run(text)["everything"]
    encoder = Encoder()
    data = encoder.pack("request", encoder.value(everything), {})
    arrived = Decoder(data, "request", trusted=True).read()
    assert [arrived(n) for n in (0, 1, 5)] == [everything(n) for n in (0, 1, 5)]


class Wire:
    def run(self, request):
        there = decode_request(encode_request(request), NNsight(copy.deepcopy(request.node._root._module)))
        return decode_results(encode_results(there.replay()))


@st.composite
def bodies(draw):
    """A program, and a block on an MLP that uses it; `BACKEND` stands for where it runs."""
    text = draw(programs())
    names = ["K0", "outer"]
    body = []
    for layer in range(3):
        value = draw(expressions(names, ("f0",)))
        site = f"model.layers[{layer}].output"
        forms = ["read", "write", "loop", "branch", "define"]
        form = draw(st.sampled_from(forms))
        if form == "read":
            body += [f"kept.append({site} * ({value} % 5))"]
        elif form == "write":
            body += [f"{site}[:, {draw(st.integers(0, 7))}] = {value} % 3"]
        elif form == "loop":
            body += [
                f"for x{layer} in range(3):",
                f"    kept.append(x{layer} + {value})",
                f"h = {site}",
                "kept.append(h.sum())",
            ]
        elif form == "branch":
            body += [f"if {value} > 0:", f"    kept.append({site}.mean())", "else:", "    kept.append(-1)"]
        else:
            body += [f"def local(v):\n        return v + ({value}) % 4 + outer", f"kept.append(local({site}))"]
    block = "\n".join("        " + line.replace("\n", "\n    ") for line in ["kept = nnsight.save([])", *body])
    head = "def use(model, X, outer, backend):\n    with model.trace(X, backend=backend) as tracer:\n"
    return f"{text}{head}{block}\n    return kept\n"


@given(bodies(), st.integers(-3, 3))
@settings(settings.get_profile("wire"), max_examples=15)
def test_blocks_compute_the_same_there(text, outer):
    import nnsight

    model = NNsight(seeded(MLP))
    # Each from the beginning: a closure that was called is another one.
    here, there = (run(text, nnsight=nnsight)["use"](model, X, outer, backend) for backend in (None, Wire()))
    assert len(here) == len(there)
    for one, other in zip(here, there):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


# -- values ----------------------------------------------------------------------------------------------------------

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner)
        | st.frozensets(keys).map(lambda k: [k, set(k)])
    ),
    max_leaves=20,
)


def same(one, other):
    """Whether two values are equal, and of equal types all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    return one == other and (isinstance(one, (set, frozenset)) or repr(one) == repr(other))


@given(values)
@settings(settings.get_profile("wire"))
def test_values_come_back_as_they_are(value):
    arrived = decode_results(encode_results({"value": value}))["value"]
    assert same(arrived, value)


# -- bytes that nobody sent ------------------------------------------------------------------------------------------

ODD = [None, -1, 0, 1, 10**9, 2**62, 1.5, "", "x", "torch.float32", True, [], [0], [-1], [[0]], {}, {"a": 1}, [10**9]]


def documents(value, change):
    """Give copies of a JSON value in each of which one part is `change`d."""
    if isinstance(value, list):
        for at in range(len(value)):
            yield [*value[:at], change(value[at]), *value[at + 1 :]]
            for inner in documents(value[at], change):
                yield [*value[:at], inner, *value[at + 1 :]]
    elif isinstance(value, dict):
        for key in value:
            yield {**value, key: change(value[key])}
            yield {other: kept for other, kept in value.items() if other != key}
            for inner in documents(value[key], change):
                yield {**value, key: inner}


def forged(data, document=None, body=None):
    """Give bytes with another document, or other bytes, and a checksum that fits."""
    [length] = struct.unpack("<Q", data[16:24])
    text = data[24 : 24 + length] if document is None else json.dumps(document).encode()
    rest = (
        data[24 + length :]
        if document is None
        else b"\0" * (-(24 + len(text)) % 64) + data[24 + length + -(24 + length) % 64 :]
    )
    body = text + rest if body is None else body
    return data[:8] + struct.pack("<HHIQ", 1, 0, zlib.crc32(body), len(text)) + body


def document_of(data):
    [length] = struct.unpack("<Q", data[16:24])
    return json.loads(data[24 : 24 + length])


def some_results():
    shared = torch.arange(6.0)
    shared_list = [1]
    shared_list.append(shared_list)
    return encode_results(
        {
            "a": shared,
            "b": shared.view(2, 3).t(),
            "c": {1: (2, b"x")},
            "d": {1, 2},
            "e": shared_list,
            "f": 10**30,
            "g": X.to_sparse(),
        }
    )


def some_request():
    class Catch:
        def run(self, request):
            self.data = encode_request(request)
            return {}

    weight = torch.ones(8)
    catch, model = Catch(), NNsight(seeded(MLP))
    scale = [lambda x: x * weight, {"k": X}]
    with model.trace(X, backend=catch) as tracer:
        hidden = scale[0](model.layers[0].output).save()
    return catch.data, model


def refused_or_read(read, data):
    try:
        read(data)
    except WireError:
        return True
    return False


@pytest.mark.parametrize("seed", range(8))
def test_results_with_any_part_of_the_document_changed_are_read_or_refused(seed):
    data, chance = some_results(), random.Random(seed)
    found = [
        refused_or_read(decode_results, forged(data, document))
        for document in documents(document_of(data), lambda old: chance.choice(ODD))
    ]
    assert len(found) > 100 and any(found)


@pytest.mark.parametrize("seed", range(8))
def test_requests_with_any_part_of_the_document_changed_are_read_or_refused(seed):
    (data, model), chance = some_request(), random.Random(seed)
    found = [
        refused_or_read(lambda forged: decode_request(forged, model), forged(data, document))
        for document in documents(document_of(data), lambda old: chance.choice(ODD))
    ]
    assert len(found) > 100 and any(found)


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_changed_cut_or_mixed_are_read_or_refused(seed):
    chance = random.Random(seed)
    whole = some_results()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        assert bytes(data) == whole or refused_or_read(decode_results, bytes(data))  # the checksum
        head = whole[:24]
        refused_or_read(
            decode_results, forged(head + bytes(data[24:]), body=bytes(data[24:])) if len(data) > 24 else b""
        )
        assert refused_or_read(decode_results, whole[: chance.randrange(len(whole))])


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b'{"a":' * 50_000, b"1" * 100_000, b"NaN", b"\xff", b"{}", b'{"kind":"results","buffers":[]}'],
)
def test_documents_that_are_meant_to_hurt_are_refused(text):
    data = b"nnswire\n" + struct.pack("<HHIQ", 1, 0, zlib.crc32(text), len(text)) + text
    with pytest.raises(WireError):
        decode_results(data)


@pytest.mark.parametrize(
    "steps",
    [
        [["tensor", 0, "float32", [10**12], [1], 0, False]],
        [
            ["storage", None, 10**15, "meta"],
            ["tensor", 0, "float32", [10**13], [1], 0, False],
            ["parameter", [1], True],
            ["tuple", [[9]]],
        ],
        [["storage", 0, 8, "cpu"], ["tensor", 0, "float32", [3], [1], 0, False]],
        [["storage", 0, 8, "cpu"], ["tensor", 0, "float32", [2], [-1], 1, False]],
        [["list", [[0]]]],
        [["import", "os", "system"]],
        [["call", [0], []]],
        [["record", "os:environ", "dict", [], [[], ["PATH", ""]]], ["fill", 0, [[], []]]],
        [["record", "builtins:dict", "object", [], [["__class__", 1], []]]],
        [["fill", 0, []]],
        [["unheard of"]],
        [[]],
        [3],
    ],
    ids=str,
)
def test_steps_that_are_meant_to_hurt_are_refused(steps):
    encoder = Encoder(results=True)
    encoder.nodes = steps
    encoder.buffers = [b"\0" * 8]
    with pytest.raises(WireError):
        decode_results(encoder.pack("results", [0], {}))
