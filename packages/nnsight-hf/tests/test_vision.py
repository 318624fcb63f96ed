"""Text with images in it, compared with transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pictures
import pytest
import torch
from checkpoints import LONG, SHORT
from pictures import MARK, patched, picture

import nnsight
from nnsight import RowsError, VisionLanguageModel

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
ONE, TWO = f"{MARK} the cat", f"{MARK} a small dog {MARK} ran in the old house"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pictures.save(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def model(folder: str) -> Any:
    return VisionLanguageModel(folder)


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return pictures.llava()


def encoded(text: str, *images: Any) -> dict[str, Any]:
    return dict(pictures.processor()(images=list(images) or None, text=[text], return_tensors="pt"))


def alone(plain: Any, text: str, *images: Any) -> torch.Tensor:
    with torch.no_grad():
        return plain(**encoded(text, *images)).logits


def test_the_tree_is_there_before_the_weights(folder) -> None:
    model = VisionLanguageModel(folder)
    assert not model.dispatched and len(model.model.vision_tower.encoder.layers) == 2
    assert model.processor.image_token == MARK and model.tokenizer is model.processor.tokenizer


@pytest.mark.parametrize("kind", ["pil", "path", "array", "tensor"])
def test_an_image_in_every_form(model, plain, kind: str, tmp_path: Path) -> None:
    image = picture(0)
    path = tmp_path / "it.png"
    image.save(path)
    array = numpy.asarray(image)
    given = {"pil": image, "path": path, "array": array, "tensor": torch.tensor(array).permute(2, 0, 1)}[kind]
    with torch.no_grad(), model.trace(ONE, images=[given]):
        logits = model.output.logits
    torch.testing.assert_close(logits, alone(plain, ONE, image), **CLOSE)
    with torch.no_grad(), model.trace(ONE, images=given):
        assert torch.equal(model.output.logits, logits)


def test_text_alone(model, plain) -> None:
    with torch.no_grad(), model.trace(LONG):
        logits = model.output.logits
    torch.testing.assert_close(logits, alone(plain, LONG), **CLOSE)


def test_several_prompts_with_their_images(model, plain) -> None:
    images = [picture(0), picture(1), picture(2)]
    with torch.no_grad(), model.trace([ONE, TWO], images=[images[:1], images[1:]]):
        logits = model.output.logits
    for row, want in zip(logits, (alone(plain, ONE, images[0]), alone(plain, TWO, *images[1:])), strict=True):
        torch.testing.assert_close(row[-want.shape[1] :], want[0], **CLOSE)


def test_each_invoke_gets_what_it_gets_alone_and_sees_its_own_images(model, plain) -> None:
    images = [picture(0), picture(1), picture(2)]
    given = [(ONE, images[:1]), (SHORT, []), (TWO, images[1:])]
    tower: list[Any] = []
    features: list[Any] = []
    got: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for text, own in given:
            with tracer.invoke(text, images=own or None):
                tower.append(model.model.vision_tower.encoder.layers[0].output)
                features.append(model.model.multi_modal_projector.output)
                got.append(model.output.logits)
    for (text, own), seen, projected, logits in zip(given, tower, features, got, strict=True):
        want = alone(plain, text, *own)
        torch.testing.assert_close(logits[:, -want.shape[1] :], want, **CLOSE)
        assert seen.shape[0] == projected.shape[0] == len(own)
        if own:
            with torch.no_grad(), model.trace(text, images=own):
                mine = model.model.multi_modal_projector.output
            torch.testing.assert_close(projected, mine, **CLOSE)


def test_an_edit_of_ones_own_images_leaves_the_others_alone(model, plain) -> None:
    images = [picture(0), picture(1)]
    with torch.no_grad(), model.trace(ONE, images=images[1:]):
        model.model.multi_modal_projector.output = model.model.multi_modal_projector.output * 0
        want = model.output.logits
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(ONE, images=images[:1]):
            other = model.output.logits
        with tracer.invoke(ONE, images=images[1:]):
            model.model.multi_modal_projector.output = model.model.multi_modal_projector.output * 0
            got = model.output.logits
    torch.testing.assert_close(got, want, **CLOSE)
    torch.testing.assert_close(other, alone(plain, ONE, images[0]), **CLOSE)
    assert not torch.allclose(got, alone(plain, ONE, images[1]), atol=1e-2)


def test_a_generation(folder, plain) -> None:
    model: Any = VisionLanguageModel(folder)  # of which nothing has been found out yet
    options = {"max_new_tokens": 4, "do_sample": False}
    images = [picture(0), picture(1), picture(2)]
    want = [
        plain.generate(**encoded(ONE, images[0]), **options),
        plain.generate(**encoded(TWO, *images[1:]), **options),
    ]
    assert torch.equal(model.generate(ONE, images=images[0], **options), want[0])
    got = []
    with model.generate(**options) as tracer:
        with tracer.invoke(ONE, images=images[0]):
            got.append(tracer.result)
        with tracer.invoke(TWO, images=images[1:]):
            got.append(tracer.result)
    for mine, other in zip(got, want, strict=True):
        assert mine[0, -4:].tolist() == other[0, -4:].tolist()


def test_images_of_different_numbers_of_patches() -> None:
    module = pictures.qwen()
    model = VisionLanguageModel(module)
    given = [patched(0, [4, 5, 6], (4, 4)), patched(1, [7, 8]), patched(2, [9, 10, 11, 12], (4, 8), (8, 4))]
    merged = model.model.visual.merger
    block = model.model.visual.blocks[1]
    patches, features, got = [], [], []
    with torch.no_grad(), model.trace() as tracer:
        for one in given:
            with tracer.invoke(one):
                patches.append(block.output)
                features.append(merged.output)
                got.append(model.output.logits)
    assert [value.shape[0] for value in patches] == [16, 0, 64] and [value.shape[0] for value in features] == [4, 0, 16]
    for one, seen, logits in zip(given, features, got, strict=True):
        with torch.no_grad():
            want = module(**one).logits
        torch.testing.assert_close(logits[:, -want.shape[1] :], want, **CLOSE)
        if "pixel_values" in one:
            with torch.no_grad(), model.trace(one):
                torch.testing.assert_close(seen, merged.output, **CLOSE)


def test_what_cannot_be_meant(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 prompts and images for 1"):
        model.trace([ONE, ONE], images=[[picture(0)]], trace=False)
    with pytest.raises(TypeError, match="an image is a PIL image, a path, or an array"):
        model.trace(ONE, images=[3], trace=False)
    with pytest.raises(FileNotFoundError):
        model.trace(ONE, images=[tmp_path / "nowhere.png"], trace=False)
    with pytest.raises(TypeError, match="with `images=`, the input is a string"):
        model.trace([[1, 2]], images=[picture(0)], trace=False)
    with pytest.raises(ValueError, match="no processor"):
        VisionLanguageModel(pictures.llava()).trace(ONE, images=[picture(0)], trace=False)


def test_a_write_of_another_number_of_images_is_refused(model) -> None:
    with pytest.raises(RowsError, match="shape"), torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(ONE, images=picture(0)):
            model.model.multi_modal_projector.output = torch.zeros(2, 16, 32)
        with tracer.invoke(ONE, images=picture(1)):
            logits = model.output.logits


def test_it_is_known_by_its_name() -> None:
    assert nnsight.VisionLanguageModel is VisionLanguageModel
    from nnsight.modeling.vlm import VisionLanguageModel as earlier

    assert earlier is VisionLanguageModel


TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    f"{{% if part.type == 'image' %}}{MARK} {{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{% endfor %}{% if add_generation_prompt %} then{% endif %}"
)


def asked(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_conversations_with_images_in_them(plain, tmp_path: Path) -> None:
    processor = pictures.processor()
    processor.chat_template = TEMPLATE
    model = VisionLanguageModel(pictures.llava(), processor=processor)
    words = {"type": "text", "text": "the cat"}
    path = tmp_path / "it.png"
    picture(1).save(path)
    got = []
    with torch.no_grad(), model.trace() as tracer:
        for chat, images in (
            (asked({"type": "image", "image": picture(0)}, words), None),
            (asked({"type": "image", "path": str(path)}, words), None),
            (asked({"type": "image"}, words), [picture(2)]),
            ([{"role": "user", "content": "the cat"}], None),
        ):
            with tracer.invoke(chat, images=images):
                got.append(tracer.tokens.own(model.output.logits))
    for number, logits in enumerate(got[:3]):
        torch.testing.assert_close(logits, alone(plain, f"{MARK} the cat then", picture(number)), **CLOSE)
    torch.testing.assert_close(got[3], alone(plain, "the cat then"), **CLOSE)
    speaks = pictures.processor().tokenizer
    speaks.chat_template = TEMPLATE
    model = VisionLanguageModel(pictures.llava(), tokenizer=speaks)
    with torch.no_grad(), model.trace([{"role": "user", "content": "the cat"}]):
        logits = model.output.logits
    torch.testing.assert_close(logits, alone(plain, "the cat then"), **CLOSE)
    with pytest.raises(ValueError, match="a place for an image and no image"):
        with model.trace(asked({"type": "image"}, words)):
            pass
