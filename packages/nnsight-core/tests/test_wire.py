"""Blocks, values, results and errors that go through bytes; compared with the same where they stand."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import linecache
import math
import pathlib
import struct
import sys
import threading
import traceback
import uuid
import warnings

import pytest
import torch

import nnsight
from nnsight import NNsight, RemoteError, WireError
from nnsight._core.blocks.skip import Skipped
from nnsight._core.wire import records
from nnsight.plugin import (
    check_bytes,
    decode_error,
    decode_message,
    decode_request,
    decode_results,
    encode_error,
    encode_message,
    encode_request,
    encode_results,
    inspect_bytes,
)
from nnsight.testing import BackendSuite
from nnsight.testing.models import MLP, Transformer, seeded

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Wire:
    """Sends each block through bytes to a copy of the model, and what it saved or raised through bytes back."""

    def run(self, request):
        self.data = encode_request(request)
        there = decode_request(self.data, NNsight(copy.deepcopy(request.node._root._module)))
        try:
            saved = there.replay()
        except Exception as error:
            answer = encode_error(error)
            raise decode_error(answer) from None
        return decode_results(encode_results(saved))


@pytest.fixture
def model():
    return NNsight(seeded(MLP))


@pytest.fixture
def wire():
    return Wire()


def there(value):
    """Send a value as part of a request would be, and give what arrives."""

    class Catch:
        def run(self, request):
            again = decode_request(encode_request(request), NNsight(seeded(MLP)))
            self.value = again.body.outer["value"]
            return {}

    catch = Catch()
    with NNsight(seeded(MLP)).trace(X, backend=catch):
        value
    return catch.value


def back(value, **options):
    """Send a value as a result."""
    return decode_results(encode_results({"value": value}), **options)["value"]


class TestOverTheWire(BackendSuite):
    def make_backend(self):
        return Wire()


# -- blocks ----------------------------------------------------------------------------------------------------------


def test_a_one_line_block_is_small_however_deep_the_model(wire):
    model = NNsight(seeded(MLP, depth=32))
    with model.trace(X, backend=wire):
        hidden = model.layers[31].output.save()
    assert len(wire.data) < 1000
    with model.trace(X):
        here = model.layers[31].output
    assert torch.equal(hidden, here)


FACTOR = 3.0


def scaled(value):
    return value * FACTOR


def test_functions_of_the_module_and_closures_come_along(model, wire):
    shift = torch.ones(8)

    def moved(value):
        return scaled(value) + shift

    with model.trace(X, backend=wire):
        hidden = moved(model.layers[0].output).save()
    with model.trace(X):
        here = model.layers[0].output
    assert torch.equal(hidden, here * FACTOR + 1)


def test_only_names_that_are_used_travel(model, wire):
    big = torch.zeros(100_000)
    lock = threading.Lock()
    with model.trace(X, backend=wire):
        hidden = model.layers[0].output.save()
    assert len(wire.data) < 1500 and big is not lock


def test_a_value_of_the_run_before_that_is_not_read_stays_at_home(model, wire):
    hidden, step, other = torch.zeros(100_000), threading.Lock(), torch.zeros(100_000)
    with model.trace(X, backend=wire) as tracer:
        hidden = model.layers[0].output.save()
        if hidden.shape[0] > 1:
            other = hidden + 1
        else:
            other = hidden
        for step in range(2):
            other = other + step
        found = (other + hidden).save()
    assert len(wire.data) < 2000
    with model.trace(X):
        here = model.layers[0].output
    assert torch.allclose(found, here * 2 + 2, atol=1e-5)


def test_a_value_that_may_be_read_before_it_is_bound_travels(model, wire):
    best = torch.full((), -1.0)
    with model.trace(X, backend=wire):
        for layer in model.layers:
            value = layer.output.mean()
            best = torch.maximum(best, value)
        best.save()
    assert best > -1


def test_what_cannot_travel_is_named_with_the_way_to_it(model, wire):
    lock = threading.Lock()

    def inner(value):
        with lock:
            return value

    def outer(value):
        return inner(value)

    with pytest.raises(
        WireError, match=r"`outer` -> closure `inner` -> closure `lock`: a lock .* make one in the block"
    ):
        with model.trace(X, backend=wire):
            hidden = outer(model.layers[0].output)


def test_weights_and_views_of_them_go_by_path(model, wire):
    weight = model.layers[0].weight
    turned = weight.t()[:3]
    module = model._module.head
    with model.trace(X, backend=wire):
        same = nnsight.save(weight + 0)
        view = nnsight.save(turned + 0)
        hidden = module(model.layers[0].output).save()
    assert len(wire.data) < 1800
    assert torch.equal(same, weight) and torch.equal(view, turned)
    with model.trace(X):
        here = model.layers[0].output
    assert torch.equal(hidden, module(here))


def test_operations_and_methods_of_the_model_go_by_path(wire):
    model = NNsight(seeded(Transformer))
    ids = torch.tensor([[1, 2, 3]])
    inside = model.layers[0].source
    part, layers, generate = inside.self_proj_0, model.layers[:1], model.generate
    with model.session(backend=wire):
        with model.trace(ids):
            first = inside.self_proj_0.output.save()
        with model.trace(ids):
            second = part.output.save()
            output = layers[0].output.save()
        made = generate(ids, steps=2).save()
    with model.trace(ids):
        here = part.output
        block = model.layers[0].output
    assert torch.equal(first, here) and torch.equal(second, here) and torch.equal(output, block)
    assert torch.equal(made, model._module.generate(ids, steps=2))


def test_another_model_cannot_come_along(model, wire):
    other = NNsight(seeded(MLP))
    with pytest.raises(WireError, match="`other`: it belongs to another model"):
        with model.trace(X, backend=wire):
            other.layers[0].weight.sum().save()


def test_edits_of_the_model_are_made_there(model, wire):
    scale = 0.5
    with model.edit(name="halve") as edited:
        model.layers[0].output = model.layers[0].output * scale
    with edited.trace(X, backend=wire) as tracer:
        remote = tracer.result.save()
    with edited.trace(X) as tracer:
        here = tracer.result
    with model.trace(X, backend=wire) as tracer:
        plain = tracer.result.save()
    assert torch.equal(remote, here) and torch.equal(plain, model(X)) and not torch.equal(plain, here)


@pytest.mark.parametrize("edited_first", [False, True])
def test_a_model_and_an_edited_one_are_two_in_one_block(model, wire, edited_first):
    with model.edit() as edited:
        model.layers[0].output = model.layers[0].output * 0.5
    first, second = (edited, model) if edited_first else (model, edited)
    with model.session(backend=wire):
        with first.trace(X):
            one = first.output.save()
        with second.trace(X):
            two = second.output.save()
    with first.trace(X):
        here = first.output
    with second.trace(X):
        here_too = second.output
    assert torch.equal(one, here) and torch.equal(two, here_too) and not torch.equal(one, two)


def test_other_names_for_modules_hold_there(wire):
    model = NNsight(seeded(MLP), rename={"layers": "blocks"})
    with model.trace(X, backend=wire):
        hidden = model.blocks[1].output.save()
    with model.trace(X):
        here = model.layers[1].output
    assert torch.equal(hidden, here)


def test_invokes_inside_a_block_find_their_text(model, wire):
    with model.trace(backend=wire) as tracer:
        with tracer.invoke(X[:1]):
            one = model.layers[0].output.save()
        with tracer.invoke(X[1:]):
            two = model.layers[0].output.save()
    with model.trace(X):
        here = model.layers[0].output
    torch.testing.assert_close(torch.cat([one, two]), here)


def test_invokes_inside_a_function_that_came_along_find_their_text(model, wire):
    def both(tracer, value, kept):
        with tracer.invoke(value[:1]):
            model.layers[0].output[:] = 0
            kept.append(model.layers[0].output)
        with tracer.invoke(value[1:]):
            kept.append(model.layers[0].output)

    with model.trace(backend=wire) as tracer:
        kept = nnsight.save([])
        both(tracer, X, kept)
    with model.trace(X[1:]):
        here = model.layers[0].output
    assert torch.equal(kept[0], torch.zeros(1, 8))
    torch.testing.assert_close(kept[1], here)


def test_a_block_in_a_method_may_use_super(wire):
    class Base:
        def name(self):
            return "base"

    class Study(Base):
        def name(self):
            return "study"

        def run(self, model):
            with model.trace(X, backend=wire):
                found = nnsight.save([super().name(), self.name(), self.__secret()])
            return found

        def __secret(self):
            return "secret"

    assert Study().run(NNsight(seeded(MLP))) == ["base", "study", "secret"]


def test_a_traced_method_and_its_arguments_come_along(wire):
    model = NNsight(seeded(Transformer))
    ids = torch.tensor([[1, 2, 3]])
    with model.trace(ids, steps=2, fn="generate", backend=wire) as tracer:
        out = tracer.result.save()
    assert torch.equal(out, model.generate(ids, steps=2))


def test_what_a_request_is_can_be_seen_without_reading_it(model, wire):
    with model.layers[1].trace(torch.ones(1, 8), backend=wire):
        out = torch.relu(model.layers[1].output).save()
    facts = inspect_bytes(wire.data)
    assert (
        facts["kind"] == "request"
        and facts["packages"] == {"torch": torch.__version__}
        and facts["path"] == "model.layers.1"
        and facts["session"] is False
    )
    assert facts["torch"] == torch.__version__ and facts["nnsight"] == nnsight.__version__


def test_bytes_are_seen_to_be_whole_without_reading_them(model, wire):
    with model.trace(X, backend=wire):
        out = model.output.save()
    check_bytes(wire.data)
    check_bytes(memoryview(encode_results({"a": torch.ones(3)})))
    changed = bytearray(wire.data)
    changed[-1] ^= 1
    for data in (b"", b"no message", wire.data[:-1], wire.data + b"x", bytes(changed)):
        with pytest.raises(WireError):
            check_bytes(data)


# -- values ----------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    -0.0,
    10**40,
    -(2**53) - 1,
    float("inf"),
    3 + 4j,
    "tüx\ud800",
    b"\x00\xff",
    bytearray(b"ab"),
    [1, [2, (3, None)]],
    (),
    {"a": 1, 2: "b", (1, 2): [3]},
    {1, 2},
    frozenset({"x"}),
    range(1, 9, 2),
    slice(None, 3),
    ...,
    collections.OrderedDict(b=1, a=2),
    collections.Counter("aab"),
    collections.deque([1, 2], maxlen=3),
    collections.defaultdict(list, {"k": [1]}),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=7),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    datetime.date(2024, 1, 1),
    datetime.time(1, 2),
    datetime.timedelta(days=-1, microseconds=5),
    pathlib.Path("a/b"),
    pathlib.PureWindowsPath("c:\\x"),
    torch.float16,
    torch.device("cuda", 1),
    torch.Size([2, 3]),
    torch.channels_last,
    int,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("send", [there, back])
def test_values_arrive_as_they_are(send, value):
    arrived = send(value)
    assert type(arrived) is type(value) and arrived == value
    assert repr(arrived) == repr(value)


def test_nan_arrives():
    assert math.isnan(back(float("nan")))


@pytest.mark.parametrize("send", [there, back])
def test_cycles_and_shared_values_stay_so(send):
    shared = {"x": [1]}
    value = [shared, shared, (shared,)]
    value.append(value)
    value.append(([value],))
    shared["round"] = (value, {"deep": shared})
    arrived = send(value)
    assert arrived[0] is arrived[1] is arrived[2][0] and arrived[3] is arrived and arrived[4][0][0] is arrived
    assert arrived[0]["round"][0] is arrived and arrived[0]["round"][1]["deep"] is arrived[0]


TENSORS = {
    "plain": lambda: torch.rand(2, 3),
    "scalar": lambda: torch.tensor(3),
    "empty": lambda: torch.empty(0, 4),
    "half": lambda: torch.rand(4).bfloat16(),
    "bool": lambda: torch.tensor([True, False]),
    "complex": lambda: torch.rand(3, dtype=torch.complex64),
    "float8": lambda: torch.rand(4).to(torch.float8_e4m3fn),
    "channels last": lambda: torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.rand(3, 5).t(),
    "a part": lambda: torch.rand(1000, 4)[500:502],
    "a column": lambda: torch.rand(1000, 4)[:, 1],
    "expanded": lambda: torch.rand(3, 1).expand(3, 50),
    "conjugate": lambda: torch.rand(3, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("send", [there, back])
def test_tensors_arrive_with_their_numbers_types_and_layout(send, make):
    tensor = make()
    arrived = send(tensor)
    assert arrived.dtype == tensor.dtype and arrived.shape == tensor.shape
    assert torch.equal(arrived.to(torch.complex128), tensor.to(torch.complex128))
    if tensor.is_contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else False:
        assert arrived.is_contiguous(memory_format=torch.channels_last)


def test_only_the_part_of_a_storage_travels_that_is_shown():
    assert len(encode_results({"x": torch.rand(100_000)[:10]})) < 1000
    assert len(encode_results({"x": torch.rand(1000, 1000)[:, 3]})) < 6000


@pytest.mark.parametrize("send", [there, back])
def test_tensors_that_share_memory_share_it_there(send):
    whole = torch.zeros(4, 4)
    value = {"whole": whole, "row": whole[1], "turned": whole.t(), "bytes": whole.view(torch.int32)}
    arrived = send(value)
    arrived["whole"][1, 2] = 1
    assert arrived["row"][2] == 1 and arrived["turned"][2, 1] == 1 and arrived["bytes"][1, 2] != 0
    assert arrived["turned"].stride() == (1, 4)


def test_leaves_require_grad_there_and_computed_tensors_do_not():
    leaf = torch.rand(2, requires_grad=True)
    arrived = there({"leaf": leaf, "made": leaf * 2, "parameter": torch.nn.Parameter(torch.ones(2))})
    assert arrived["leaf"].requires_grad and not arrived["made"].requires_grad
    assert isinstance(arrived["parameter"], torch.nn.Parameter) and arrived["parameter"].requires_grad
    assert not back(leaf).requires_grad


def test_sparse_tensors_travel_and_quantised_ones_say_why_not():
    sparse = torch.eye(3).to_sparse()
    arrived = back(sparse)
    assert arrived.is_sparse and torch.equal(arrived.to_dense(), torch.eye(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them
        quantised = torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8)
    with pytest.raises(WireError, match="quantised .*dequantize"):
        back([quantised])


class Coder(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.enc, self.dec = torch.nn.Linear(8, width), torch.nn.Linear(width, 8)
        self.dec.weight = torch.nn.Parameter(self.enc.weight.detach().t())
        self.register_buffer("mean", torch.ones(8))

    def forward(self, x):
        return self.dec(torch.relu(self.enc(x - self.mean)))


def test_a_module_of_the_user_comes_along_with_its_weights_and_can_be_trained_there(model, wire):
    coder = seeded(Coder, 16)
    optimizer = torch.optim.SGD(coder.parameters(), lr=0.1)
    with model.trace(X, backend=wire):
        decoded = coder(model.layers[0].output).save()
        decoded.pow(2).mean().backward()
        optimizer.step()
        after = coder.state_dict().save()
    with model.trace(X):
        hidden = model.layers[0].output
    assert torch.equal(decoded, coder(hidden))
    coder(hidden.detach()).pow(2).mean().backward()
    optimizer.step()
    torch.testing.assert_close(after, coder.state_dict())


@pytest.mark.parametrize(
    "function",
    [torch.relu, torch.nn.functional.gelu, torch.Tensor.neg, torch.einsum],
    ids=lambda function: function.__name__,
)
def test_functions_of_torch_go_by_name(function):
    assert there(function) is function


def test_random_generators_go_on_where_they_were():
    generator = torch.Generator().manual_seed(3)
    torch.rand(2, generator=generator)
    arrived = there(generator)
    assert torch.equal(torch.rand(3, generator=arrived), torch.rand(3, generator=generator))


@pytest.mark.parametrize("send", [there, back])
def test_arrays_arrive(send):
    numpy = pytest.importorskip("numpy")
    value = {
        "turned": numpy.arange(6, dtype="i2").reshape(2, 3).T,
        "text": numpy.array(["a", "bcd"]),
        "time": numpy.array("2024-01-01", "M8[D]"),
        "number": numpy.float32(0.1),
        "none": numpy.zeros((0, 3)),
    }
    arrived = send(value)
    for name, array in value.items():
        assert type(arrived[name]) is type(array) and arrived[name].dtype == array.dtype
        assert arrived[name].shape == array.shape and (arrived[name] == array).all()
    assert arrived["turned"].flags.f_contiguous and arrived["turned"].flags.writeable
    with pytest.raises(WireError, match="objects"):
        send(numpy.array([object()]))


# -- results ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    score: float
    at: list[int]

    def __post_init__(self):
        raise AssertionError("results are read without running anything")


@dataclasses.dataclass
class Kept:
    score: float


class Slotted:
    __slots__ = ("a", "__dict__")

    @property
    def b(self):
        return vars(self)["b"]

    @b.setter
    def b(self, value):
        raise AssertionError("results are read without running anything")


class Out(collections.OrderedDict):
    """As the outputs of models are: each value both an item and an attribute."""

    def __setattr__(self, name, value):
        raise AssertionError("results are read without running anything")


Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1


def unmade(cls, **attributes):
    made = object.__new__(cls) if not issubclass(cls, dict) else cls()
    vars(made).update(attributes)
    return made


def test_objects_of_other_classes_come_back_as_records():
    out = Out(logits=torch.ones(2))
    vars(out)["logits"] = out["logits"]
    found, members, point = back([unmade(Found, score=0.5, at=[1]), out, Point(1, 2)])
    assert isinstance(found, records.Record) and (found.score, found.at) == (0.5, [1]) and "Found" in repr(found)
    assert (
        isinstance(members, dict) and members.logits is members["logits"] and torch.equal(members.logits, torch.ones(2))
    )
    assert isinstance(point, tuple) and (point.x, point.y) == (1, 2) == tuple(point)
    assert back(Colour.RED).name == "RED" and "Found" in repr(back(Found)) and not isinstance(back(Found), type)
    with pytest.raises(AttributeError, match=r"record of a .*Found .*nnsight.register"):
        found.missing


def test_registered_classes_come_back_as_themselves(monkeypatch):
    monkeypatch.setattr(records, "_registered", [])
    for cls in (Found, dict, Colour, Slotted):
        assert nnsight.register(cls) is cls
    slotted = Slotted()
    slotted.a, vars(slotted)["b"] = 1, 2
    arrived = back(slotted)
    assert type(arrived) is Slotted and (arrived.a, arrived.b) == (1, 2)
    found = back(unmade(Found, score=0.5, at=[1]))
    assert type(found) is Found and found.at == [1]
    assert type(back(Out(a=1))) is Out and back(Colour.RED) is Colour.RED
    assert isinstance(back(Kept(1.0)), records.Record)


@pytest.mark.parametrize("value", [scaled, [lambda: 1], fractions, str.upper], ids=lambda value: type(value).__name__)
def test_code_in_results_is_refused_unless_the_sender_is_trusted(value):
    data = encode_results({"value": value})
    with pytest.raises(WireError, match="not trusted|data only"):
        decode_results(data)
    decode_results(data, trusted=True)


def test_a_trusted_sender_may_send_anything():
    assert back(scaled, trusted=True)(2) == 6
    assert type(back(Kept(1.0), trusted=True)) is Kept


def test_modules_and_envoys_are_no_results(model):
    with pytest.raises(WireError, match="`value`: a module is no result.*state_dict"):
        back(model._module)
    with pytest.raises(WireError, match=r"envoy .*save its `.output`"):
        back(model.layers[0])


def test_a_cache_comes_back_without_being_saved(model, wire):
    with model.trace(X, backend=wire) as tracer:
        there = tracer.cache(include_inputs=True, copy=True)
        unsaved = model.layers[0].output
    with model.trace(X) as tracer:
        here = tracer.cache(include_inputs=True, copy=True)
    assert list(there) == list(here) and "layers.0" in there and "unsaved" not in vars()
    for path in here:
        assert torch.equal(there[path].output, here[path].output) and torch.equal(there[path].input, here[path].input)
    assert torch.equal(there.model.layers[-1].output, here["model.layers.2"].output)
    assert torch.equal(there.head.output, here.head.output) and len(there.layers) == 3
    assert [torch.equal(one.output, other.output) for one, other in zip(there.layers, here.layers)] == [True] * 3
    with pytest.raises(AttributeError, match="nothing at `model.tail`"):
        there.tail
    assert torch.equal(back(there).head.output, here.head.output)


class Head(torch.nn.Module):
    """What is given a module, as vLLM's logits processor is."""

    def forward(self, how, x):
        return how["by"][0](x)


class Headed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.head = Head()

    def forward(self, x):
        return self.head({"by": [self.inner]}, x)


def test_a_module_that_another_was_given_stands_in_a_cache_by_its_path(wire):
    model = NNsight(seeded(Headed))
    x = torch.ones(1, 4)
    with model.trace(x, backend=wire) as tracer:
        cache = tracer.cache(include_inputs=True).save()
    (how, given), kwargs = cache.head.inputs
    assert how["by"][0].path == "model.inner" and repr(how["by"][0]) == "<Linear at model.inner, where the run was>"
    assert torch.equal(given, x) and kwargs == {}
    assert torch.equal(cache.head.output, model._module(x))
    again = back(cache).head.inputs[0][0]["by"][0]
    assert again.path == "model.inner"
    with pytest.raises(WireError, match="a module is no result"):
        with model.trace(x, backend=wire):
            how = model.head.inputs[0][0].save()  # noqa: F841


def test_what_the_run_changed_in_a_cache_is_refused_over_here_too(model, wire):
    with model.trace(X, backend=wire) as tracer:
        cache = tracer.cache(modules=[model.layers[0]])
        value = model.layers[0].output
        model.layers[1].output
        value[:] = 0
    with pytest.raises(nnsight.ChangedValueError, match="layers.0"):
        cache["layers.0"].output


def test_messages_carry_what_is_told_meanwhile():
    kind, value = decode_message(encode_message("value", {"name": "hidden", "value": torch.ones(2)}))
    assert kind == "value" and value["name"] == "hidden" and torch.equal(value["value"], torch.ones(2))
    assert decode_message(encode_message("log", "hello")) == ("log", "hello")


# -- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_does_not_tell_how_the_with_around_it_was_left():
    try:
        raise Skipped
    except BaseException:  # as in the `__exit__` of a trace
        try:
            {}["a"]
        except KeyError as first:
            try:
                raise ValueError("b") from first
            except ValueError as error:
                again = decode_error(encode_error(error))
    (note,) = again.__notes__
    assert "KeyError: 'a'" in note and "ValueError: b" in note and "Skipped" not in note


class Budget(Exception):
    def __init__(self, used, *, limit):
        super().__init__(f"{used} of {limit}")
        self.limit = limit
        self.lock = threading.Lock()
        self.undo = scaled


def spend(value):
    raise Budget(5, limit=3)


def test_an_error_comes_back_as_its_own_type_with_the_lines_of_the_user(model, wire):
    with pytest.raises(Budget, match="5 of 3") as raised:
        line = sys._getframe().f_lineno + 1
        with model.trace(X, backend=wire):
            spend(model.layers[0].output)
    assert raised.value.limit == 3 and "lock" in raised.value.lock and "scaled" in raised.value.undo
    [note] = [note for note in raised.value.__notes__ if "other end" in note]
    if sys.version_info >= (3, 11):  # errors have no notes before
        assert f"nnsight: in `spend(model.layers[0].output)` (line {line + 1}); the model now" in note
    assert "spend(model.layers[0].output)" in note and "raise Budget(5, limit=3)" in note and __file__ in note


@pytest.mark.parametrize(
    "error", [KeyError("k"), ZeroDivisionError("z"), nnsight.OutOfOrderError("o"), OSError(2, "no")]
)
def test_errors_that_are_known_everywhere_keep_their_type(error):
    arrived = decode_error(encode_error(error))
    assert type(arrived) is type(error) and str(arrived) == str(error) and arrived.args == error.args


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_errors_that_would_end_the_program_do_not(error):
    arrived = decode_error(encode_error(error))
    assert type(arrived) is RemoteError
    assert type(error).__name__ in str(arrived) and "does not end this program" in str(arrived)


def test_an_error_of_a_class_that_travelled_comes_back_as_one_of_it_wherever_it_was_written(model):
    class LocalError(LookupError):
        pass

    arrived = decode_error(encode_error(LocalError(1)))
    assert type(arrived) is RemoteError  # nobody knows it by its name
    with pytest.raises(LocalError) as caught:
        with model.trace(X, backend=Wire()):
            raise LocalError(model.layers[0].output.shape[0])
    assert caught.value.args == (3,)


def test_the_cause_comes_back_too():
    try:
        try:
            1 / 0
        except ZeroDivisionError as cause:
            raise ValueError("outer") from cause
    except ValueError as error:
        arrived = decode_error(encode_error(error))
    assert isinstance(arrived.__cause__, ZeroDivisionError)
    assert "division by zero" in "".join(traceback.format_exception(arrived))


# -- bytes -----------------------------------------------------------------------------------------------------------


def test_another_version_is_refused_by_name():
    data = bytearray(encode_results({"x": 1}))
    data[8:10] = struct.pack("<H", 7)
    with pytest.raises(WireError, match=r"version 7 .* version 1.*upgrade nnsight-core here"):
        decode_results(bytes(data))


def test_bytes_of_another_kind_are_refused(model):
    with pytest.raises(WireError, match="'results', where request was expected"):
        decode_request(encode_results({}), model)


@pytest.mark.parametrize("data", [b"", b"nnswire\n", b"PK\x03\x04" + b"\x00" * 40, encode_results({"x": X})[:-1]])
def test_bytes_that_are_none_of_ours_or_cut_are_one_error(data):
    with pytest.raises(WireError):
        decode_results(data)


def test_a_changed_byte_is_seen():
    data = bytearray(encode_results({"x": torch.zeros(1000)}))
    data[-1] ^= 1
    with pytest.raises(WireError, match="checksum"):
        decode_results(bytes(data))


def test_the_lines_that_came_along_are_given_back(model):
    seen = {}

    class Elsewhere:
        def run(self, request):
            data = encode_request(request).replace(b"test_wire.py", b"test_else.py")
            data = data[:12] + struct.pack("<I", __import__("zlib").crc32(data[24:])) + data[24 - 8 : 24] + data[24:]
            again = decode_request(data, model)
            name = again.body.filename
            seen["line"] = linecache.getline(name, again.body.lineno + 1)
            del again
            seen["after"] = name in linecache.cache
            return {}

    with model.trace(X, backend=Elsewhere()):
        model.layers[0].output.sum()
    assert "model.layers[0].output.sum()" in seen["line"] and seen["after"] is False
