"""The demo: its numbers are those that plain hooks give, and it can be read in any terminal and in none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nnsight import LanguageModel
from nnsight_hf.demo import __main__ as demo
from nnsight_hf.demo import gradients, lens, patching, prompts, steering, terminal, timing


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel("nnsight/toy-landmarks", dispatch=True)


@pytest.fixture(scope="module")
def gpt(model: LanguageModel) -> Any:
    """The module that the model wraps, for hooks."""
    return model._model


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _given, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


def encoded(model: LanguageModel, prompt: str) -> dict[str, torch.Tensor]:
    return dict(model.tokenizer(prompt, return_tensors="pt"))


def output_of(block: torch.nn.Module, gpt: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    found: list[torch.Tensor] = []
    with torch.no_grad(), hooked(block, found.append):
        gpt(**given)
    return found[0]


def test_the_prompts_line_up(model):
    lengths = {len(prompts.words(model, prompt)) for prompt in (prompts.EIFFEL, prompts.NEEDLE)}
    assert lengths == {8}


def test_the_lens_reads_what_hooks_read(model, gpt):
    found = lens.logit_lens(model, prompts.EIFFEL)
    given = encoded(model, prompts.EIFFEL)
    assert len(found) == 1 + len(gpt.transformer.h)
    for depth, block in enumerate(gpt.transformer.h, start=1):
        with torch.no_grad():
            logits = gpt.lm_head(gpt.transformer.ln_f(output_of(block, gpt, given)))[0]
        torch.testing.assert_close(found[depth], logits.softmax(-1))
    with torch.no_grad():
        torch.testing.assert_close(found[-1], gpt(**given).logits[0].softmax(-1))


@pytest.mark.parametrize(("block", "position"), [(0, 1), (2, 7), (5, 7)])
def test_a_patch_does_what_a_hook_does(model, gpt, block, position):
    found = patching.patch_each(model, prompts.EIFFEL, prompts.NEEDLE)[block, position]
    layer = gpt.transformer.h[block]
    taken = output_of(layer, gpt, encoded(model, prompts.EIFFEL))

    def patch(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, position] = taken[:, position]
        return output

    with torch.no_grad(), hooked(layer, patch):
        expected = gpt(**encoded(model, prompts.NEEDLE)).logits[0, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_patch_of_everything_at_the_end_moves_the_answer_wholly(model):
    shares = patching.moved(model, prompts.EIFFEL, prompts.NEEDLE, ("Paris", "Seattle"))
    assert shares.shape == (6, 8)
    assert shares[-1, -1].item() == pytest.approx(1, abs=1e-3)
    assert shares[-1, :-1].abs().max().item() < 1e-3


def test_steering_pushes_every_step(model, gpt):
    push = torch.randn(128, generator=torch.Generator().manual_seed(1))
    text, first = steering.write(model, prompts.EIFFEL, push)
    given = encoded(model, prompts.EIFFEL)
    with hooked(gpt.transformer.h[steering.BLOCK], lambda output: output + push):
        tokens = gpt.generate(**given, max_new_tokens=8)
        with torch.no_grad():
            expected = gpt(**given).logits[0, -1].softmax(-1)
    assert text == model.tokenizer.decode(tokens[0], skip_special_tokens=True)
    torch.testing.assert_close(first, expected)


def test_the_gradient_is_that_of_autograd(model, gpt):
    paris = prompts.token(model, "Paris")
    found = gradients.gradient(model, prompts.EIFFEL, paris)
    streams: list[torch.Tensor] = []
    with hooked(gpt.transformer.h[gradients.BLOCK], streams.append):
        logit = gpt(**encoded(model, prompts.EIFFEL)).logits[0, -1, paris]
    (expected,) = torch.autograd.grad(logit, streams)
    torch.testing.assert_close(found, expected[0])


def test_what_is_timed_is_the_same_work(model, gpt):
    given = encoded(model, prompts.EIFFEL)
    torch.testing.assert_close(timing.read_with_nnsight(model, given), timing.read_with_hooks(gpt, given))
    torch.testing.assert_close(timing.scale_with_nnsight(model, given), timing.scale_with_hooks(gpt, given))


def test_the_clock_runs_all_in_turn():
    calls: list[str] = []
    times = timing.medians([lambda: calls.append("a"), lambda: calls.append("b")], rounds=2)
    assert calls == ["a", "b"] * (len(calls) // 2)
    assert 0 <= max(times) < 1000


def test_it_prints_plain_text_into_a_pipe_and_writes_its_figures(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 3)
    demo.main(["--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert all(line in said for line in ("with model.trace(prompt):", "1. Logit lens", "5. What it costs"))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}.png" for name in demo.PARTS)
    for file in tmp_path.iterdir():
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size < 300_000


def test_one_part_can_be_asked_for(tmp_path: Path, capsys):
    demo.main(["gradients", "--out", str(tmp_path)])
    assert "1. Gradients" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["gradients.png"]


def test_an_unknown_part_is_refused_with_the_names_that_there_are(capsys):
    with pytest.raises(SystemExit):
        demo.main(["lense"])
    assert "there is no part 'lense'; there are lens, patching" in capsys.readouterr().err


def test_without_what_draws_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'matplotlib and rich.*pip install "nnsight-hf\[demo\]"'):
        demo.main([])


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_any_terminal(model, width):
    page = io.StringIO()
    terminal.show(lens.part(model), 1, Console(file=page, width=width, color_system=None, force_terminal=True))
    assert max(len(line) for line in page.getvalue().splitlines()) <= width


def test_a_terminal_with_colours_gets_them(model):
    page = io.StringIO()
    terminal.show(lens.part(model), 1, Console(file=page, width=80, color_system="truecolor", force_terminal=True))
    sure = next(line for line in page.getvalue().splitlines() if "Tower" in line and "48;2;" in line)
    assert "\x1b[" in sure


def test_a_heat_map_says_its_numbers_without_colours():
    page = io.StringIO()
    values = torch.tensor([[0.0, 0.25], [1.0, -0.001]])
    Console(file=page, width=80).print(terminal.heat_map(values, ["a", "b"], ["x", "y"]))
    assert page.getvalue().split() == ["x", "y", "a", "0.00", "0.25", "b", "1.00", "0.00"]
