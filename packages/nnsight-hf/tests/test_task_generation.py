"""Models that write about what they hear or see: their generation has the places that a language model's has."""

from __future__ import annotations

from typing import Any

import heads
import pytest
import torch
import transformers
from checkpoints import TOKENS, tokenizer

from nnsight import RowsError, TransformersModel
from nnsight.testing import GeneratingSuite

OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def whisper() -> Any:
    return TransformersModel(heads.module("whisper"), **heads.parts("whisper"))


def ocr() -> Any:
    size = {"height": 16, "width": 16}
    pixels = transformers.ViTImageProcessor(size=size)
    return TransformersModel(heads.ocr(), "image-to-text", tokenizer=tokenizer(), image_processor=pixels)


class TestHearing(GeneratingSuite):
    padding = "right"
    rounding = 1e-4
    options = OPTIONS

    def make_model(self) -> Any:
        return whisper()

    def inputs(self) -> list[Any]:
        return heads.given("whisper")


class TestSeeing(GeneratingSuite):
    padding = None
    rounding = 1e-4
    options = OPTIONS

    def make_model(self) -> Any:
        return ocr()

    def inputs(self) -> list[Any]:
        return [heads.picture(0), heads.picture(1)]


def wants(kind: str, value: Any, **options: Any) -> torch.Tensor:
    """What transformers alone writes about one input."""
    if kind == "whisper":
        made = {"input_features": heads.encoded("whisper", value)["input_features"]}
        return heads.module("whisper").generate(**made, **options)
    pixels = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    return heads.ocr().generate(pixels(value, return_tensors="pt")["pixel_values"], **options)


@pytest.mark.parametrize("kind", ["whisper", "ocr"])
def test_the_places_of_a_generation(kind: str) -> None:
    model = {"whisper": whisper, "ocr": ocr}[kind]()
    given = heads.given("whisper") if kind == "whisper" else [heads.picture(0), heads.picture(1)]
    want = [wants(kind, value, **OPTIONS) for value in given]
    with model.generate(given[0], **OPTIONS) as tracer:
        steps = [model.generator.streamer.output for _ in tracer.iter[:]]
        output = model.generator.output
        result = tracer.result
    assert torch.equal(output, want[0]) and torch.equal(result, want[0])
    assert torch.equal(torch.stack(steps, 1), want[0][:, -len(steps) :]) and len(steps) == 4
    seen: list[Any] = [None, None]
    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke(given[0]):
            seen[0] = model.generator.output
        with tracer.invoke(given[1]):
            seen[1] = model.generator.output
    for mine, theirs in zip(seen, want, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["whisper", "ocr"])
def test_invokes_with_beams_see_their_own(kind: str) -> None:
    options = {**OPTIONS, "num_beams": 2, "num_return_sequences": 2}
    model = {"whisper": whisper, "ocr": ocr}[kind]()
    given = heads.given("whisper") if kind == "whisper" else [heads.picture(0), heads.picture(1)]
    got = []
    with model.generate(**options) as tracer:
        for value in given:
            with tracer.invoke(value):
                got.append(tracer.result)
    for mine, value in zip(got, given, strict=True):
        assert torch.equal(mine, wants(kind, value, **options))


def test_how_a_text_about_an_image_begins() -> None:
    model = ocr()
    given = {"image": heads.picture(0), "text": "the cat"}
    begin = torch.tensor([[TOKENS.index("the"), TOKENS.index("cat")]])
    assert torch.equal(
        model.generate(given, **OPTIONS), wants("ocr", heads.picture(0), decoder_input_ids=begin, **OPTIONS)
    )
    pixels = transformers.ViTImageProcessor(size={"height": 16, "width": 16})(heads.picture(0), return_tensors="pt")
    got = []
    with torch.no_grad(), model.trace() as tracer:
        for text in ("the cat", "a small old dog"):
            with tracer.invoke({"image": heads.picture(0), "text": text}):
                got.append(model.output.logits)
    with torch.no_grad():
        want = heads.ocr()(pixels["pixel_values"], decoder_input_ids=begin).logits
    torch.testing.assert_close(got[0][:, :2], want, **CLOSE)
    with pytest.raises(RowsError, match="starts of one length"), model.generate(**OPTIONS) as tracer:
        for text in ("the cat", "a small old dog"):
            with tracer.invoke({"image": heads.picture(0), "text": text}):
                tracer.result


def test_a_generation_whose_steps_are_those_of_a_part() -> None:
    process = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    model = TransformersModel(heads.captioner(), "image-to-text", tokenizer=tokenizer(), image_processor=process)
    plain = heads.captioner()
    pictures = [heads.picture(0), heads.picture(1)]
    want = [plain.generate(process(one, return_tensors="pt")["pixel_values"], **OPTIONS) for one in pictures]
    got: list[Any] = [None, None]
    steps: list[Any] = [None, None]
    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke(pictures[0]):
            steps[0] = [model.generator.streamer.output for _ in tracer.iter[:]]
            got[0] = tracer.result
        with tracer.invoke(pictures[1]):
            steps[1] = [model.generator.streamer.output for _ in tracer.iter[1:3]]
            got[1] = model.generator.output
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(torch.stack(steps[0], 1), want[0][:, -4:]) and len(steps[1]) == 2
    begun = {"image": pictures[0], "text": "the cat"}
    theirs = plain.generate(
        **{**process(pictures[0], return_tensors="pt"), **tokenizer()("the cat", return_tensors="pt")}
    )
    assert torch.equal(model.generate(begun), theirs)
    with torch.no_grad(), model.trace(pictures[0]):
        logits = model.output.logits
    first = process(pictures[0], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(logits, plain(pixel_values=first, input_ids=torch.tensor([[1]])).logits, **CLOSE)


def test_a_generation_of_sound() -> None:
    model = TransformersModel(heads.speaker(), "text-to-audio", tokenizer=tokenizer())
    voice, lengths = torch.ones(1, 12), {"minlenratio": 1.0, "maxlenratio": 3.0}
    torch.manual_seed(0)  # its decoder drops out at random also where nothing is trained
    want = heads.speaker().generate(
        **tokenizer()("the cat sat", return_tensors="pt", return_token_type_ids=False),
        speaker_embeddings=voice,
        **lengths,
    )
    torch.manual_seed(0)
    with model.generate("the cat sat", speaker_embeddings=voice, **lengths) as tracer:
        steps = [model.speecht5.decoder.wrapped_decoder.output.last_hidden_state for _ in tracer.iter[:]]
        spectrogram = model.generator.output
    assert torch.equal(spectrogram, want)
    assert len(steps) * model.config.reduction_factor == want.shape[0]
    with pytest.raises(RowsError, match="each has a length of its own"), model.generate(**lengths) as tracer:
        for said in ("the cat", "a dog"):
            with tracer.invoke(said, speaker_embeddings=voice):
                tracer.result
    with torch.no_grad(), model.trace("the cat sat", speaker_embeddings=voice):
        begun = model.speecht5.decoder.prenet.inputs
    assert begun[0][0].shape == (1, 1, 8)


def test_spectra_whose_padding_would_be_heard_are_refused_together() -> None:
    generator = torch.Generator().manual_seed(0)
    short, long = (torch.randn(1, frames, 8, generator=generator) for frames in (40, 60))
    plain = heads.listener()
    filled = torch.nn.functional.pad(short, (0, 0, 0, 20))
    mask = (torch.arange(60) < 40).long()[None]
    start = {"decoder_input_ids": torch.tensor([[2]])}
    with torch.no_grad():
        alone = plain(input_features=short, attention_mask=mask[:, :40], **start).logits
        padded = plain(input_features=filled, attention_mask=mask, **start).logits
    assert not torch.allclose(alone, padded, atol=1e-2)  # the reason
    model = TransformersModel(plain, "automatic-speech-recognition")
    given = [
        {"input_features": one, "attention_mask": torch.ones(one.shape[:2], dtype=torch.long)} for one in (short, long)
    ]
    with pytest.raises(RowsError, match="cannot tell padding from input"), model.trace() as tracer:
        for one in given:
            with tracer.invoke(one):
                tracer.result
    given[1] = {name: value[:, :40] for name, value in given[1].items()}
    got = []
    with model.generate(**OPTIONS) as tracer:
        for one in given:
            with tracer.invoke(one):
                got.append(model.generator.output)
    for mine, one in zip(got, given, strict=True):
        assert torch.equal(mine, plain.generate(**one, **OPTIONS))


def test_options_of_a_generation_are_refused_in_a_trace() -> None:
    with pytest.raises(TypeError, match="`max_new_tokens` belongs to a generation"):
        whisper().trace(heads.given("whisper")[0], max_new_tokens=3, trace=False)


def test_a_model_that_does_not_generate_has_no_such_place() -> None:
    model = TransformersModel(heads.module("bert-mask"))
    assert not hasattr(model, "generator")


def test_an_image_model_that_writes_finds_its_task_and_takes_questions() -> None:
    config = heads.ocr().config
    config.architectures = ["VisionEncoderDecoderModel"]
    assert TransformersModel(config).task == "image-to-text"
    size = {"height": 16, "width": 16}
    parts = {"tokenizer": tokenizer(), "image_processor": transformers.ViTImageProcessor(size=size)}
    asked = TransformersModel(config, "document-question-answering", **parts)
    _, data, _ = asked._prepare_input({"image": heads.picture(0), "question": "the cat"})
    prompt = "<s_docvqa><s_question>the cat</s_question><s_answer>"
    assert data["decoder_input_ids"].tolist() == [tokenizer()(prompt)["input_ids"]]
