"""Every family that reads images and text: invokes with other texts and other images get what each gets alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from checkpoints import LONG, MIDDLE, SHORT
from pictures import picture
from seers import SEERS

from nnsight import RowsError, ScanError, VisionLanguageModel
from nnsight_hf import padding

CLOSE = {"rtol": 1e-3, "atol": 1e-3}

#: Those whose forward needs numbers to go on.
UNSCANNED = {*SEERS} - {"mllama", "blip_2", "instructblip", "kosmos2", "git"}


@functools.cache
def built(name: str) -> tuple[Any, Any, Any]:
    """The model, the same module with nothing around it, and its processor."""
    seer = SEERS[name]
    processor = seer.processor()
    return VisionLanguageModel(seer.module(), processor=processor), seer.module(), processor


def given(name: str) -> list[tuple[str, list[Any]]]:
    """Words and images of several invokes."""
    small, wide, high = picture(0), picture(1, 20, 45), picture(2, 40, 20)
    if SEERS[name].one:
        return [(SHORT, [small]), (LONG, [wide]), (MIDDLE, [high])]
    if name == "mllama":
        return [(SHORT, [small, high]), (LONG, [wide]), (MIDDLE, [high])]
    if name == "florence2":
        return [(SHORT, [small]), (LONG, []), (MIDDLE, [high])]
    return [(SHORT, [small]), (LONG, []), (MIDDLE, [wide, high])]


def encoded(name: str, words: str, images: list[Any]) -> dict[str, Any]:
    """What the processor alone makes of one input."""
    processor = built(name)[2]
    if not images:
        return dict(processor.tokenizer(words, return_tensors="pt", return_token_type_ids=False))
    nested = [images] if name == "llava_onevision" else images
    made = dict(processor(images=nested, text=[SEERS[name].prompt(words, len(images))], return_tensors="pt"))
    made.pop("labels", None)
    return made


def alone(name: str, words: str, images: list[Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits, and what plain hooks see, of one input in transformers."""
    seer, module = SEERS[name], built(name)[1]
    seen: dict[str, Any] = {}
    hooks = [
        module.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, path=path: seen.update({path: tensor(output)})
        )
        for path in (seer.tower, seer.joint, seer.layer)
    ]
    with torch.no_grad():
        logits = module(**encoded(name, words, images)).logits
    for hook in hooks:
        hook.remove()
    return logits, seen


def tensor(value: Any) -> torch.Tensor:
    """The tensor, or the first of those, that a module gives."""
    if isinstance(value, torch.Tensor):
        return value
    return tensor(next(part for part in (value.values() if isinstance(value, dict) else value) if part is not None))


def own(name: str, value: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """The input's own positions of [rows, positions, ...]."""
    places, length = SEERS[name].places, want.shape[1]
    if padding.side(built(name)[1]) == "right":
        return value[:, :length]
    return torch.cat([value[:, :places], value[:, value.shape[1] - length + places :]], 1)


@pytest.mark.parametrize("name", SEERS)
def test_each_invoke_gets_what_it_gets_alone(name: str) -> None:
    seer, (model, _, _) = SEERS[name], built(name)
    got: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for words, images in given(name):
            prompt = seer.prompt(words, len(images))
            with tracer.invoke(prompt, images=images or None):
                got.append(
                    (
                        model.get(seer.tower).output,
                        model.get(seer.joint).output,
                        model.get(seer.layer).output,
                        tracer.result.logits,
                    )
                )
    for (words, images), (tower, joint, layer, logits) in zip(given(name), got, strict=True):
        want, seen = alone(name, words, images)
        torch.testing.assert_close(own(name, logits, want), want, **CLOSE)
        torch.testing.assert_close(own(name, tensor(layer), seen[seer.layer]), seen[seer.layer], **CLOSE)
        for mine, path in ((tower, seer.tower), (joint, seer.joint)):
            if images and (seer.shown or path == seer.joint):
                mine = tensor(mine)
                if seer.padded:
                    mine = mine[tuple(slice(size) for size in seen[path].shape)]
                torch.testing.assert_close(mine, seen[path], **CLOSE)
            elif images:
                assert len(tensor(mine)) == len(images)
            else:
                assert not tensor(mine).numel()


@pytest.mark.parametrize("name", SEERS)
def test_an_edit_of_ones_own_images_leaves_the_others_alone(name: str) -> None:
    seer, model = SEERS[name], built(name)[0]
    (words, images), *others = given(name)
    prompt = seer.prompt(words, len(images))
    joint = model.get(seer.joint)

    def edited(value: Any) -> Any:
        return value * 0.5 if isinstance(value, torch.Tensor) else (value[0] * 0.5, *value[1:])

    with torch.no_grad(), model.trace(prompt, images=images) as tracer:
        joint.output = edited(joint.output)
        want = tracer.result.logits
    rest: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for own_words, own_images in others:
            with tracer.invoke(seer.prompt(own_words, len(own_images)), images=own_images or None):
                rest.append(tracer.result.logits)
        with tracer.invoke(prompt, images=images):
            joint.output = edited(joint.output)
            got = tracer.result.logits
    torch.testing.assert_close(own(name, got, want), want, **CLOSE)
    assert not torch.allclose(want, alone(name, words, images)[0], atol=1e-2)
    for (own_words, own_images), logits in zip(others, rest, strict=True):
        plain = alone(name, own_words, own_images)[0]
        torch.testing.assert_close(own(name, logits, plain), plain, **CLOSE)


@pytest.mark.parametrize("name", SEERS)
def test_a_generation_continues_each_as_alone(name: str) -> None:
    seer, (model, module, _) = SEERS[name], built(name)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    inputs = given(name)

    def generated() -> list[Any]:
        got: list[Any] = []
        with model.generate(**options) as tracer:
            for words, images in inputs:
                with tracer.invoke(seer.prompt(words, len(images)), images=images or None):
                    got.append(tracer.result)
        return got

    if module.config.model_type in padding.FORWARD_ONLY:
        with pytest.raises(RowsError, match="cannot continue a padded row"):
            generated()
        inputs = [(SHORT, images) for _, images in inputs]
    for (words, images), tokens in zip(inputs, generated(), strict=True):
        want = module.generate(**encoded(name, words, images), **options)
        assert tokens[0, -3:].tolist() == want[0, -3:].tolist()


@pytest.mark.parametrize("name", SEERS)
def test_a_scan_knows_the_shapes_or_says_why_not(name: str) -> None:
    seer, model = SEERS[name], built(name)[0]
    words, images = given(name)[0]
    try:
        with model.scan(seer.prompt(words, len(images)), images=images):
            shape = model.get(seer.layer).output.shape
    except ScanError as error:
        assert name in UNSCANNED and "asks for numbers" in str(error)
    else:
        assert name not in UNSCANNED and shape == alone(name, words, images)[1][seer.layer].shape


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "idefics3"])
def test_beams_of_each_are_those_it_has_alone(name: str) -> None:
    seer, (model, module, _) = SEERS[name], built(name)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": 2}
    got: list[Any] = []
    with model.generate(**options) as tracer:
        for words, images in given(name):
            with tracer.invoke(seer.prompt(words, len(images)), images=images or None):
                got.append((len(model.get(seer.joint).output), tracer.result))
    for (words, images), (seen, tokens) in zip(given(name), got, strict=True):
        joined: list[int] = []  # transformers before 5.23 lets the joint see each image once for each beam
        hook = module.get_submodule(seer.joint).register_forward_hook(
            lambda m, i, o, joined=joined: joined.append(len(tensor(o)))
        )
        want = module.generate(**encoded(name, words, images), **options)
        hook.remove()
        assert tokens[0, -3:].tolist() == want[0, -3:].tolist()
        assert seen == (joined[0] if images else 0)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl", "idefics2"])
def test_pixels_that_pass_beside_text_are_ones_own(name: str) -> None:
    """As many images as there are rows, and not one in each."""
    seer, model = SEERS[name], built(name)[0]
    pixels: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for words, images in given(name):
            with tracer.invoke(seer.prompt(words, len(images)), images=images or None):
                pixels.append(model.model.inputs[1]["pixel_values"])
    for (words, images), mine in zip(given(name), pixels, strict=True):
        want = encoded(name, words, images).get("pixel_values")
        if want is None:
            assert not mine.any()
        else:
            torch.testing.assert_close(mine[tuple(slice(size) for size in want.shape)], want)
            assert seer.padded or name == "idefics2" or mine.shape == want.shape
