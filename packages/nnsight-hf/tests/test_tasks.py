"""Every group of tasks: inputs of several invokes share a forward, and each gets what transformers alone makes of its own.

Which sites carry rows, how they lie there and that an edit stays within them is checked at modules throughout the model, as
for any family.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import heads
import numpy
import pytest
import tasks_of_text_and_sound
import torch
import transformers
from heads import picture
from tasks import KINDS, Kind

from nnsight import LanguageModel, RowsError, TransformersModel, VisionLanguageModel
from nnsight.testing.reference import assert_alike
from nnsight.testing.subjects import change


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "tapas":
        pytest.importorskip("pandas")
    return KINDS[request.param]()


@pytest.fixture(autouse=True)
def without_graphs() -> Any:
    with torch.no_grad():
        yield


def places(kind: Kind, model: Any, plain: Any) -> list[str]:
    return [path for path in kind.found_sites(model, plain) if path.startswith(kind.within)]


def test_an_input_gives_what_transformers_makes_of_it(kind: Kind) -> None:
    model = kind.make_model()
    for given in kind.given:
        want = kind.hooked(model, given)
        sites = places(kind, model, want)
        with model.trace(given) as tracer:
            seen = {path: model.get(path).output for path in sites}
            result = tracer.result
        assert_alike(seen, {path: want[path] for path in sites}, kind.rounding)
        assert_alike(result, want.result, kind.rounding)


def test_invokes_share_a_forward_and_are_strangers_to_each_other(kind: Kind) -> None:
    model = kind.make_model()
    plain = [kind.hooked(model, given) for given in kind.given]
    sites = places(kind, model, plain[0])
    if kind.refused:
        with pytest.raises(RowsError, match=kind.refused), model.trace() as tracer:
            for given in kind.given:
                with tracer.invoke(given):
                    tracer.result
        return
    got: list[Any] = []
    whole: dict[str, Any] = {}
    with model.trace() as tracer:
        for given in kind.given:
            with tracer.invoke(given):
                got.append(({path: model.get(path).output for path in sites}, tracer.result))
        with tracer.invoke():
            whole.update((path, model.get(path).output) for path in sites)
    layout, rows = kind.stated(model, kind.given)
    carrying = [path for path in sites if layout.take(whole[path], rows[0], model.get(path).path) is not None]
    assert len(carrying) > len(sites) / 2, f"of {sites} only {carrying} carry rows"
    for want, (seen, result) in zip(plain, got, strict=True):
        for path in carrying:
            assert_alike(kind.part(seen[path], want[path]), want[path], kind.rounding)
        assert_alike(kind.part(result, want.result), want.result, kind.rounding)

    path = carrying[len(carrying) // 2]
    changed = kind.changed(model, kind.given[0], path)
    with model.trace() as tracer:
        with tracer.invoke(kind.given[0]):
            model.get(path).output = change(model.get(path).output)
            mine = tracer.result
        with tracer.invoke(kind.given[1]):
            other = tracer.result
    assert_alike(kind.part(mine, changed), changed, kind.rounding)
    assert_alike(kind.part(other, plain[1].result), plain[1].result, kind.rounding)


def test_a_page_comes_after_the_padding_of_its_text() -> None:
    kind = KINDS["layoutlmv3"]()
    model = kind.make_model()
    got = []
    with model.trace() as tracer:
        for page in tasks_of_text_and_sound.pages():
            with tracer.invoke(page):
                got.append(model.output.start_logits)
    lengths = [kind.encode(page)["input_ids"].shape[1] for page in tasks_of_text_and_sound.pages()]
    assert lengths[0] != lengths[1]
    for page, mine, length in zip(tasks_of_text_and_sound.pages(), got, lengths, strict=True):
        want = model._module(**kind.encode(page)).start_logits
        seen = want.shape[1] - length
        assert_alike(torch.cat([mine[:, :length], mine[:, mine.shape[1] - seen :]], 1), want, kind.rounding)


def test_text_whose_padding_would_be_read_is_refused_together() -> None:
    config = transformers.ConvBertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        embedding_size=32,
        vocab_size=30,
    )
    plain = heads.seeded(transformers.ConvBertForMaskedLM, config)
    short, long = torch.arange(4, 8)[None], torch.arange(4, 14)[None]
    filled = torch.nn.functional.pad(short, (0, 6))
    alone = plain(short).logits
    padded = plain(filled, attention_mask=(filled > 0).long()).logits
    assert not torch.allclose(alone, padded[:, :4], atol=1e-2)  # the reason
    model = TransformersModel(plain, "fill-mask")
    with pytest.raises(RowsError, match="cannot tell padding from input"), model.trace() as tracer:
        for ids in (short, long):
            with tracer.invoke(ids):
                tracer.result
    with model.trace() as tracer:
        for ids in (short, short + 5):
            with tracer.invoke(ids):
                logits = model.output.logits
    torch.testing.assert_close(logits, plain(short + 5).logits, rtol=1e-3, atol=1e-3)


#: What is no input of a task, and what the error says that is.
WRONG = {
    "bert-text": (picture(0), TypeError, "'text-classification' and reads a string.*This is a Image"),
    "electra-answer": (
        3.5,
        TypeError,
        "'question-answering' and reads ..question.: ..., .context.*This is a float: 3.5",
    ),
    "vit": ({"text": "the cat"}, TypeError, "'image-classification' and reads an image .*This is a str"),
    "roberta-tokens": (numpy.zeros((2, 3)), TypeError, "reads a string.*of shape .2, 3."),
    "clip": (
        {"image": picture(0), "labels": ["a"]},
        TypeError,
        "..image.: ..., .candidate_labels.*a dict with .'image', 'labels'.",
    ),
    "siglip": ({"image": picture(0), "candidate_labels": "a"}, ValueError, "candidate_labels"),
    "tapas": (
        {"table": {"cat": ["a"]}, "question": "the cat"},
        TypeError,
        "..table.: .*, .query.*a dict with .'question', 'table'.",
    ),
    "layoutlm": ({"image": picture(0), "question": "the cat"}, ValueError, "give them as .word_boxes."),
    "vilt": ({"image": picture(0), "query": "the cat"}, TypeError, "..image.: ..., .question.*"),
    "videomae": ("film.mp4", TypeError, "reads the frames of a video.*This is a str: 'film.mp4'"),
    "superglue": (picture(0), TypeError, "reads two images"),
    "sam": ([{"x": 1}], TypeError, "input_points.*This is a list"),
    "hubert": (picture(0), TypeError, "reads a waveform"),
    "clap": ({"audio": 3, "candidate_labels": ["a"]}, TypeError, "..audio.: "),
    "patchtst": ("the cat", TypeError, "reads `past_values`"),
    "dpt": ("nowhere.png", FileNotFoundError, "no image file 'nowhere.png'.*a path on this machine"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_the_wrong_kind_of_input_is_refused_with_the_right_one(name: str) -> None:
    if name == "tapas":
        pytest.importorskip("pandas")
    if name in KINDS:
        model = KINDS[name]().make_model()
    else:
        model = TransformersModel(heads.module(name), task=heads.HEADS[name][0], **heads.parts(name))
    given, error, says = WRONG[name]
    with pytest.raises(error, match=says):
        model.trace(given, trace=False)


@pytest.mark.parametrize("form", ["pil", "path", "array", "tensor", "list"])
def test_an_image_in_every_form(form: str, tmp_path: Path) -> None:
    kind = KINDS["swin"]()
    model = kind.make_model()
    picture(0).save(tmp_path / "it.png")
    array = numpy.asarray(picture(0))
    given = {
        "pil": picture(0),
        "path": str(tmp_path / "it.png"),
        "array": array,
        "tensor": torch.tensor(array).permute(2, 0, 1),
        "list": [picture(0), tmp_path / "it.png"],
    }[form]
    want = model._module(**kind.encode(picture(0))).logits
    got = model.trace(given, trace=False).logits
    torch.testing.assert_close(got, want.expand_as(got), rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="belongs to the tokenizer, and this input has no text"):
        model.trace(given, truncation=True, trace=False)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("patchtst", "tapas")])
def test_the_wrong_class_names_the_right_one(name: str) -> None:
    kind = KINDS[name]()
    module = kind.make()
    config = copy.deepcopy(module.config)
    config.architectures = [type(module).__name__]
    assert type(TransformersModel(config, task=kind.task)._module) is type(module)
    found = TransformersModel(config)
    assert type(found._module) is type(module)
    with pytest.raises(TypeError, match=f'Use TransformersModel with task="{found.task}"'):
        LanguageModel(config)
    with pytest.raises(TypeError, match=f'Use TransformersModel with task="{found.task}"'):
        VisionLanguageModel(config)


def test_what_reads_pages_is_found_to_be_asked_about_them() -> None:
    config = copy.deepcopy(KINDS["layoutlmv3"]().make().config)
    config.architectures = ["LayoutLMv3ForQuestionAnswering"]
    assert TransformersModel(config).task == "document-question-answering"
