"""Videos, and packed images of different extents, given as tensors: what a processor makes that needs torchvision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pictures
import pytest
import seer_configs as configs
import torch
import transformers
from checkpoints import LONG, SHORT, ids
from seer_words import number
from seers import SEERS

from nnsight import VisionLanguageModel

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(words: str, *before: list[int]) -> dict[str, torch.Tensor]:
    row = torch.tensor([[*(token for part in before for token in part), *ids(words)]])
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def patched(words: str, seed: int = 0, videos: tuple[Any, ...] = (), images: tuple[Any, ...] = ()) -> dict[str, Any]:
    """An input of Qwen2-VL: videos and images of so many patches (times, down, across), then words."""
    start, end = number("<|vision_start|>"), number("<|vision_end|>")
    parts, made = [], {}
    for pad, name, grid, shapes in (
        ("<|video_pad|>", "pixel_values_videos", "video_grid_thw", videos),
        ("<|image_pad|>", "pixel_values", "image_grid_thw", images),
    ):
        sizes = [times * down * across for times, down, across in shapes]
        parts += [[start, *[number(pad)] * (size // 4), end] for size in sizes]
        if shapes:
            made[name] = noise(seed, sum(sizes), 3 * 2 * 7 * 7)
            made[grid] = torch.tensor(shapes)
    data = tokens(words, *parts)
    kinds = (data["input_ids"] == number("<|image_pad|>")).int()
    kinds += 2 * (data["input_ids"] == number("<|video_pad|>")).int()
    return {**data, **made, "mm_token_type_ids": kinds}


def filmed(words: str, seed: int = 0, frames: int = 0, videos: int = 1) -> dict[str, Any]:
    """An input of LLaVA-NeXT-Video: videos of so many frames, 4 tokens for each, then words."""
    if not frames:
        return tokens(words)
    data = tokens(words, [number("<video>")] * (4 * frames * videos))
    return {**data, "pixel_values_videos": noise(seed, videos, frames, 3, 28, 28)}


def packed(words: str, seed: int = 0, *extents: tuple[int, int]) -> dict[str, Any]:
    """An input of Mistral 3: images of these extents in pixels, a token for each square of 14, then words."""
    data: dict[str, Any] = tokens(words, [number("[IMG]")] * sum(h * w // 196 for h, w in extents))
    if extents:
        data["pixel_values"] = torch.zeros(len(extents), 3, max(h for h, _ in extents), max(w for _, w in extents))
        for at, (h, w) in enumerate(extents):
            data["pixel_values"][at, :, :h, :w] = noise(seed + at, 3, h, w)
        data["image_sizes"] = torch.tensor(extents)
    return data


def listed(words: str, seed: int = 0, patches: int = 0) -> dict[str, Any]:
    """An input of Fuyu: so many patches, a token for each, then words."""
    data = tokens(words, [number("|SPEAKER|")] * patches)
    return {**data, "pixel_values": noise(seed, patches, 3 * 7 * 7)} if patches else data


@dataclass(frozen=True)
class Case:
    """A model, inputs for it, and a place that sees images or videos."""

    make: Callable[[], torch.nn.Module]
    inputs: list[dict[str, Any]]
    tower: str


def mistral3() -> torch.nn.Module:
    return pictures.seeded(transformers.Mistral3ForConditionalGeneration, configs.mistral3())


def fuyu() -> torch.nn.Module:
    return pictures.seeded(transformers.FuyuForCausalLM, configs.fuyu())


CASES = {
    "qwen2_vl": Case(
        SEERS["qwen2_vl"].module,
        [patched(SHORT, 0, ((2, 2, 4),)), patched(LONG), patched(LONG, 1, ((1, 4, 4), (3, 2, 2)))],
        "model.visual.blocks.1",
    ),
    "qwen2_5_vl": Case(
        SEERS["qwen2_5_vl"].module,
        [patched(SHORT, 0, ((2, 2, 4),)), patched(LONG), patched(LONG, 1, ((1, 4, 4), (3, 2, 2)))],
        "model.visual.merger",
    ),
    "llava_next_video": Case(
        SEERS["llava_next_video"].module,
        [filmed(SHORT, 0, 2), filmed(LONG), filmed(LONG, 1, 2, 2)],
        "model.multi_modal_projector",
    ),
    "mistral3": Case(
        mistral3,
        [packed(SHORT, 0, (14, 28)), packed(LONG), packed(LONG, 1, (28, 28), (28, 14))],
        "model.vision_tower.transformer.layers.1",
    ),
    "fuyu": Case(fuyu, [listed(SHORT, 0, 6), listed(LONG), listed(LONG, 1, 2)], "model.vision_embed_tokens"),
}


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    return VisionLanguageModel(CASES[name].make()), CASES[name].make()


def alone(name: str, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits, and what a hook sees in the tower."""
    module, seen = built(name)[1], []
    hook = module.get_submodule(CASES[name].tower).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        logits = module(**given).logits
    hook.remove()
    return logits, (seen[0][0] if isinstance(seen[0], tuple) else seen[0]) if seen else None


@pytest.mark.parametrize("name", CASES)
def test_each_invoke_gets_what_it_gets_alone(name: str) -> None:
    case, model = CASES[name], built(name)[0]
    got: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for one in case.inputs:
            with tracer.invoke(one):
                got.append((model.get(case.tower).output, tracer.result.logits))
    for one, (tower, logits) in zip(case.inputs, got, strict=True):
        want, seen = alone(name, one)
        torch.testing.assert_close(logits[:, -want.shape[1] :], want, **CLOSE)
        if seen is None:
            assert not tower.numel()
        else:
            torch.testing.assert_close(tower, seen, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_an_edit_of_ones_own_leaves_the_others_alone(name: str) -> None:
    case, model = CASES[name], built(name)[0]
    tower = model.get(case.tower)
    first, *others = case.inputs
    with torch.no_grad(), model.trace(first) as tracer:
        tower.output = tower.output.flip(-1)
        want = tracer.result.logits
    rest: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for one in others:
            with tracer.invoke(one):
                rest.append(tracer.result.logits)
        with tracer.invoke(first):
            tower.output = tower.output.flip(-1)
            got = tracer.result.logits
    torch.testing.assert_close(got[:, -want.shape[1] :], want, **CLOSE)
    assert not torch.allclose(want, alone(name, first)[0], atol=1e-2)
    for one, logits in zip(others, rest, strict=True):
        plain = alone(name, one)[0]
        torch.testing.assert_close(logits[:, -plain.shape[1] :], plain, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_a_generation_continues_each_as_alone(name: str) -> None:
    model, module = built(name)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    got: list[Any] = []
    with model.generate(**options) as tracer:
        for one in CASES[name].inputs:
            with tracer.invoke(one):
                got.append(tracer.result)
    for one, made in zip(CASES[name].inputs, got, strict=True):
        assert made[0, -3:].tolist() == module.generate(**one, **options)[0, -3:].tolist()


def test_images_beside_videos() -> None:
    """The tower sees images first and videos then: each is found at the visit that it is in."""
    model = built("qwen2_vl")[0]
    seen, filmed_, both = patched(SHORT, 0, (), ((1, 4, 8),)), patched(LONG, 1, ((2, 2, 4),)), None
    both = patched(SHORT, 2, ((1, 2, 2),), ((1, 2, 4), (1, 4, 4)))
    block = model.get(CASES["qwen2_vl"].tower)
    got: list[Any] = []
    towers: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for one in (seen, filmed_, both):
            with tracer.invoke(one):
                visits = []
                for _ in tracer.iter[:2]:
                    visits.append(block.output)
                towers.append(visits)
                got.append(tracer.result.logits)
    for one, logits in zip((seen, filmed_, both), got, strict=True):
        want = alone("qwen2_vl", one)[0]
        torch.testing.assert_close(logits[:, -want.shape[1] :], want, **CLOSE)
    assert [[len(visit) for visit in visits] for visits in towers] == [[32, 0], [0, 16], [24, 4]]
    torch.testing.assert_close(towers[0][0], alone("qwen2_vl", seen)[1], **CLOSE)
    torch.testing.assert_close(towers[1][1], alone("qwen2_vl", filmed_)[1], **CLOSE)
    torch.testing.assert_close(towers[2][0], alone("qwen2_vl", both)[1], **CLOSE)
