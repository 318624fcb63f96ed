"""Whatever a body does, or somebody sends, is the end of its own request: the engine and all others go on.

Each body runs between two plain requests of the same batch, whose tokens have to be what they are without it.
"""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arrivals import Arrivals

import nnsight
from nnsight import BackwardError, NNsightError, OutOfOrderError, RemoteError, RowsError, WireError
from nnsight.plugin import ServedRun, encode_error
from nnsight_vllm.fields import TRACE
from nnsight_vllm.worker.bounds import BoundsError

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 5}
IDS, OTHERS = list(range(10, 30)), list(range(30, 55))


class OddError(Exception):
    def __init__(self, text, lock=None):
        super().__init__(text)
        self.lock = lock

    def __str__(self):
        raise ValueError("has no text")


@pytest.fixture(scope="module")
def model(pair):
    return pair("llama", turn_seconds=0.5).served


@pytest.fixture(scope="module")
def wanted(model):
    return list(model.generate(OTHERS, **GREEDY).outputs[0].token_ids)


@pytest.fixture
def among(model, wanted):
    """Run the body that a function announces among others, and return what came of it."""

    def run(announce):
        book = Arrivals(model)
        before = book.plain(OTHERS, **GREEDY)
        announce(book)
        guest = book.last
        after = book.plain(OTHERS, **GREEDY)
        later = book.plain(OTHERS, 3, **GREEDY)
        book.run(200)
        for other in (before, after, later):
            assert list(other.output.outputs[0].token_ids) == wanted
        return guest

    return run


# -- errors, and what is none --------------------------------------------------------------------------------------------


def test_errors_of_all_kinds_keep_their_types_and_lines(model, among):
    def own(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output  # noqa: B018
            1 / 0  # noqa: B018

    error = among(own).saved
    assert type(error) is ZeroDivisionError and "1 / 0" in "".join(error.__notes__)

    def deep(book):
        with book.trace(IDS, **GREEDY):

            def again(x):
                return again(x + 1)

            again(0)

    assert type(among(deep).saved) is RecursionError

    def odd(book):
        with book.trace(IDS, **GREEDY):
            raise OddError("odd", threading.Lock())

    assert type(among(odd).saved) is OddError

    def late(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[2].output  # noqa: B018
            model.model.layers[1].output  # noqa: B018

    assert type(among(late).saved) is OutOfOrderError

    def huge(book):
        with book.trace(IDS, **GREEDY):
            torch.zeros(1 << 50)

    assert type(among(huge).saved) is RuntimeError


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_a_process_ends_a_request(kind, model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output  # noqa: B018
            raise kind("from a body")

    error = among(announce).saved
    # Raised where the trace was written, it would end that process.
    assert type(error) is RemoteError and kind.__name__ in str(error) and "from a body" in str(error)


def test_endless_loops_end_with_their_requests(model, among):
    def plain(book):
        with book.trace(IDS, **GREEDY):
            while True:
                pass

    error = among(plain).saved
    assert isinstance(error, TimeoutError) and "more than 0.5 s" in str(error)


def test_what_cannot_travel_is_the_error_of_its_own_request(model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):
            kept = nnsight.save([model.model.layers[1].output[0], threading.Lock()])  # noqa: F841

    error = among(announce).saved
    assert type(error) is WireError and "`kept`" in str(error)


def test_threads_of_a_body_are_told_that_they_are_in_no_trace(model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):
            told = nnsight.save([])
            model.model.layers[1].output  # noqa: B018

            def work():
                try:
                    model.model.layers[2].output  # noqa: B018
                except NNsightError as error:
                    told.append(type(error).__name__)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    assert among(announce).saved["told"] == ["NoTraceError"]


def test_generators_of_a_body_ask_as_it_does(model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):

            def streams():
                for layer in model.model.layers:
                    yield sum(layer.output)

            seen = nnsight.save([float(value.sum()) for value in streams()])  # noqa: F841

    def by_hand(book):
        with book.trace(IDS, **GREEDY):
            seen = nnsight.save([])
            for layer in model.model.layers:
                seen.append(float(sum(layer.output).sum()))

    assert among(announce).saved == among(by_hand).saved


# -- writes ---------------------------------------------------------------------------------------------------------------


def shape(value):
    return value[0][:3], value[1][:3]


def structure(value):
    return value[0]


def nothing(value):
    return None


def meta(value):
    return value[0].to("meta"), value[1]


def complex_numbers(value):
    return value[0] + 1j, value[1]


def sparse(value):
    return value[0].to_sparse(), value[1]


@pytest.mark.parametrize("make", [shape, structure, nothing, meta, complex_numbers])
def test_a_write_that_does_not_fit_is_refused_at_its_line(make, model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output = make(model.model.layers[1].output)

    error = among(announce).saved
    assert type(error) is RowsError and "= make(" in "".join(error.__notes__)


def test_a_write_that_breaks_only_where_it_is_taken_in_is_the_error_of_its_own_request(model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output = sparse(model.model.layers[1].output)

    assert type(among(announce).saved) is RowsError

    def resized(book):
        with book.trace(IDS, **GREEDY):
            value = tuple(torch.zeros_like(one) for one in model.model.layers[1].output)
            model.model.layers[1].output = value
            value[0].resize_(2, 2)

    assert type(among(resized).saved) is RowsError

    def skipped(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].skip(torch.zeros(2, 2))

    error = among(skipped).saved
    assert type(error) is RowsError and "layers.1" in str(error)


@pytest.mark.parametrize("together", [False, True])
def test_what_is_lent_cannot_be_given_another_shape(together, model, among):
    def announce(book):
        if together:
            with book.trace(OTHERS, **GREEDY) as tracer:
                for _ in tracer.iter[:]:
                    model.model.layers[1].output  # noqa: B018
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output[0].resize_(5, 5)

    error = among(announce).saved
    assert type(error) is RowsError and "in place" in str(error)


@pytest.mark.parametrize("number", [-1, 10**6, 96])
@pytest.mark.parametrize("where", ["samples", "samples of several", "embedding", "positions"])
def test_numbers_by_which_memory_is_read_stay_in_range(where, number, model, among):
    def announce(book):
        if where == "samples of several":
            with book.trace(OTHERS, **GREEDY):
                model.samples.output  # noqa: B018
        with book.trace(IDS, **GREEDY):
            if where.startswith("samples"):
                model.samples.output[:] = number
            elif where == "embedding":
                model.model.embed_tokens.input = torch.full_like(model.model.embed_tokens.input, number)
            else:
                model.model.layers[1].inputs[0][0][-1] = number

    error = among(announce).saved
    assert type(error) is BoundsError and str(number) in str(error)


def test_tokens_may_be_replaced_by_others(model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY) as tracer:
            model.model.embed_tokens.input[:] = torch.tensor(OTHERS[: len(IDS)])
            model.samples.output[:] = 7
            result = tracer.result.save()  # noqa: F841

    guest = among(announce)
    assert guest.output.outputs[0].token_ids[0] == 7


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
def test_numbers_that_are_none_stay_with_their_request(number, model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                model.model.layers[0].output[0][:] = number
                model.logits.output[:] = number

    assert among(announce).saved == {}


def test_parameters_are_read_as_copies_and_not_edited(model, among):
    def read(book):
        with book.trace(IDS, **GREEDY):
            weight = model.model.norm.weight.save()  # noqa: F841

    def edited(book):
        with book.trace(IDS, **GREEDY):
            model.model.norm.weight.zero_()

    def data(book):
        with book.trace(IDS, **GREEDY):
            model.model.embed_tokens.weight.data.zero_()

    before = among(read).saved["weight"]
    for announce in (edited, data):
        error = among(announce).saved
        assert isinstance(error, NNsightError) and "all requests" in str(error)
    assert torch.equal(among(read).saved["weight"], before) and before.any()


# -- gradients -------------------------------------------------------------------------------------------------------------


def test_gradients_through_the_model_are_refused_at_once(model, among):
    def backward(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output[0].sum().backward()

    def context(book):
        with book.trace(IDS, **GREEDY):
            stream = model.model.layers[1].output[0]
            with stream.sum().backward():
                grad = stream.grad.save()  # noqa: F841

    def attribute(book):
        with book.trace(IDS, **GREEDY):
            grad = model.model.layers[1].output[0].grad.save()  # noqa: F841

    def through(book):
        with book.trace(IDS, **GREEDY):
            model.model.layers[1].output[0].requires_grad_()
            model.logits.output.sum().backward()

    for announce in (backward, context, attribute, through):
        error = among(announce).saved
        assert type(error) is BackwardError and "`LanguageModel`" in str(error)


def test_what_a_body_computes_itself_can_be_differentiated(model, among):
    def announce(book):
        with book.trace(IDS, **GREEDY):
            stream = sum(model.model.layers[1].output)
            with torch.inference_mode(False), torch.enable_grad():
                given = stream.clone()
                probe = torch.zeros(128, requires_grad=True)
                ((given @ probe) - 1).square().sum().backward()
                copied = torch.nn.Parameter(given[0].clone())
                (copied * 3).sum().backward()
            grads = nnsight.save([probe.grad, copied.grad, stream])  # noqa: F841

    probe, copied, stream = among(announce).saved["grads"]
    torch.testing.assert_close(probe, -2 * stream.sum(0))
    torch.testing.assert_close(copied, torch.full((128,), 3.0))


# -- what is sent -----------------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_bodies_are_refused(model, wanted):
    engine = Arrivals(model).engine
    book = Arrivals(model)
    with book.trace(IDS, **GREEDY):
        model.model.layers[1].output.save()
    good, rng = bytes(book.last.bodies), random.Random(0)
    bad = [b"", b"\0", b"nnsight", good[:-1], good[: len(good) // 2], encode_error(ValueError("no bodies"))]
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        bad.append(bytes(data))
    refused = 0
    for number, data in enumerate(bad):
        (answer,) = engine.collective_rpc("nnsight_open", args=(f"bad-{number}", data))
        refused += bool(answer)
        engine.collective_rpc("nnsight_drop", args=(f"bad-{number}",))
    assert refused > 20
    assert list(model.generate(OTHERS, **GREEDY).outputs[0].token_ids) == wanted


@pytest.mark.parametrize(
    "said", [5, "no trace", [], ["no trace", 0], ["no trace"], [1, 2], {"a": 1}, None, True, ["x"] * 5, [["x"], 0], 1.5]
)
def test_a_request_of_no_trace_is_refused_and_the_engine_goes_on(said, model, among):
    def announce(book):
        book.plain(IDS, extra_args={TRACE: said}, **GREEDY)

    output = among(announce).output.outputs[0]
    assert output.finish_reason == "error" and "no such trace" in output.stop_reason


def test_a_body_has_one_request_and_a_trace_the_bodies_that_it_has(model, wanted):
    book = Arrivals(model)
    with book.trace(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[1].output  # noqa: B018
    first = book.last
    book.at_step[1] = lambda: [
        book.plain(IDS, extra_args={TRACE: [first.request, number]}, **GREEDY) and book.enter_now(book.last)
        for number in (0, 1, -1, 10**9)
    ]
    book.run()
    assert first.saved == {}
    assert [guest.output.outputs[0].finish_reason for guest in book.guests] == ["length", *["error"] * 4]
    assert list(model.generate(OTHERS, **GREEDY).outputs[0].token_ids) == wanted


@pytest.mark.parametrize("extra", [5, "text", [1], {1: 2}, {"x": torch.zeros(2)}, {"x": [lambda: 0]}, {"x": object()}])
def test_what_other_processes_could_not_be_told_is_refused_where_it_is_said(extra, model, wanted):
    with pytest.raises(TypeError, match="extra_args"):
        model.generate(IDS, extra_args=extra, **GREEDY)
    assert list(model.generate(OTHERS, **GREEDY).outputs[0].token_ids) == wanted


# -- a step that cannot begin ---------------------------------------------------------------------------------------------


def refuse(*args):
    raise ConnectionError("nobody is there")


@pytest.mark.parametrize("what", ["the other stages", "the forward"])
def test_a_step_that_could_not_begin_is_not_ended(what, model, wanted, monkeypatch):
    with model.trace(IDS, **GREEDY):
        model.logits.output  # noqa: B018  # so that there is a last step
    stage = model.dispatch()._engine.engine.model_executor.driver_worker.worker.model_runner.nnsight
    forwards = stage.forwards
    with monkeypatch.context() as patch:
        patch.setitem(stage.runs, "request", ServedRun(forwards))
        if what == "the forward":
            patch.setattr(forwards, "_begin_forward", refuse)
        else:
            patch.setattr(stage, "pipeline", SimpleNamespace(before=refuse))
        with pytest.raises(ConnectionError):
            stage.begin(["request"], [1], 1)
        count = forwards.count
        # Nothing is told, and the step before, which is over, is not given back again.
        assert stage.end() == {}
        assert forwards.count == count
    assert list(model.generate(OTHERS, **GREEDY).outputs[0].token_ids) == wanted
