"""Models of other tasks than writing text, compared with transformers alone."""

from __future__ import annotations

from typing import Any

import checkpoints
import heads
import pytest
import torch
import transformers
from heads import HEADS
from pictures import picture

import nnsight
from nnsight import RowsError, TransformersModel
from nnsight.testing import FamilySuite
from nnsight_hf import fitting

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(params=list(HEADS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def alone(kind: str, value: Any) -> torch.Tensor:
    with torch.no_grad():
        return heads.module(kind)(**heads.encoded(kind, value))[0]


def test_the_task_is_read_off_the_checkpoint_and_the_tree_is_there_before_the_weights(kind, tmp_path) -> None:
    model = TransformersModel(heads.save(tmp_path, kind))
    assert model.task == HEADS[kind][0] and not model.dispatched
    assert type(model._module) is HEADS[kind][2]
    value = heads.given(kind)[0]
    with torch.no_grad(), model.trace(value) as tracer:
        result = tracer.result
    torch.testing.assert_close(result[0], alone(kind, value), **CLOSE)


def test_each_invoke_gets_what_it_gets_alone(kind) -> None:
    model = TransformersModel(heads.module(kind), task=HEADS[kind][0], **heads.parts(kind))
    given = heads.given(kind)
    got: list[Any] = []
    with torch.no_grad(), model.trace() as tracer:
        for value in given:
            with tracer.invoke(value):
                got.append(tracer.result[0])
    for value, mine in zip(given, got, strict=True):
        want = alone(kind, value)
        assert mine.shape[0] == 1
        for dim in range(1, want.dim()):
            mine = mine.narrow(dim, 0, want.shape[dim])
        torch.testing.assert_close(mine, want, **CLOSE)


def test_a_list_is_one_input_of_several_rows() -> None:
    model = TransformersModel(heads.module("bert-text"), **heads.parts("bert-text"))
    given = heads.given("bert-text")
    with torch.no_grad(), model.trace(given):
        logits = model.output.logits
    torch.testing.assert_close(logits, torch.cat([alone("bert-text", text) for text in given]), **CLOSE)


def test_an_edit_of_one_invoke_leaves_the_others_alone() -> None:
    model = TransformersModel(heads.module("bert-mask"), **heads.parts("bert-mask"))
    first, second = heads.given("bert-mask")
    with torch.no_grad(), model.trace(first):
        model.bert.encoder.layer[0].nns_output[:] = 0
        want = model.output.logits
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(first):
            model.bert.encoder.layer[0].nns_output[:] = 0
            mine = model.output.logits
        with tracer.invoke(second):
            other = model.output.logits
    assert not torch.allclose(want, alone("bert-mask", first), atol=1e-2)
    torch.testing.assert_close(mine[:, : want.shape[1]], want, **CLOSE)
    torch.testing.assert_close(other, alone("bert-mask", second), **CLOSE)


def test_a_pair_of_texts_and_prepared_tensors() -> None:
    model = TransformersModel(heads.module("bert-text"), **heads.parts("bert-text"))
    made = dict(model.tokenizer("the cat", "a dog", return_tensors="pt"))
    with torch.no_grad():
        want = heads.module("bert-text")(**made).logits
        for given in (("the cat", "a dog"), ({"text": "the cat", "text_pair": "a dog"},), (made,)):
            with model.trace(*given):
                logits = model.output.logits
            torch.testing.assert_close(logits, want, **CLOSE)


def test_labels_that_a_model_was_not_trained_on() -> None:
    parts = heads.parts("bert-text")
    model = TransformersModel(heads.module("bert-text"), **parts)
    given = {"text": "the cat sat", "candidate_labels": ["a dog", "very old"], "hypothesis_template": "it was {}"}
    with torch.no_grad(), model.trace(given):
        logits = model.output.logits
    pairs = parts["tokenizer"](
        ["the cat sat"] * 2, ["it was a dog", "it was very old"], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        want = heads.module("bert-text")(**pairs).logits
    torch.testing.assert_close(logits, want, **CLOSE)
    with pytest.raises(ValueError, match="has no {} where the label goes"):
        model.trace({**given, "hypothesis_template": "it was"}, trace=False)
    with pytest.raises(ValueError, match="guessed for one text, image or sound"):
        model.trace({**given, "candidate_labels": "a dog"}, trace=False)


def test_an_image_with_labels() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": len(checkpoints.TOKENS), "eos_token_id": 2, "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 28, "patch_size": 7},
        projection_dim=16,
    )
    torch.manual_seed(0)
    module = transformers.CLIPModel(config).eval()
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    tokenizer = checkpoints.tokenizer()
    model = TransformersModel(module, "zero-shot-image-classification", tokenizer=tokenizer, image_processor=pixels)
    given = {"image": picture(0), "candidate_labels": ["a dog", "the very old cat"], "hypothesis_template": "it was {}"}
    with torch.no_grad(), model.trace(given) as tracer:
        seen = model.vision_model.encoder.layers[0].output
        result = tracer.result
    texts = tokenizer(["it was a dog", "it was the very old cat"], return_tensors="pt", padding=True)
    with torch.no_grad():
        want = module(
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
            pixel_values=pixels(picture(0), return_tensors="pt")["pixel_values"],
        )
    torch.testing.assert_close(result.logits_per_image, want.logits_per_image, **CLOSE)
    assert result.logits_per_image.shape == (1, 2) and seen.shape[0] == 1
    with pytest.raises(RowsError, match="compares each text with every other input"), model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(given):
                tracer.result


def test_waveforms_of_which_no_mask_can_hide_the_padding_are_refused_together() -> None:
    model = TransformersModel(heads.module("wav2vec2-group"), **heads.parts("wav2vec2-group"))
    with pytest.raises(RowsError, match="cannot tell padding from input"), model.trace() as tracer:
        for samples in (90, 160):
            with tracer.invoke(heads.wave(0, samples)):
                pass


def test_a_model_that_hears_generates() -> None:
    module = heads.module("whisper")
    model = TransformersModel(module, **heads.parts("whisper"))
    value = heads.given("whisper")[0]
    features = heads.encoded("whisper", value)["input_features"]
    options = {"max_new_tokens": 4, "do_sample": False}
    want = module.generate(input_features=features, **options)
    assert torch.equal(model.generate(value, **options), want)
    with model.generate(value, **options) as tracer:
        heard = model.model.encoder.output
        tokens = tracer.result
    assert torch.equal(tokens, want) and heard[0].shape[-1] == 32


def test_a_model_that_does_not_generate_says_so() -> None:
    with pytest.raises(TypeError, match="does not generate"):
        TransformersModel(heads.module("bert-mask")).generate("the cat")


def test_unknown_tasks_and_those_that_a_kind_of_model_does_not_serve() -> None:
    config = HEADS["bert-mask"][1]()
    with pytest.raises(ValueError, match='no task "juggling"'):
        TransformersModel(config, task="juggling")
    with pytest.raises(ValueError, match='"bert" does not serve the task "image-classification".*"fill-mask"'):
        TransformersModel(config, task="image-classification")
    with pytest.raises(TypeError, match="served by LanguageModel"):
        TransformersModel(config, task="text-generation")
    assert TransformersModel(config, task="ner").task == "token-classification"


@pytest.mark.parametrize(
    ("family", "kind", "right"),
    [
        ("LanguageModel", "bert-text", 'TransformersModel with task="text-classification"'),
        ("LanguageModel", "vit", 'TransformersModel with task="image-classification"'),
        ("LanguageModel", "gpt2-text", 'TransformersModel with task="text-classification"'),
        ("VisionLanguageModel", "vit", 'TransformersModel with task="image-classification"'),
        ("VisionLanguageModel", "gpt2", "LanguageModel"),
        ("LanguageModel", "llava", "VisionLanguageModel"),
        ("TransformersModel", "gpt2", "LanguageModel"),
        ("TransformersModel", "llava", "VisionLanguageModel"),
        ("VisionLanguageModel", "ocr", 'TransformersModel with task="image-to-text"'),
        ("LanguageModel", "ocr", 'TransformersModel with task="image-to-text"'),
        ("LanguageModel", "whisper", 'TransformersModel with task="automatic-speech-recognition"'),
    ],
)
def test_the_wrong_class_names_the_right_one(family: str, kind: str, right: str) -> None:
    import pictures
    import transformers

    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=1, architectures=["GPT2LMHeadModel"])
    else:
        module = {"llava": pictures.llava, "ocr": heads.ocr}.get(kind, lambda: heads.module(kind))()
        config = module.config
        config.architectures = [type(module).__name__]
    with pytest.raises(TypeError, match=f"Use {right}"):
        getattr(nnsight, family)(config)


def test_automodel_overrides_what_fits() -> None:
    config = heads.module("bert-text").config
    config.architectures = ["BertForSequenceClassification"]
    config.is_decoder = True
    assert type(nnsight.LanguageModel(config, automodel="AutoModelForCausalLM")._module).__name__ == "BertLMHeadModel"


@pytest.mark.parametrize("name", ["GPT2Model", "GPT2LMHeadModel", None])
def test_a_base_model_stays_a_language_model(name: str | None) -> None:
    config = HEADS["gpt2-text"][1]()
    config.architectures = name and [name]
    assert type(nnsight.LanguageModel(config)._module).__name__ == "GPT2LMHeadModel"


def test_relies_on_the_mapping_of_auto_classes() -> None:
    made = fitting.makes("AutoModelForMaskedLM", HEADS["bert-mask"][1]())
    assert made == ("BertForMaskedLM",)
    assert fitting.makes("AutoModelForImageClassification", HEADS["bert-mask"][1]()) == ()
    assert {"fill-mask", "image-classification", "question-answering"} <= set(fitting.tasks())


class TestEncoder(FamilySuite):
    padding = "right"
    rounding = 1e-4

    def make_model(self) -> Any:
        return TransformersModel(heads.module("bert-text"), **heads.parts("bert-text"))

    def inputs(self) -> list[Any]:
        return heads.given("bert-text")


class TestImages(TestEncoder):
    padding = None

    def make_model(self) -> Any:
        return TransformersModel(heads.module("vit"), **heads.parts("vit"))

    def inputs(self) -> list[Any]:
        return heads.given("vit")


def test_where_the_tokens_of_an_invoke_lie() -> None:
    model = TransformersModel(heads.module("bert-mask"), **heads.parts("bert-mask"))
    own, last = [], []
    with torch.no_grad(), model.trace() as tracer:
        for text in heads.given("bert-mask"):
            with tracer.invoke(text):
                own.append(tracer.tokens.own(model.output.logits))
                last.append(model.output.logits[:, tracer.tokens.last])
    for text, mine, end in zip(heads.given("bert-mask"), own, last, strict=True):
        want = alone("bert-mask", text)
        torch.testing.assert_close(mine, want, **CLOSE)
        torch.testing.assert_close(end, want[:, -1], **CLOSE)
