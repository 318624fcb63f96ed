"""A model that an engine runs as compiled graphs: bodies see and change what lies where the graphs end, and nothing else."""

from __future__ import annotations

import pytest
import torch
from toy_engine import Network, Served, ToyEngine

import nnsight
from nnsight.plugin import PlainLayout

#: What batches are filled up to, as graphs are built for some sizes only.
SIZES = (4, 8, 16)
SITES = (("first", "output"), ("second", "input"))


class Holder(torch.nn.Module):
    """A network that is compiled, and a last layer that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.last = Network(), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.network(x))


class GraphEngine(ToyEngine):
    """Runs the network as pieces that call none of its modules, with rows that are nobody's at the end."""

    def __init__(self, module, sites=SITES) -> None:
        super().__init__(module)
        network = module.network
        self.sites = list(sites)
        named = [(network.get_submodule(name), stage) for name, stage in sites]
        self.named = self.forwards.compiled(network.modules(), named)
        self.padding: list[torch.Tensor] = []

    def _pass(self, name: str, stage: str, value: torch.Tensor) -> torch.Tensor:
        if (name, stage) not in self.sites:
            return value
        number = self.sites.index((name, stage))
        if stage == "output":
            return self.forwards.pass_site(number, value)
        (value,), kwargs = self.forwards.pass_site(number, ((value,), {}))
        assert not kwargs
        return value

    def _compute(self, where, x) -> torch.Tensor:
        at = len(x)
        size = min(size for size in SIZES if size >= at)
        x = torch.cat([x, torch.full((size - at, 4), 7.0)])
        first, second = self.module.network.first, self.module.network.second
        with self.forwards.forward(where, PlainLayout(size)):
            hidden = torch.nn.functional.linear(x, first.weight, first.bias)
            hidden = self._pass("first", "output", hidden)
            inside = self._pass("second", "input", torch.tanh(hidden))
            self.padding.append(torch.cat([hidden[at:], inside[at:]]))
            hidden = hidden + torch.nn.functional.linear(inside, second.weight, second.bias)
            return self.module.last(hidden)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Holder()


@pytest.fixture
def engine(module):
    return GraphEngine(module)


@pytest.fixture
def model(engine):
    return Served(engine)


@pytest.fixture
def prompts():
    return [torch.randn(count, 4) for count in (3, 1, 2)]


def alone(module, x, steps=3, first=None, second=None):
    """The input of the second layer, and what the model gives, of each step of one request by itself."""
    seen = []
    with torch.no_grad():
        for _ in range(steps):
            hidden = module.network.first(x)
            hidden = hidden if first is None else first(hidden)
            inside = torch.tanh(hidden)
            inside = inside if second is None else second(inside)
            x = module.last(hidden + module.network.second(inside))
            seen.append((hidden, inside, x))
            x = x[-1:]
    return seen


def test_declared_sites_are_read_in_every_step_among_padding_and_others(model, module, engine, prompts):
    assert engine.named == [("model.network.first", "output"), ("model.network.second", "input")]
    with model.trace() as tracer:
        seen = nnsight.save([[], [], []])
        for number, x in enumerate(prompts):
            with tracer.invoke(x):
                for _ in tracer.iter[:]:
                    values = model.network.first.output, model.network.second.input, model.last.output
                    seen[number].append(values)
    for got, x in zip(seen, prompts):
        for ours, theirs in zip(got, alone(module, x)):
            for one, other in zip(ours, theirs):
                torch.testing.assert_close(one, other)
        assert len(got) == 3
    assert not any("forward" in vars(part) for part in module.modules())


def test_writes_reach_their_own_rows_and_no_others_and_not_the_padding(model, module, engine, prompts):
    a, b, c = prompts
    with model.trace() as tracer:
        with tracer.invoke(a):
            for _ in tracer.iter[:]:
                model.network.first.output[:] += 1
            first = nnsight.save(tracer.result)
        with tracer.invoke(b):
            second = nnsight.save(tracer.result)
        with tracer.invoke(c):
            for _ in tracer.iter[:]:
                model.network.second.input = model.network.second.input * 2
            third = nnsight.save(tracer.result)
    torch.testing.assert_close(first, alone(module, a, first=lambda v: v + 1)[-1][2][-1:])
    torch.testing.assert_close(second, alone(module, b)[-1][2][-1:])
    torch.testing.assert_close(third, alone(module, c, second=lambda v: v * 2)[-1][2][-1:])
    padding = module.network.first(torch.full((1, 4), 7.0)).detach()
    for rows in engine.padding:
        half = len(rows) // 2
        torch.testing.assert_close(rows, torch.cat([padding.expand(half, 4), torch.tanh(padding).expand(half, 4)]))


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.network.second.output,
        lambda model: model.network.output,
        lambda model: model.network.first.input,
        lambda model: model.network.first.skip(torch.zeros(3, 4)),
        lambda model: model.network.source.torch_tanh_0.output,
    ],
    ids=["another module", "the compiled part itself", "another stage", "to skip", "an operation"],
)
def test_what_was_not_declared_is_refused_where_it_is_asked_for_and_others_go_on(ask, model, module, engine, prompts):
    with pytest.raises(nnsight.MissedProviderError) as caught:
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                ask(model)
            with tracer.invoke(prompts[1]):
                model.last.output.save()
    assert "`model.network.first.output`, `model.network.second.input`" in str(caught.value)
    assert any("ask(model)" in str(entry.statement) for entry in caught.traceback)
    assert engine.batches == [3, 1, 1, 1] and not engine.forwards.runs
    with model.trace(prompts[1]):
        again = model.last.output.save()
    torch.testing.assert_close(again, alone(module, prompts[1])[0][2])


def test_a_cache_of_what_was_not_declared_is_refused_and_one_of_declared_sites_is_not(model, module, prompts):
    with pytest.raises(nnsight.MissedProviderError, match="Declared are"):
        with model.trace(prompts[0]) as tracer:
            tracer.cache()
    with model.trace(prompts[0]) as tracer:
        cache = tracer.cache(modules=["network.first", "last"])
    wanted = alone(module, prompts[0])
    assert len(cache["model.network.first"]) == 3
    for entry, (hidden, _, _) in zip(cache["model.network.first"], wanted):
        torch.testing.assert_close(entry.output, hidden)


def test_what_a_body_passed_is_out_of_order_there_too(model, prompts):
    with pytest.raises(nnsight.OutOfOrderError):
        with model.trace(prompts[0]):
            model.network.second.input  # noqa: B018
            model.network.first.output  # noqa: B018


def test_without_any_declared_site_only_what_is_outside_of_the_graphs_is_given(module, prompts):
    model = Served(GraphEngine(module, sites=()))
    with model.trace(prompts[0]):
        output = model.last.output.save()
    torch.testing.assert_close(output, alone(module, prompts[0])[0][2])
    with pytest.raises(nnsight.MissedProviderError, match="None is declared"):
        with model.trace(prompts[0]):
            model.network.first.output.save()
