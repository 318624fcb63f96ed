"""The demo: what it reads and changes is what plain hooks on diffusers read and change; it can be read in any terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from nnsight import DiffusionModel
from nnsight_diffusers import toy
from nnsight_diffusers.demo import __main__ as demo
from nnsight_diffusers.demo import blocks, prompts, trajectory, words


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return DiffusionModel("nnsight/toy-shapes", dispatch=True)


@pytest.fixture(scope="module")
def plain() -> Any:
    made = diffusers.DiffusionPipeline.from_pretrained(toy.path())
    made.set_progress_bar_config(disable=True)
    return made


def drawn(plain: Any, texts: list[str]) -> torch.Tensor:
    settings = dict(prompts.SETTINGS)
    seed = settings.pop("seed")
    generators = [torch.Generator("cpu").manual_seed(seed + at) for at in range(len(texts))]
    images: torch.Tensor = plain(texts, generator=generators, output_type="pt", **settings).images
    return images


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _given, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


def test_the_trajectory_is_that_of_the_plain_pipeline(model, plain):
    times, latents, guesses = trajectory.denoise(model, prompts.CIRCLE)
    begun: list[torch.Tensor] = []
    noises: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, given: tuple[Any, ...], output: tuple[torch.Tensor]) -> None:
        begun.append(given[0][:1])
        without, told = output[0].chunk(2)
        noises.append(without + prompts.SETTINGS["guidance_scale"] * (told - without))

    handle = plain.unet.register_forward_hook(keep)
    try:
        image = drawn(plain, [prompts.CIRCLE])
    finally:
        handle.remove()
    assert times == plain.scheduler.timesteps.tolist() == sorted(times, reverse=True)
    torch.testing.assert_close(latents[:-1], torch.cat(begun[1:]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trajectory.decode(model, latents[-1:]), image, atol=1e-4, rtol=1e-4)
    for time, before, noise, guess in zip(times, begun, noises, guesses):
        made = plain.scheduler.step(noise, time, before, return_dict=True)
        torch.testing.assert_close(guess[None], made.pred_original_sample, atol=1e-4, rtol=1e-4)


def test_a_silenced_block_is_one_whose_attention_a_hook_silences(model, plain):
    texts = [prompts.CIRCLE, prompts.SQUARE]
    found = blocks.draw(model, texts, blocks.layers(model)["middle"])
    layer = plain.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with hooked(layer, lambda output: output * 0):
        torch.testing.assert_close(found, drawn(plain, texts), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(blocks.draw(model, texts), drawn(plain, texts), atol=1e-4, rtol=1e-4)


def test_without_any_cross_attention_the_prompt_is_nothing(model):
    every = [layer for deaf in blocks.layers(model).values() for layer in deaf]
    one, other = (blocks.draw(model, [text], every) for text in (prompts.CIRCLE, prompts.SQUARE))
    torch.testing.assert_close(one, other)


def test_the_maps_are_those_of_diffusers_own_attention(model, plain):
    found, image = words.attention_maps(model, prompts.CIRCLE, words.finest(model))
    plains = [*plain.unet.down_blocks[0].attentions, *plain.unet.up_blocks[-1].attentions]
    kept: list[torch.Tensor] = []

    class Keep(diffusers.models.attention_processor.AttnProcessor):
        def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **own: Any) -> Any:
            query, key = (
                attn.head_to_batch_dim(part[1:])
                for part in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states))
            )
            kept.append(attn.get_attention_scores(query, key).mean(0))
            return super().__call__(attn, hidden_states, encoder_hidden_states, **own)

    before = plain.unet.attn_processors
    for block in plains:
        block.transformer_blocks[0].attn2.set_processor(Keep())
    try:
        expected = drawn(plain, [prompts.CIRCLE])[0]
    finally:
        plain.unet.set_attn_processor(before)
    torch.testing.assert_close(image, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.flatten(0, 1), torch.stack(kept).mean(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))


def test_it_prints_plain_text_into_a_pipe_and_writes_its_figures(tmp_path: Path, capsys):
    demo.main(["--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert all(line in said for line in ("with model.generate(", "1. The trajectory", "3. Cross-attention"))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}.png" for name in demo.PARTS)
    for file in tmp_path.iterdir():
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size < 300_000


def test_one_part_can_be_asked_for(tmp_path: Path, capsys):
    demo.main(["trajectory", "--out", str(tmp_path)])
    assert "1. The trajectory" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["trajectory.png"]
