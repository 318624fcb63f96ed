"""Tiny models that read text, with images, pages and tables too, and those that hear or speak."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
import torch
import transformers
from checkpoints import TOKENS
from heads import SOUND, picture, seeded, wave
from tasks import SIZES, Arguments, Kind, from_vocabulary, kind, text, words
from tasks_of_images import ALL, stages

RATE = 100
_TEXT = {**SIZES, "vocab_size": len(TOKENS), "max_position_embeddings": 64, "pad_token_id": 0}
_LABELS = ["a dog", "the very old cat"]
_TWO = ["the cat sat", "a small dog ran in the old house"]

# -- images and text -----------------------------------------------------------------------------------------------------


def _seeing(**own: Any) -> Arguments:
    vision = {**SIZES, "image_size": 28, "patch_size": 7}
    return {"text_config": {**_TEXT, "eos_token_id": 2, **own}, "vision_config": vision}


def _guessing(make: Callable[[], Any], refused: str, task: str = "zero-shot-image-classification", **how: Any) -> Kind:
    size = {"height": 28, "width": 28}
    process = transformers.ViTImageProcessor(size=size)
    template = "{}" if "detection" in task else "it was {}"

    def encode(given: Any) -> Arguments:
        texts = words()([template.format(label) for label in given["candidate_labels"]], return_tensors="pt", **how)
        names = ("input_ids", "attention_mask")
        return {**{name: texts[name] for name in names}, **process(given["image"], return_tensors="pt")}

    given = [{"image": picture(seed), "candidate_labels": _LABELS} for seed in range(2)]
    if "detection" not in task:
        given = [{**one, "hypothesis_template": template} for one in given]
    parts = {"image_processor": process, "tokenizer": words()}
    return Kind(task, make, encode, given, parts, refused)


@kind
def clip() -> Kind:
    config = transformers.CLIPConfig(**_seeing(), projection_dim=16)
    make = functools.partial(seeded, transformers.CLIPModel, config)
    return _guessing(make, "compares each text", padding=True)


@kind
def siglip() -> Kind:
    config = transformers.SiglipConfig(**_seeing())
    make = functools.partial(seeded, transformers.SiglipModel, config)
    return _guessing(make, "compares each text", padding="max_length", max_length=64)


@kind
def owlvit() -> Kind:
    config = transformers.OwlViTConfig(**_seeing(), projection_dim=32)
    make = functools.partial(seeded, transformers.OwlViTForObjectDetection, config)
    return _guessing(make, "compares each text", "zero-shot-object-detection", padding=True)


@kind
def grounding_dino() -> Kind:
    config = transformers.GroundingDinoConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=stages(*ALL[1:]),
        text_config=transformers.BertConfig(**_TEXT),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
    )
    process = transformers.GroundingDinoImageProcessor(size={"height": 128, "width": 128})

    def encode(given: Any) -> Arguments:
        labels = " ".join(f"{label}." for label in given["candidate_labels"])
        return {**text(labels), **process(given["image"], return_tensors="pt")}

    given = [{"image": picture(seed), "candidate_labels": _LABELS} for seed in range(2)]
    make = functools.partial(seeded, transformers.GroundingDinoForObjectDetection, config)
    parts = {"image_processor": process, "tokenizer": words()}
    return Kind("zero-shot-object-detection", make, encode, given, parts)


@kind
def vilt() -> Kind:
    config = transformers.ViltConfig(**_TEXT, image_size=32, patch_size=8, num_labels=3, max_image_length=-1)
    process = transformers.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)

    def encode(given: Any) -> Arguments:
        return {**text(given["question"]), **process(given["image"], return_tensors="pt")}

    pictures = [picture(0), picture(1).rotate(90, expand=True)]  # of two sizes
    given = [{"image": one, "question": question} for one, question in zip(pictures, _TWO)]
    make = functools.partial(seeded, transformers.ViltForQuestionAnswering, config)
    parts = {"image_processor": process, "tokenizer": words()}
    within = ("vilt.pooler", "classifier")
    return Kind("visual-question-answering", make, encode, given, parts, within=within)


def pages() -> list[Any]:
    boxes = [[[10 * at, 5, 10 * at + 9, 20] for at in range(number)] for number in (3, 6)]
    asked = [("the cat", "a small dog"), ("old house", "the cat sat on the mat")]
    return [
        {"image": picture(seed), "question": question, "word_boxes": list(zip(said.split(), boxes[seed]))}
        for seed, (question, said) in enumerate(asked)
    ]


@kind
def layoutlm() -> Kind:
    config = transformers.LayoutLMConfig(**_TEXT)

    def encode(page: Any) -> Arguments:
        said, boxes = zip(*page["word_boxes"])
        asked = len(page["question"].split())
        made = text(page["question"], " ".join(said))
        where = [[0] * 4] * (1 + asked) + [[1000] * 4] + list(boxes) + [[1000] * 4]
        return {**made, "bbox": torch.tensor([where])}

    make = functools.partial(seeded, transformers.LayoutLMForQuestionAnswering, config)
    return Kind("document-question-answering", make, encode, pages(), {"tokenizer": words()})


@kind
def layoutlmv3() -> Kind:
    sizes = {"coordinate_size": 5, "shape_size": 6, "input_size": 16, "patch_size": 8}
    config = transformers.LayoutLMv3Config(**_TEXT, **sizes)
    process = transformers.LayoutLMv3ImageProcessor(apply_ocr=False, size={"height": 16, "width": 16})
    tokenize = from_vocabulary("LayoutLMv2TokenizerFast")

    def encode(page: Any) -> Arguments:
        said, boxes = (list(part) for part in zip(*page["word_boxes"]))
        made = tokenize(page["question"], said, boxes=boxes, return_tensors="pt")
        return {**made, "pixel_values": process(page["image"], return_tensors="pt")["pixel_values"]}

    make = functools.partial(seeded, transformers.LayoutLMv3ForQuestionAnswering, config)
    parts = {"tokenizer": tokenize, "image_processor": process}
    # Of one length: the patches of the page come after the padding, as the test of them looks at.
    given = [{**page, "word_boxes": page["word_boxes"][:3], "question": "the cat"} for page in pages()]
    return Kind("document-question-answering", make, encode, given, parts)


# -- text and tables -----------------------------------------------------------------------------------------------------


@kind
def tapas() -> Kind:
    import pandas

    config = transformers.TapasConfig(**_TEXT, num_aggregation_labels=2, type_vocab_sizes=[3, 16, 16, 2, 16, 16, 10])
    tokenize = from_vocabulary("TapasTokenizer", model_max_length=64)
    tables = [{"cat": ["a", "the"], "dog": ["1", "2"]}, {"house": ["old", "small", "big"], "mat": ["3", "4", "5"]}]
    given = [{"table": table, "query": query} for table, query in zip(tables, _TWO)]
    given[1]["table"] = pandas.DataFrame(tables[1])

    def encode(one: Any) -> Arguments:
        return dict(tokenize(pandas.DataFrame(one["table"]), one["query"], return_tensors="pt"))

    make = functools.partial(seeded, transformers.TapasForQuestionAnswering, config)
    return Kind("table-question-answering", make, encode, given, {"tokenizer": tokenize})


@kind
def zero_shot_text() -> Kind:
    make = functools.partial(
        seeded, transformers.BertForSequenceClassification, transformers.BertConfig(**_TEXT, num_labels=3)
    )

    def encode(given: Any) -> Arguments:
        sentences = [f"This example is {label}." for label in given["candidate_labels"]]
        return dict(words()([given["text"]] * len(sentences), sentences, return_tensors="pt", padding=True))

    given = [{"text": one, "candidate_labels": ["old", "very big"]} for one in _TWO]
    return Kind("zero-shot-classification", make, encode, given, {"tokenizer": words()})


def _tokens(given: Any) -> Arguments:
    made = text(given)
    return {name: made[name] for name in ("input_ids", "attention_mask")}


@kind
def sentences() -> Kind:
    config = transformers.MPNetConfig(**{**_TEXT, "pad_token_id": 1})
    make = functools.partial(seeded, transformers.MPNetModel, config)
    return Kind("feature-extraction", make, _tokens, list(_TWO), {"tokenizer": words()})


# -- sound ---------------------------------------------------------------------------------------------------------------

_HEARD = {**SOUND, "feat_extract_norm": "layer", "do_stable_layer_norm": True}


def _of_waves(task: str, make: Callable[[], Any]) -> Kind:
    extract = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)

    def encode(sound: Any) -> Arguments:
        return dict(extract(sound["array"], sampling_rate=RATE, return_tensors="pt"))

    given = [{"array": wave(0, 90), "sampling_rate": RATE}, {"array": wave(1, 160), "sampling_rate": RATE}]
    return Kind(task, make, encode, given, {"feature_extractor": extract})


@kind
def wav2vec2() -> Kind:
    config = transformers.Wav2Vec2Config(**_HEARD, classifier_proj_size=16)
    make = functools.partial(seeded, transformers.Wav2Vec2ForSequenceClassification, config)
    return _of_waves("audio-classification", make)


@kind
def hubert() -> Kind:
    make = functools.partial(seeded, transformers.HubertForCTC, transformers.HubertConfig(**_HEARD))
    return _of_waves("automatic-speech-recognition", make)


def _of_spectra(task: str, make: Callable[[], Any], extract: Any) -> Kind:
    def encode(sound: Any) -> Arguments:
        return dict(extract(sound, sampling_rate=RATE, return_tensors="pt"))

    return Kind(task, make, encode, [wave(0, 90), wave(1, 160)], {"feature_extractor": extract})


@kind
def spectrogram_transformer() -> Kind:
    sizes = {"max_length": 16, "num_mel_bins": 8}
    config = transformers.ASTConfig(**SIZES, **sizes, patch_size=4, frequency_stride=4, time_stride=4)
    extract = transformers.ASTFeatureExtractor(sampling_rate=RATE, **sizes)
    made = _of_spectra(
        "audio-classification", functools.partial(seeded, transformers.ASTForAudioClassification, config), extract
    )
    made.given = [wave(0, 900), wave(1, 1600)]
    return made


@kind
def clap() -> Kind:
    sound = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "window_size": 4,
        "spec_size": 32,
        "num_mel_bins": 8,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "projection_dim": 16,
        "enable_fusion": False,
    }
    said = {**_TEXT, "projection_dim": 16, "max_position_embeddings": 66}
    config = transformers.ClapConfig(text_config=said, audio_config=sound, projection_dim=16)
    spectra = {"feature_size": 8, "hop_length": 5, "max_length_s": 2, "fft_window_size": 16, "frequency_max": 50}
    extract = transformers.ClapFeatureExtractor(sampling_rate=RATE, truncation="rand_trunc", **spectra)

    def encode(given: Any) -> Arguments:
        sentences = [f"This is a sound of {label}." for label in given["candidate_labels"]]
        texts = words()(sentences, return_tensors="pt", padding=True)
        heard = extract(given["audio"], sampling_rate=RATE, return_tensors="pt")
        return {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"], **heard}

    given = [{"audio": wave(seed, 180), "candidate_labels": _LABELS} for seed in range(2)]
    make = functools.partial(seeded, transformers.ClapModel, config)
    parts = {"feature_extractor": extract, "tokenizer": words()}
    return Kind("zero-shot-audio-classification", make, encode, given, parts, "compares each text")


@kind
def patchtst() -> Kind:
    """A time series, for which there is no pipeline: tensors by their names."""
    config = transformers.PatchTSTConfig(
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        prediction_length=4,
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
    )
    make = functools.partial(seeded, transformers.PatchTSTForPrediction, config)
    series = [torch.tensor(numpy.stack([wave(seed, 16), wave(seed + 5, 16)], axis=1))[None] for seed in range(2)]
    return Kind("", make, dict, [{"past_values": one} for one in series])


# -- sound that is made --------------------------------------------------------------------------------------------------


def _speaking(task: str, make: Callable[[], Any], **own: Any) -> Kind:
    return Kind(task, make, _tokens, list(_TWO), {"tokenizer": words()}, **own)


@kind
def vits() -> Kind:
    config = transformers.VitsConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=2,
        posterior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        prior_encoder_num_wavenet_layers=2,
        noise_scale=0.0,
        noise_scale_duration=0.0,
    )
    make = functools.partial(seeded, transformers.VitsModel, config)
    return _speaking("text-to-audio", make, refused="each has a length of its own")
