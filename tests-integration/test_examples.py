"""The worked examples: each runs as a user would run it, and the numbers that it states are those of plain hooks."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pages import ROOT

from nnsight_hf import toy

FOLDER = ROOT / "examples"
#: The scripts; what they share is no script.
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "landmarks")
EIFFEL = "The Eiffel Tower is in the city of"
NEEDLE = "The Space Needle is in the city of"

# Each starts a Python that imports torch and transformers, and some train: on a busy machine that takes a while.
pytestmark = pytest.mark.timeout(300)

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def gpt() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(toy.path()).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(toy.path())


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a script, to take from it what was trained."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in SCRIPTS or name == "landmarks":
            del sys.modules[name]


@pytest.fixture
def numbers(tmp_path: Path) -> Callable[[str], list[float]]:
    """Run a script, and return the numbers in what it says."""

    def run(script: str) -> list[float]:
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
        command = [sys.executable, str(FOLDER / f"{script}.py"), "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in tmp_path.iterdir()] == [f"{script}.png"]
        assert (tmp_path / f"{script}.png").read_bytes().startswith(b"\x89PNG")
        assert "ontrol" in done.stdout
        return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", done.stdout)]

    return run


@contextlib.contextmanager
def hooked(module: Any, change: Callable[[torch.Tensor], Any], before: bool = False) -> Iterator[None]:
    if before:
        handle = module.register_forward_pre_hook(lambda _, given: change(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, given, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def ids(tokenizer: Any, prompt: str) -> torch.Tensor:
    return tokenizer(prompt, return_tensors="pt").input_ids


def one(tokenizer: Any, word: str) -> int:
    (found,) = tokenizer.encode(f" {word}")
    return found


@torch.no_grad()
def last(gpt: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
    return gpt(ids(tokenizer, prompt)).logits[0, -1]


def leads(tokenizer: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits[..., one(tokenizer, "Paris")] - logits[..., one(tokenizer, "Seattle")]


@torch.no_grad()
def streams(gpt: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
    """What each block leaves: [block, position, width]."""
    found: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        for block in gpt.transformer.h:
            stack.enter_context(hooked(block, found.append))
        gpt(ids(tokenizer, prompt))
    return torch.cat(found)


def at(position: int, value: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, position] = value
        return output

    return change


def true_effects(gpt: Any, tokenizer: Any) -> torch.Tensor:
    """The change of the lead by each patch: [block, position]."""
    source, low = streams(gpt, tokenizer, EIFFEL), leads(tokenizer, last(gpt, tokenizer, NEEDLE))
    effects = torch.zeros(source.shape[:2])
    for number, block in enumerate(gpt.transformer.h):
        for position in range(source.shape[1]):
            with hooked(block, at(position, source[number, position])):
                effects[number, position] = leads(tokenizer, last(gpt, tokenizer, NEEDLE)) - low
    return effects


def near(*values: Any, digits: int = 2) -> Any:
    """As far as they were written."""
    return pytest.approx([float(value) for value in values], abs=0.51 * 10**-digits)


def test_logit_lens(numbers, gpt, tokenizer):
    with torch.no_grad():
        *before, last_one = gpt(ids(tokenizer, EIFFEL), output_hidden_states=True).hidden_states
        # The last one has been through the norm.
        hidden = [*(gpt.transformer.ln_f(x) for x in before), last_one]
        found = torch.stack([gpt.lm_head(x)[0, -1] for x in hidden]).softmax(-1)
    paris = found.argmax(-1).eq(one(tokenizer, "Paris")).tolist()
    first = paris.index(True)
    assert all(paris[first:])
    block, there, rome = numbers("logit_lens")
    assert block == first - 1
    assert [there, rome] == near(found[first, one(tokenizer, "Paris")], found[:, one(tokenizer, "Rome")].max())


def test_activation_patching(numbers, gpt, tokenizer):
    high, low = (leads(tokenizer, last(gpt, tokenizer, prompt)) for prompt in (EIFFEL, NEEDLE))
    effects = true_effects(gpt, tokenizer) / (high - low)
    _, early, late, control = numbers("activation_patching")
    assert [early, late, control] == near(effects[0, 1], effects[-1, -1], 0)


def test_attribution_patching(numbers, gpt, tokenizer):
    found: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        for block in gpt.transformer.h:
            stack.enter_context(hooked(block, found.append))
        lead = leads(tokenizer, gpt(ids(tokenizer, NEEDLE)).logits[0, -1])
    slopes = torch.cat(torch.autograd.grad(lead, found))
    changes = streams(gpt, tokenizer, EIFFEL) - torch.cat(found).detach()
    true = true_effects(gpt, tokenizer).flatten().numpy()
    expected = [
        np.corrcoef(true, guess.flatten().numpy())[0, 1] for guess in ((changes * slopes).sum(-1), changes.norm(dim=-1))
    ]
    assert numbers("attribution_patching") == near(*expected)
    assert expected[0] > 0.9 > 0.7 > expected[1]


def test_steering(numbers, gpt, tokenizer, example):
    prompts, script = example("landmarks").prompts, example("steering")
    means = {}
    for city in ("Rome", "Paris"):
        texts = [text for text in prompts(city) if "Eiffel" not in text]
        means[city] = torch.stack([streams(gpt, tokenizer, text)[script.BLOCK, -1] for text in texts]).mean(0)
    direction = means["Rome"] - means["Paris"]
    random = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
    random *= direction.norm() / random.norm()
    with hooked(gpt.transformer.h[script.BLOCK], lambda output: output + 2 * direction):
        steered = last(gpt, tokenizer, EIFFEL).softmax(-1)
        text = tokenizer.decode(gpt.generate(ids(tokenizer, EIFFEL), max_new_tokens=8)[0])
    with hooked(gpt.transformer.h[script.BLOCK], lambda output: output + 2 * random):
        pushed = last(gpt, tokenizer, EIFFEL).softmax(-1)
    rome, paris = one(tokenizer, "Rome"), one(tokenizer, "Paris")
    strength, *said = numbers("steering")
    assert strength == 2 and said == near(steered[rome], pushed[rome], pushed[paris])
    assert script.write(script.LanguageModel(toy.path()), 2 * direction)[1] == text and "Rome, in Italy" in text


def test_probing(numbers, gpt, tokenizer, example):
    linear = pytest.importorskip("sklearn.linear_model")
    landmarks = example("landmarks")
    texts = {city: landmarks.prompts(city) for city in landmarks.CITIES}
    ends = {text: streams(gpt, tokenizer, text)[:, -1].numpy() for city in texts for text in texts[city]}
    right = []
    for block in (0, 3):
        train = [(ends[text][block], city) for city in texts for text in texts[city][2:]]
        test = [(ends[text][block], city) for city in texts for text in texts[city][:2]]
        probe = linear.LogisticRegression(max_iter=2000).fit(*map(list, zip(*train)))
        right.append(probe.score(*map(list, zip(*test))))
    early, _, late, _, control, _, chance = numbers("probing")
    # One prompt more or less on the edge is a matter of rounding.
    assert [early, late] == pytest.approx(right, abs=1 / 16 + 0.01)
    assert late > 0.9 and control < 0.5 and [chance] == near(1 / 8)


def test_head_ablation(numbers, gpt, tokenizer, example):
    landmarks = example("landmarks")
    others = [text for city in landmarks.CITIES if city != "Paris" for text in landmarks.prompts(city)]
    block, head, lost, full, _, together, total, control = numbers("head_ablation")

    def given(number: int) -> torch.Tensor:
        found: list[torch.Tensor] = []
        with hooked(gpt.transformer.h[number].attn.c_proj, lambda x: found.append(x[0, -1]), before=True):
            for text in others:
                last(gpt, tokenizer, text)
        return torch.stack(found).mean(0)

    def without(number: int, heads: slice) -> float:
        mean = given(number)

        def change(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, -1, heads] = mean[heads]
            return x

        with hooked(gpt.transformer.h[number].attn.c_proj, change, before=True):
            return float(before - leads(tokenizer, last(gpt, tokenizer, EIFFEL)))

    before = leads(tokenizer, last(gpt, tokenizer, EIFFEL))
    width = gpt.config.n_embd // gpt.config.n_head
    slices = [slice(number * width, (number + 1) * width) for number in range(gpt.config.n_head)]
    assert [lost, full] == near(without(int(block), slices[int(head)]), before, digits=1)
    assert [together, total] == near(without(3, slice(None)), sum(without(3, each) for each in slices), digits=1)
    assert control == 0


def test_gradient_attribution(numbers, gpt, tokenizer):
    differ, whole, single = numbers("gradient_attribution")
    high, low = (leads(tokenizer, last(gpt, tokenizer, prompt)) for prompt in (EIFFEL, NEEDLE))
    end, start = (gpt.transformer.wte(ids(tokenizer, prompt)).detach() for prompt in (EIFFEL, NEEDLE))
    point = end.clone().requires_grad_()
    (slope,) = torch.autograd.grad(leads(tokenizer, gpt(inputs_embeds=point).logits[0, -1]), point)
    # Complete, to the error of a sum of 128 steps.
    assert [differ, whole] == pytest.approx([float(high - low)] * 2, abs=0.05)
    assert [single] == near(((end - start) * slope).sum())


def test_sae(numbers, gpt, tokenizer, example):
    said = numbers("sae")
    script = example("sae")
    # Trained as in the script; what it does to the model is computed with hooks.
    sae = script.train(script.LanguageModel(toy.path()))
    plain, rebuilt, feature, ablated, quiet, mean, _, rome = said

    def probability(change: Callable[[torch.Tensor], torch.Tensor], prompt: str = EIFFEL, city: str = "Paris") -> float:
        with hooked(gpt.transformer.h[script.BLOCK], change):
            return float(last(gpt, tokenizer, prompt).softmax(-1)[one(tokenizer, city)])

    def without(stream: torch.Tensor) -> torch.Tensor:
        features = sae.encode(stream)
        features[..., int(feature)] = 0
        return features @ sae.decoder.weight.T + sae.centre

    assert [plain, rebuilt, ablated, mean, rome] == pytest.approx(
        [
            probability(lambda stream: stream),
            probability(sae),
            probability(without),
            probability(lambda stream: sae.centre.expand_as(stream)),
            probability(without, script.COLOSSEUM, "Rome"),
        ],
        abs=0.02,
    )
    assert min(plain, rebuilt, quiet, rome) > 0.9 > 0.5 > max(ablated, mean)
    with torch.no_grad():
        assert int((sae.encode(streams(gpt, tokenizer, EIFFEL)[script.BLOCK]) != 0).sum(-1).max()) <= script.ACTIVE


def test_lora_edit(numbers, gpt, tokenizer, example):
    script = example("lora_edit")
    model = script.LanguageModel(toy.path(), dispatch=True)
    down, up = script.train(model)
    mlp = gpt.transformer.h[0].mlp
    handle = mlp.register_forward_hook(lambda _, given, output: output + given[0] @ (up @ down).T)
    after = {prompt: last(gpt, tokenizer, prompt).softmax(-1) for prompt in script.ASKED}
    handle.remove()
    before = {prompt: last(gpt, tokenizer, prompt).softmax(-1) for prompt in script.ASKED}
    rome = one(tokenizer, "Rome")
    changes = [
        float((before[prompt] - after[prompt])[one(tokenizer, city)].abs()) for prompt, city in script.ASKED.items()
    ][2:]
    count, was, now, most, unedited = numbers("lora_edit")
    assert count == 2 * gpt.config.n_embd
    assert [was, now, most] == pytest.approx(
        [float(before[script.MOVED][rome]), float(after[script.MOVED][rome]), max(changes)], abs=0.02
    )
    assert was == unedited < 0.1 < 0.9 < now and most < 0.5


def test_standard_names(numbers, gpt, tokenizer, example):
    script = example("standard_names")
    found: list[torch.Tensor] = []
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for block in gpt.transformer.h:
            stack.enter_context(hooked(block, found.append))
        gpt(torch.tensor([[5, 9, 21, 33, 17, 8]]))
    norms = torch.cat(found).norm(dim=-1)
    *_, first, final, difference = numbers("standard_names")
    assert [first, final] == near(norms[0].median(), norms[-1].median(), digits=0)
    assert difference < 1e-5
    for model in script.models().values():
        tokens = torch.tensor([[5, 9, 21]])
        kept: list[torch.Tensor] = []
        model.dispatch()
        layers = [envoy._module for envoy in model.layers]
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(hooked(layer, kept.append))
            model._model(tokens)
        plain = [x[0] if isinstance(x, tuple) else x for x in kept]
        torch.testing.assert_close(model.stream(tokens), torch.cat(plain))


def test_every_example_is_tested_and_shown():
    text = Path(__file__).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) == 10
    for script in SCRIPTS:
        assert f"def test_{script}(" in text
        assert f'--8<-- "examples/{script}.py"' in page
        image = ROOT / "docs" / "images" / "examples" / f"{script}.png"
        assert f"](images/examples/{script}.png)" in page and image.stat().st_size < 60_000
        prose = (FOLDER / f"{script}.py").read_text(encoding="utf-8").split('"""')[1]
        assert "What one sees:" in prose and "Control" in prose
