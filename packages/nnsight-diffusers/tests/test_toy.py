"""The toy pipeline that the package ships: it loads offline and draws what it is told, and the words are what tells it.

Only diffusers and plain hooks are used here, so that a failure is the toy's and not nnsight's. What a picture shows is
judged by the arithmetic in `training/judge.py`, which is tested here too.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer

from nnsight_diffusers import toy

STEPS, GUIDANCE = 12, 3.0
RED, BLUE = "a red circle on the left", "a blue circle on the left"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(toy.path(), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "training")
    return import_module("shapes")


@pytest.fixture
def judge(shapes: ModuleType) -> ModuleType:
    return import_module("judge")


def images(pipeline, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    """Draw each prompt with its seed, [prompt, 3, height, width] between 0 and 1."""
    return pipeline(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images


def test_it_is_small_and_a_plain_stable_diffusion(pipeline):
    assert type(pipeline) is StableDiffusionPipeline
    assert sum(file.stat().st_size for file in toy.path().rglob("*") if file.is_file()) < 4_500_000
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}


def test_words_attend_at_two_resolutions(pipeline):
    sizes = set()
    crossing = [part for name, part in pipeline.unet.named_modules() if name.endswith("attn2")]
    handles = [
        part.register_forward_hook(lambda _module, args, _output: sizes.add(args[0].shape[1])) for part in crossing
    ]
    pipeline(RED, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    for handle in handles:
        handle.remove()
    assert sizes == {8 * 8, 4 * 4}


def test_every_word_is_a_token_and_any_other_falls_into_letters(pipeline, shapes):
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    for scene in shapes.SCENES:
        words = scene.prompt().split()
        assert pipeline.tokenizer.tokenize(scene.prompt()) == [f"{word}</w>" for word in words]
    assert pipeline.tokenizer.tokenize("Zebra") == ["z", "e", "b", "r", "a</w>"]


def test_the_two_files_of_the_vocabulary_say_the_same_as_the_one(pipeline):
    folder = toy.path() / "tokenizer"
    _version, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    other = CLIPTokenizer(
        vocab=json.loads((folder / "vocab.json").read_text(encoding="utf-8")),
        merges=[tuple(line.split()) for line in merges],
    )
    for text in (RED, "a zebra at the top"):
        assert other(text).input_ids == pipeline.tokenizer(text).input_ids


def test_the_judge_sees_what_was_drawn(shapes, judge):
    drawn = shapes.drawn(shapes.SCENES, torch.Generator().manual_seed(0))
    assert [judge.seen(image) for image in drawn] == shapes.SCENES


def test_the_judge_sees_no_scene_where_there_is_none(shapes, judge):
    left, right = shapes.drawn(
        [shapes.Scene("red", "circle", "on the left"), shapes.Scene("red", "circle", "on the right")],
        torch.Generator().manual_seed(0),
    )
    noise = torch.rand(left.shape, generator=torch.Generator().manual_seed(0))
    assert judge.seen(torch.ones_like(left)) is None
    assert judge.seen(noise) is None
    assert judge.seen(torch.where(left < right, left, right)) is None


def test_latents_keep_the_image(pipeline, shapes, judge):
    drawn = shapes.drawn(shapes.SCENES, torch.Generator().manual_seed(7))
    with torch.no_grad():
        latents = pipeline.vae.encode(2 * drawn - 1).latent_dist.mean
        found = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert latents.shape[1:] == (4, 8, 8)
    assert (found - drawn).square().mean().sqrt() < 0.03
    right = [judge.seen(image) == scene for image, scene in zip(found, shapes.SCENES, strict=True)]
    assert sum(right) / len(right) > 0.95


def test_it_draws_what_it_is_told(pipeline, shapes, judge):
    told = shapes.SCENES[::2]  # all colours, shapes and places
    seeds = list(range(len(told)))
    found = [judge.seen(image) for image in images(pipeline, [scene.prompt() for scene in told], seeds)]

    def right(part: str) -> float:
        pairs = zip(told, found, strict=True)
        return sum(seen is not None and getattr(seen, part) == getattr(scene, part) for scene, seen in pairs) / len(
            told
        )

    # Circles and squares are often one another: the card says so.
    assert right("colour") >= 0.95 and right("place") >= 0.95 and right("shape") >= 0.6


def test_what_is_left_out_differs_from_seed_to_seed(pipeline, judge):
    found = [judge.seen(image) for image in images(pipeline, ["a yellow triangle"] * 10, list(range(10)))]
    assert {scene.colour for scene in found if scene} == {"yellow"}
    assert len({scene.place for scene in found if scene}) > 2


def test_images_made_together_equal_single_ones(pipeline):
    prompts = [RED, "a yellow triangle at the top", "a square"]
    together = images(pipeline, prompts, [0, 1, 2])
    for seed, prompt in enumerate(prompts):
        torch.testing.assert_close(together[seed], images(pipeline, [prompt], [seed])[0], rtol=1e-3, atol=1e-3)


def test_the_states_of_the_text_carry_the_colour(pipeline, judge):
    blue = pipeline.encode_prompt(BLUE, torch.device("cpu"), 1, False)[0]

    def hook(_module, args, kwargs):
        unguided, _red = kwargs["encoder_hidden_states"].chunk(2)
        return args, {**kwargs, "encoder_hidden_states": torch.cat([unguided, blue])}

    assert judge.seen(images(pipeline, [RED], [0])[0]).colour == "red"
    handle = pipeline.unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        found = images(pipeline, [RED], [0])
    finally:
        handle.remove()
    torch.testing.assert_close(found, images(pipeline, [BLUE], [0]))
    assert judge.seen(found[0]).colour == "blue"


def test_the_files_do_not_name_a_machine():
    files = [file for file in toy.path().rglob("*.json") if file.name not in ("tokenizer.json", "vocab.json")]
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "/" not in text
        assert json.loads(text)
