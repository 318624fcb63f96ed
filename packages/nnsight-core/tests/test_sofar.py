"""Looking at what a block has saved while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from core_toys import Hooked, Toy, rows, seeded

import nnsight
from nnsight import NNsight
from nnsight.plugin import Request
from nnsight.testing.models import Generating


class Looking:
    """Runs a block here, and notes at each look what `note` makes of the values."""

    def __init__(self, note: Callable[[Mapping[str, Any]], Any]) -> None:
        self.note = note
        self.noted: list[Any] = []

    def run(self, request: Request) -> dict[str, Any]:
        return request.replay(lambda values: self.noted.append(self.note(values)))

    @property
    def changes(self) -> list[Any]:
        """What was noted, without repetitions."""
        return [one for one, before in zip(self.noted, [None, *self.noted]) if one != before]


def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: len(value) if isinstance(value, (list, dict)) else "there" for name, value in values.items()}


@pytest.fixture
def net() -> Toy:
    return seeded(Toy)


@pytest.fixture
def model(net: Toy) -> Any:
    return NNsight(net)


def test_an_item_is_seen_before_the_next_step_begins() -> None:
    model = NNsight(seeded(Generating))
    begun = 0

    def count(*_: Any) -> None:
        nonlocal begun
        begun += 1

    model._module.first.register_forward_pre_hook(count)
    looking = Looking(lambda values: (len(values.get("seen", ())), begun))
    with model.trace(rows(), fn="generate", backend=looking) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(model.first.output)
    assert len(seen) > 2
    assert [(n, n) for n in range(1, len(seen) + 1)] == [
        note for note in looking.changes if note[0] and note[0] == note[1]
    ]
    assert all(length >= steps - 1 for length, steps in looking.noted)


def test_a_value_is_seen_by_the_name_it_is_bound_to_before_the_model_goes_on(model: Any, net: Toy) -> None:
    looking = Looking(dict)
    with model.trace(rows(), backend=looking):
        first = model.embed.output.save()
        unsaved = model.layers[0].output
        last = model.output.save()
    hooked = Hooked(net, rows())
    steps = [set(values) for values in looking.noted]
    assert steps[0] == set() and {"first"} in steps and steps[-1] == {"first", "last"}
    assert all(torch.equal(values["first"], hooked["embed"]) for values in looking.noted if "first" in values)
    assert torch.equal(looking.noted[-1]["last"], hooked.result)


def test_layers_of_one_forward_are_seen_one_by_one(model: Any) -> None:
    looking = Looking(sizes)
    with model.trace(rows(), backend=looking):
        outputs = nnsight.save([])
        for layer in model.layers:
            outputs.append(layer.output)
    assert looking.changes == [{}, {"outputs": 0}, {"outputs": 1}, {"outputs": 2}, {"outputs": 3}]


def test_names_of_invokes_are_seen_while_they_run(model: Any, net: Toy) -> None:
    looking = Looking(sizes)
    with model.trace(backend=looking) as tracer:
        with tracer.invoke(rows(seed=1)):
            one = [].save()
            one.append(model.embed.output)
            one.append(model.layers[2].output)
        with tracer.invoke(rows(seed=2)):
            two = model.layers[1].output.save()
            end = model.output
    assert {"one": 1} in looking.noted and {"one": 1, "two": "there"} in looking.noted
    assert looking.noted[-1] == {"one": 2, "two": "there"}
    torch.testing.assert_close(two, Hooked(net, rows(seed=2))["layers.1"])


def test_names_that_a_function_binds_are_no_results(model: Any) -> None:
    def measure() -> None:
        with model.trace() as tracer, tracer.invoke(rows()):
            inside = model.embed.output.save()
            model.output

    looking = Looking(sizes)
    with model.session(backend=looking):
        outside = nnsight.save([])
        measure()
    assert looking.changes == [{}, {"outside": 0}]


def test_traces_of_a_session_are_seen_when_they_end(model: Any) -> None:
    looking = Looking(sizes)
    ends = []
    with model.session(backend=looking):
        results = nnsight.save([])
        for seed in range(3):
            with model.trace(rows(seed=seed)) as tracer:
                results.append(tracer.result)
            ends.append(len(looking.noted))
    assert looking.changes == [{}, {"results": 0}, {"results": 1}, {"results": 2}, {"results": 3}]
    assert [looking.noted[end - 1]["results"] for end in ends] == [1, 2, 3]


def test_what_came_before_an_error_is_seen(model: Any) -> None:
    looking = Looking(sizes)
    with pytest.raises(ZeroDivisionError):
        with model.trace(rows(), backend=looking):
            kept = [].save()
            kept.append(model.embed.output)
            1 / 0  # noqa: B018
    assert looking.noted[-1] == {"kept": 1}


def test_what_came_before_an_early_stop_is_seen(model: Any) -> None:
    looking = Looking(sizes)
    with model.trace(rows(), backend=looking) as tracer:
        kept = [].save()
        kept.append(model.embed.output)
        tracer.stop()
    assert looking.noted[-1] == {"kept": 1}


def test_gradients_are_seen(model: Any) -> None:
    looking = Looking(sizes)
    with model.trace(rows(), backend=looking):
        hidden = [layer.output for layer in model.layers]
        grads = [].save()
        with model.output.sum().backward():
            for value in reversed(hidden):
                grads.append(value.grad)
    assert [{"grads": n} for n in range(4)] == looking.changes[1:]


def test_what_a_look_raises_is_raised_in_the_block_and_nobody_looks_again(model: Any) -> None:
    def full(values: Mapping[str, Any]) -> None:
        if "first" in values:
            raise OSError("no room")

    looking = Looking(full)
    with pytest.raises(OSError, match="no room"):
        with model.trace(rows(), backend=looking):
            first = model.embed.output.save()
            model.output
    assert looking.noted and set(looking.noted) == {None}


def test_an_error_of_the_block_is_the_one_that_is_raised(model: Any) -> None:
    def full(values: Mapping[str, Any]) -> None:
        if "first" in values:
            raise OSError("no room")

    with pytest.raises(ZeroDivisionError) as raised:
        with model.trace(rows(), backend=Looking(full)):
            first = model.embed.output.save()
            1 / 0  # noqa: B018
    assert isinstance(raised.value.__cause__, OSError)


def test_nothing_is_looked_at_where_nobody_asked(model: Any) -> None:
    with model.trace(rows()) as tracer:
        model.embed.output
        assert tracer._run.before_turn is None
    seen = []

    class Plain:
        def run(self, request: Request) -> dict[str, Any]:
            return request.replay()

    with model.trace(rows(), backend=Plain()) as tracer:
        model.embed.output
        nothing = nnsight.save(tracer._run.before_turn is None)
    assert nothing is True
