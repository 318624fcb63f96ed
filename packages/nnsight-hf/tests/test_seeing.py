"""What families that read images are asked in vain: each is refused, and told what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import PIL
import pytest
import torch
from checkpoints import LONG, SHORT
from pictures import picture
from seers import SEERS
from test_seers import alone, built, own

from nnsight import RowsError, VisionLanguageModel
from nnsight_hf.vision import families

MARKED = [name for name, seer in SEERS.items() if seer.mark]
ALONE = [name for name, seer in SEERS.items() if seer.one]


def run(name: str, prompt: Any, images: Any = None) -> None:
    with torch.no_grad():
        built(name)[0].trace(prompt, images=images, trace=False)


@pytest.mark.parametrize("name", MARKED)
def test_a_place_without_an_image(name: str) -> None:
    for images in (None, []):
        with pytest.raises(ValueError, match="has 1 places for images .* and nothing was given for them"):
            run(name, SEERS[name].prompt(SHORT, 1), images)
    with pytest.raises(ValueError, match="has 2 places for images .* and 1 images were given"):
        run(name, SEERS[name].prompt(SHORT, 2), [picture(0)])


@pytest.mark.parametrize("name", SEERS)
def test_more_images_than_places(name: str) -> None:
    with pytest.raises(ValueError, match="images"):
        run(name, SEERS[name].prompt(SHORT, 1), [picture(0), picture(1)])


@pytest.mark.parametrize("name", sorted({*MARKED} - {"paligemma"}))  # which puts a place before the text itself
def test_images_for_a_prompt_without_a_place(name: str) -> None:
    with pytest.raises(ValueError, match=r"image"):
        run(name, SHORT, [picture(0)])


@pytest.mark.parametrize("name", ALONE)
def test_a_prompt_without_an_image_beside_one_with(name: str) -> None:
    model = built(name)[0]
    with pytest.raises((RowsError, ValueError), match="image"), torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(SHORT, images=picture(0)):
            logits = model.lm_head.output if hasattr(model, "lm_head") else tracer.result
        with tracer.invoke(LONG):
            logits = tracer.result
    with pytest.raises((RowsError, ValueError), match="image"):
        run(name, [SHORT, LONG], [[picture(0)], []])


@pytest.mark.parametrize("name", sorted({*ALONE} - {"git"}))
def test_a_family_that_reads_no_text_alone(name: str) -> None:
    with pytest.raises(ValueError, match="takes one image for each prompt, and there are 0 for 1"):
        run(name, SHORT)


def test_text_alone_beside_cross_attention() -> None:
    model = built("mllama")[0]
    mark = SEERS["mllama"].mark
    with pytest.raises(RowsError, match="different numbers of images"), torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(f"{mark} {SHORT}", images=picture(0)):
            logits = tracer.result
        with tracer.invoke(LONG):
            logits = tracer.result
    with pytest.raises(RowsError, match="different numbers of images"), torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(f"{LONG} {mark}", images=picture(0)):
            logits = tracer.result
        with tracer.invoke(f"{mark} {mark} {SHORT}", images=[picture(0), picture(1)]):
            logits = tracer.result  # noqa: F841
    # As many images: what every token looks at is the same as alone, and so is the text that comes before them.
    got = []
    with torch.no_grad(), model.trace() as tracer:
        for words, seed in ((LONG, 0), (SHORT, 1)):
            with tracer.invoke(f"{words} {mark}", images=picture(seed)):
                got.append(tracer.result.logits)
    for (words, seed), logits in zip(((LONG, 0), (SHORT, 1)), got, strict=True):
        made = built("mllama")[2](images=[picture(seed)], text=[f"{words} {mark}"], return_tensors="pt")
        with torch.no_grad():
            want = built("mllama")[1](**made).logits
        torch.testing.assert_close(own("mllama", logits, want), want, rtol=1e-3, atol=1e-3)


def test_a_family_that_nobody_has_listed_and_that_takes_no_text_beside_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seer = SEERS["git"]
    monkeypatch.setattr(families, "ONE_EACH", frozenset())
    model: Any = VisionLanguageModel(seer.module(), processor=seer.processor())
    images, towers = [picture(0), picture(1)], []
    with torch.no_grad(), model.trace() as tracer:
        for image in images:
            with tracer.invoke(SHORT, images=image):
                towers.append(model.get(seer.tower).output)
    for image, tower in zip(images, towers, strict=True):
        torch.testing.assert_close(tower, alone("git", SHORT, [image])[1][seer.tower], rtol=1e-3, atol=1e-3)
    with pytest.raises(RowsError, match="failed on an image beside text alone"), model.trace() as tracer:
        with tracer.invoke(SHORT, images=images[0]):
            tower = model.get(seer.tower).output
        with tracer.invoke(LONG):
            tower = model.get(seer.tower).output  # noqa: F841


def test_what_is_no_image(tmp_path: Path) -> None:
    prompt = SEERS["gemma3"].prompt(SHORT, 1)
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    with pytest.raises(PIL.UnidentifiedImageError, match="broken.png"):
        run("gemma3", prompt, [broken])
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        run("gemma3", prompt, [tmp_path / "nowhere.png"])
    for shape in ((20, 30), (1, 3, 20, 30), (20, 30, 4), (0, 30, 3)):
        with pytest.raises(ValueError, match=r"\[height, width, 3\] or \[3, height, width\], not of shape"):
            run("gemma3", prompt, [numpy.zeros(shape, dtype=numpy.uint8)])
        with pytest.raises(ValueError, match=r"not of shape"):
            run("gemma3", prompt, torch.zeros(shape))
    with pytest.raises(TypeError, match="`images=` goes with text"):
        run("gemma3", {"input_ids": [[4, 5]]}, [picture(0)])
    with pytest.raises(TypeError, match="`videos=` is not taken here"):
        built("gemma3")[0].trace(prompt, videos=[numpy.zeros((2, 20, 30, 3))], trace=False)


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    with pytest.raises(ValueError):
        run("gemma3", SEERS["gemma3"].prompt(SHORT, 1), [])
    prompt = SEERS["gemma3"].prompt(SHORT, 1)
    got = built("gemma3")[0].trace(prompt, images=[picture(0)], trace=False).logits
    torch.testing.assert_close(got, alone("gemma3", SHORT, [picture(0)])[0], rtol=1e-3, atol=1e-3)
