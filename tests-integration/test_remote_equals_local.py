"""What a block gives on a server is what it gives here, bit for bit: one body for each thing that a block can do.

Each function below is run twice, its blocks once here and once in confined processes of a server on this machine.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import served_models_here as models
import torch

import nnsight
from nnsight.testing import assert_alike
from nnsight_remote import RemoteBackend

pytest.importorskip("fastapi", reason="the extra [server] of nnsight-remote is not installed")
pytestmark = pytest.mark.timeout(300)  # the first block on a model waits until it is loaded

PROMPT, OTHER = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"
X = torch.linspace(-1, 1, 12).reshape(3, 4)
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SCALE = 0.75
Where = dict[str, Any]
Body = Callable[[Any, Where], Any]
BODIES: list[Any] = []


def on(name: str) -> Callable[[Body], Body]:
    """Run this body on the model of that name."""

    def take(body: Body) -> Body:
        BODIES.append(pytest.param(name, body, id=body.__name__))
        return body

    return take


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("same") / "store"
    with models.serving(store, "mlp", "transformer", "toy", more=("--limit", "requests_per_minute=10000")) as url:
        yield url


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As over there: how many threads add up changes the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {name: getattr(models, name)() for name in ("mlp", "transformer", "toy")}


@pytest.mark.parametrize(("name", "body"), BODIES)
def test_a_body_gives_there_what_it_gives_here(there: str, made: dict[str, Any], name: str, body: Body) -> None:
    here = body(made[name], {})
    assert_alike(body(made[name], {"backend": RemoteBackend(there, model=name, quiet=True)}), here)


# -- values and writes -----------------------------------------------------------------------------------------------


@on("mlp")
def reading(model: Any, where: Where) -> Any:
    with model.trace(X, **where) as tracer:
        output = model.layers[1].output.save()
        given = nnsight.save(model.head.inputs)
        result = tracer.result.save()
    return output, given, result


@on("mlp")
def replacing_and_writing_in_place(model: Any, where: Where) -> Any:
    with model.trace(X, **where):
        before = model.layers[0].output.clone().save()
        model.layers[0].output = model.layers[0].output * 2
        model.layers[1].output[:, :3] = 0
        after = model.layers[1].output.save()
        model.layers[2].input += 1
        result = model.output.save()
    return before, after, result


@on("mlp")
def skipping_and_stopping(model: Any, where: Where) -> Any:
    with model.trace(X, **where):
        model.layers[0].skip(torch.ones(3, 8))
        skipped = model.output.save()
    reached = None
    with model.trace(X, **where) as tracer:
        stopped = model.layers[1].output.save()
        tracer.stop()
        reached = nnsight.save("reached")
    return skipped, stopped, reached


@on("mlp")
def saved_containers_keep_what_they_share(model: Any, where: Where) -> Any:
    with model.trace(X, **where):
        kept = nnsight.save({"list": [], "tuple": (1, 2.5, None, "text", b"bytes", 1 + 2j), "set": {3, 4}})
        for layer in model.layers:
            kept["list"].append(layer.output)
        kept["again"] = kept["list"][0]
        row = kept["list"][0][1].save()
    assert kept["again"] is kept["list"][0]
    assert row.untyped_storage().data_ptr() == kept["again"].untyped_storage().data_ptr()
    return kept, row


@on("mlp")
def types_of_numbers(model: Any, where: Where) -> Any:
    with model.trace(X, **where):
        hidden = model.layers[0].output
        kinds = [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.uint8, torch.bool]
        cast = nnsight.save([(hidden * 3).to(kind) for kind in kinds])
        odd = nnsight.save([hidden / 0 * 0, hidden.T, hidden[:, ::2], hidden.new_zeros(0, 3), hidden.sum()])
        number = nnsight.save(hidden.sum().item())
    return cast, odd, number


# -- several inputs --------------------------------------------------------------------------------------------------


@on("toy")
def invokes_and_a_value_between_them(model: Any, where: Where) -> Any:
    with model.trace(**where) as tracer:
        with tracer.invoke(PROMPT):
            carried = model.transformer.h[0].output[:, -1].clone()
            first = model.lm_head.output[:, -1].save()
        with tracer.invoke([OTHER, "The"]):
            model.transformer.h[1].output[:, -1] = carried
            second = model.lm_head.output[:, -1].save()
        with tracer.invoke():
            both = model.lm_head.output[:, -1].save()
    return first, second, both


@on("toy")
def a_barrier(model: Any, where: Where) -> Any:
    with model.trace(**where) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(PROMPT):
            words = model.transformer.wte.output.clone()
            barrier()
        with tracer.invoke(PROMPT + " the"):
            barrier()
            model.transformer.wte.output[:, : words.shape[1]] = words
            patched = model.lm_head.output.save()
    return patched


@on("toy")
def where_tokens_lie(model: Any, where: Where) -> Any:
    with model.trace(**where) as tracer:
        with tracer.invoke(PROMPT):
            pass
        with tracer.invoke(OTHER + " the"):
            own = nnsight.save(tracer.tokens.own(model.lm_head.output))
    return own


# -- steps -----------------------------------------------------------------------------------------------------------


@on("toy")
def generating(model: Any, where: Where) -> Any:
    with model.generate(PROMPT, max_new_tokens=4, do_sample=False, **where) as tracer:
        last = nnsight.save([])
        for step in tracer.iter[:]:
            if step == 1:
                model.transformer.h[0].output[:] *= 0.5
            last.append(model.lm_head.output[:, -1])
        written = tracer.result.save()
    return last, written


@on("toy")
def generating_for_several_with_chosen_steps(model: Any, where: Where) -> Any:
    with model.generate(max_new_tokens=3, do_sample=False, **where) as tracer:
        with tracer.invoke(PROMPT):
            with tracer.iter[1:3]:
                middle = model.transformer.h[1].output.save()
        with tracer.invoke(OTHER):
            model.lm_head.output
            second = model.next().lm_head.output.save()
            written = tracer.result.save()
    return middle, second, written


@on("toy")
def sampling_from_a_seed(model: Any, where: Where) -> Any:
    with model.generate(PROMPT, max_new_tokens=4, do_sample=True, top_k=20, **where) as tracer:
        torch.manual_seed(11)
        written = tracer.result.save()
    return written


@on("mlp")
def drawing_from_a_seed(model: Any, where: Where) -> Any:
    generator = torch.Generator().manual_seed(5)
    with model.trace(X, **where):
        torch.manual_seed(3)
        noise = torch.randn(3, 8).save()
        model.layers[0].output += noise + torch.randn(3, 8, generator=generator)
        result = model.output.save()
    return noise, result


# -- other contexts --------------------------------------------------------------------------------------------------


@on("toy")
def a_session(model: Any, where: Where) -> Any:
    with model.session(**where):
        with model.trace(OTHER):
            there = model.transformer.h[0].output
        found = nnsight.save([])
        for strength in (0.0, 1.0, 2.0):
            with model.trace(PROMPT):
                model.transformer.h[0].output[:, 1:4] = there[:, 1:4] * strength
                logits = model.lm_head.output[:, -1]
            found.append(logits)
    return found


@on("toy")
def edits(model: Any, where: Where) -> Any:
    strength = 0.5
    with model.edit() as edited:
        model.transformer.h[1].output[:] *= strength
    with edited.edit() as twice:
        edited.transformer.h[2].mlp.output = edited.transformer.h[2].mlp.output + SCALE
    found = []
    for reference in (model, edited, twice):
        with reference.trace(PROMPT, **where):
            logits = reference.lm_head.output.save()
        found.append(logits)
    return found


@on("toy")
def a_cache(model: Any, where: Where) -> Any:
    with model.trace(PROMPT, **where) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0], model.transformer.h[1].mlp], include_inputs=True)
        model.transformer.h[0].output[:] *= 2
    entry = cache["model.transformer.h.0"]
    return entry.output, entry.inputs, cache["model.transformer.h.1.mlp"].output, list(cache)


@on("mlp")
def what_a_scan_here_says_is_used_there(model: Any, where: Where) -> Any:
    with model.scan(X):
        width = model.layers[0].output.shape[-1]
    with model.trace(X, **where):
        model.layers[0].output[:, width // 2 :] = 0
        result = model.output.save()
    return width, result


@on("transformer")
def operations_at_any_depth(model: Any, where: Where) -> Any:
    with model.trace(IDS, **where):
        attention = model.layers[0].source.nn_functional_scaled_dot_product_attention_0
        attended = attention.output.save()
        attention.output = attended * 2
        normed = model.layers[1].mlp[0].source.F_linear_0.output.save()
        result = model.output.save()
    return attended, normed, result


@on("toy")
def the_source_of_a_called_function(model: Any, where: Where) -> Any:
    with model.trace(PROMPT, **where):
        operation = model.transformer.h[0].attn.source.attention_interface_0
        weighted = nnsight.save(operation.output[0])
        operation.output = (operation.output[0] * 0.5, *operation.output[1:])
        logits = model.lm_head.output.save()
    return weighted, logits


@on("toy")
def the_standard_names(model: Any, where: Where) -> Any:
    standard = model.standard
    with standard.trace(PROMPT, **where):
        residual = nnsight.save(standard.layers_output[2])
        standard.layers_output[3] = residual * 0.5
        attended = nnsight.save(standard.attentions_output[4])
        logits = nnsight.save(standard.logits)
    return residual, attended, logits


# -- gradients -------------------------------------------------------------------------------------------------------


@on("toy")
def gradients_read_and_changed(model: Any, where: Where) -> Any:
    with model.trace(PROMPT, **where):
        early, late = model.transformer.h[0].output, model.transformer.h[2].output
        loss = model.lm_head.output[:, -1].logsumexp(-1).sum()
        with loss.backward():
            of_late = late.grad.clone().save()
            late.grad = late.grad * 2
            of_early = early.grad.save()
    return of_late, of_early


@on("mlp")
def gradients_of_two_losses(model: Any, where: Where) -> Any:
    with model.trace(X, **where):
        hidden = model.layers[0].output
        out = model.output
        with out.sum().backward(retain_graph=True):
            one = hidden.grad.clone().save()
        with out.square().sum().backward():
            two = hidden.grad.clone().save()
        with torch.no_grad():
            without = (hidden * 2).requires_grad
        without = nnsight.save(without)
    return one, two, without


# -- code of the user's ----------------------------------------------------------------------------------------------


def scaled(value: torch.Tensor, by: float = SCALE) -> torch.Tensor:
    return value * by if by < 1 else scaled(value, by / 2)


class Probe:
    """Has a base, a property, a class method and a state."""

    count = 0

    def __init__(self, size: int) -> None:
        self.weight = torch.linspace(0, 1, size)

    @property
    def norm(self) -> float:
        return math.sqrt(float(self.weight.square().sum()))

    @classmethod
    def of(cls, size: int) -> Probe:
        return cls(size)

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return (value * self.weight).sum(-1) / self.norm


class Shifted(Probe):
    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        return super().__call__(value) + self.count


@dataclass(frozen=True)
class Plan:
    layer: int
    factors: list[float] = field(default_factory=lambda: [1.0, 0.5])


class Pair(NamedTuple):
    one: int
    two: torch.Tensor


@on("mlp")
def functions_closures_and_lambdas(model: Any, where: Where) -> Any:
    calls = 0

    def counted(value: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return scaled(value, 3.0) + calls

    twice, thrice = [lambda value: value * 2, lambda value: value * 3]
    with model.trace(X, **where):
        first = counted(model.layers[0].output)
        found = thrice(twice(counted(first))).save()
        inner = nnsight.save([(lambda k: k * first.sum())(n) for n in range(3)])
    return found, inner


@on("mlp")
def classes_and_data(model: Any, where: Where) -> Any:
    probe, plan, pair = Shifted.of(8), Plan(1), Pair(2, torch.arange(8.0))
    with model.trace(X, **where):
        seen = probe(model.layers[plan.layer].output).save()
        mixed = (model.layers[pair.one].output * pair.two * sum(plan.factors)).save()

        @dataclass
        class Local:
            value: torch.Tensor

            def halved(self) -> torch.Tensor:
                return self.value / 2

        half = Local(mixed).halved().save()
    return seen, mixed, half


@on("toy")
def what_belongs_to_the_model(model: Any, where: Where) -> Any:
    head, tokenizer, layers = model.lm_head, model.tokenizer, list(model.transformer.h)
    with model.trace(PROMPT, **where):
        lens = nnsight.save([head(model.transformer.ln_f(layer.output))[:, -1].argmax(-1) for layer in layers])
        words = nnsight.save([tokenizer.decode(ids) for ids in lens])
        row = (model.transformer.wte.weight[5] * 2).save()
        size = nnsight.save(model.config.n_embd)
    return lens, words, row, size


@on("mlp")
def weights_and_inputs_of_the_callers(model: Any, where: Where) -> Any:
    directions = {"up": torch.eye(8)[0], "down": [-torch.eye(8)[1]]}
    adapter = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    with model.trace(X * 2, **where):
        model.layers[0].output = adapter(model.layers[0].output) + directions["up"] + directions["down"][0]
        result = model.output.save()
    return result


@on("mlp")
def an_envoy_of_the_model_as_the_root_of_the_trace(model: Any, where: Where) -> Any:
    given = torch.linspace(-2, 2, 16).reshape(2, 8)
    with model.layers[1].trace(given, **where) as tracer:
        result = tracer.result.save()
    return result


@on("toy")
def a_chat_template(model: Any, where: Where) -> Any:
    said = [{"role": "user", "content": "The Eiffel Tower"}, {"role": "assistant", "content": "is in"}]
    template = "{% for one in messages %}{{ one.content }} {% endfor %}"
    with model.trace(PROMPT, **where):
        text = nnsight.save(model.tokenizer.apply_chat_template(said, chat_template=template, tokenize=False))
    return text


TOOLS = """
import torch
from dataclasses import dataclass

FACTOR = 3.0

@dataclass
class Tool:
    shift: float

    def use(self, value):
        return _inner(value) + self.shift

def _inner(value):
    return torch.tanh(value) * FACTOR
"""


# -- what needs more than a comparison -------------------------------------------------------------------------------


@pytest.fixture
def server(there: str) -> RemoteBackend:
    return RemoteBackend(there, model="mlp", quiet=True)


@pytest.fixture
def model(made: dict[str, Any]) -> Any:
    return made["mlp"]


def test_a_module_of_the_users_travels(server: RemoteBackend, model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my_tools_of_this_test.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    tools = importlib.import_module("my_tools_of_this_test")
    found = []
    for where in ({}, {"backend": server}):
        with model.trace(X, **where):
            got = tools.Tool(0.5).use(model.layers[0].output).save()
        found.append(got)
    del sys.modules["my_tools_of_this_test"]
    assert torch.equal(*found)


def test_prints_arrive_as_they_are(server: RemoteBackend, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for where in ({}, {"backend": server}):
        with model.trace(X, **where) as tracer:
            print("a sum:", model_sum := model.layers[0].output.sum().item())
            print("no end of line", end="")
            tracer.log("ä", model_sum)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "a sum: " in said[0]


class OfMine(Exception):
    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.code = code


@pytest.mark.parametrize(
    "error",
    [ValueError("two", 2), KeyError("key"), OfMine(7, "mine"), StopIteration(3)],
    ids=lambda e: type(e).__name__,
)
def test_errors_are_what_they_are_here(server: RemoteBackend, model: Any, error: Exception) -> None:
    raised = []
    for where in ({}, {"backend": server}):
        with pytest.raises(type(error)) as caught, model.trace(X, **where):
            model.layers[0].output
            raise error
        raised.append(caught.value)
    here, there = raised
    assert type(here) is type(there) and here.args == there.args and str(here) == str(there)
    assert getattr(here, "code", None) == getattr(there, "code", None)


def test_errors_of_ours_say_there_what_they_say_here(server: RemoteBackend, model: Any) -> None:
    def late(**where: Any) -> Any:
        with model.trace(X, **where):
            model.layers[1].output
            model.layers[0].output

    def missing(**where: Any) -> Any:
        with model.trace(X, **where):
            model.nowhere.output

    def rows(**where: Any) -> Any:
        with model.trace(**where) as tracer:
            with tracer.invoke(X):
                model.layers[0].output = torch.zeros(9, 8)
            with tracer.invoke(X):
                pass

    def unbound(**where: Any) -> Any:
        with model.trace(**where) as tracer:
            with tracer.invoke(X):
                pass
            with tracer.invoke(X):
                model.layers[0].output = never_bound  # noqa: F821

    for body in (late, missing, rows, unbound):
        said = []
        for where in ({}, {"backend": server}):
            with pytest.raises(Exception) as caught:
                body(**where)
            said.append((type(caught.value), str(caught.value)))
        assert said[0] == said[1]
