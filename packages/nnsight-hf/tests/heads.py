"""Tiny models with heads that do not write text, seeded, and what they read."""

from __future__ import annotations

from typing import Any

import numpy
import torch
import transformers
from checkpoints import TOKENS, tokenizer
from PIL import Image

_SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SHAPE, "vocab_size": len(TOKENS), "max_position_embeddings": 70, "pad_token_id": 0}
_PICTURE = {**_SHAPE, "image_size": 16, "patch_size": 8}
#: Of an encoder with a decoder.
BOTH_SIDES = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
SOUND = {
    **_SHAPE,
    "vocab_size": 12,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "mask_time_prob": 0.0,
}

#: By what to ask for: task, configuration, and the class that transformers alone would use.
HEADS: dict[str, tuple[str, Any, Any]] = {
    "bert-mask": ("fill-mask", lambda: transformers.BertConfig(**_TEXT), transformers.BertForMaskedLM),
    "bert-text": (
        "text-classification",
        lambda: transformers.BertConfig(**_TEXT),
        transformers.BertForSequenceClassification,
    ),
    "roberta-tokens": (
        "token-classification",
        lambda: transformers.RobertaConfig(**_TEXT),
        transformers.RobertaForTokenClassification,
    ),
    "electra-answer": (
        "question-answering",
        lambda: transformers.ElectraConfig(embedding_size=16, **_TEXT),
        transformers.ElectraForQuestionAnswering,
    ),
    "distilbert": (
        "feature-extraction",
        lambda: transformers.DistilBertConfig(
            dim=32, hidden_dim=48, n_layers=2, n_heads=4, vocab_size=len(TOKENS), max_position_embeddings=70
        ),
        transformers.DistilBertModel,
    ),
    "gpt2-text": (
        "text-classification",
        lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(TOKENS), pad_token_id=0),
        transformers.GPT2ForSequenceClassification,
    ),
    "vit": ("image-classification", lambda: transformers.ViTConfig(**_PICTURE), transformers.ViTForImageClassification),
    "wav2vec2": (
        "automatic-speech-recognition",
        lambda: transformers.Wav2Vec2Config(feat_extract_norm="layer", do_stable_layer_norm=True, **SOUND),
        transformers.Wav2Vec2ForCTC,
    ),
    "wav2vec2-group": (
        "audio-classification",
        lambda: transformers.Wav2Vec2Config(feat_extract_norm="group", **SOUND),
        transformers.Wav2Vec2ForSequenceClassification,
    ),
    "whisper": (
        "automatic-speech-recognition",
        lambda: transformers.WhisperConfig(
            vocab_size=24,
            num_mel_bins=8,
            d_model=32,
            **BOTH_SIDES,
            max_source_positions=50,
            max_target_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        transformers.WhisperForConditionalGeneration,
    ),
}


def module(kind: str) -> Any:
    """Make a model by its name here."""
    _, config, cls = HEADS[kind]
    made = seeded(cls, config(), len(kind))
    if kind == "whisper":
        made.generation_config.suppress_tokens = [0, 1, 2]  # random weights choose padding, which transformers cuts off
    return made


def seeded(cls: Any, config: Any, seed: int = 0) -> Any:
    """Make a model of a configuration, with weights large enough that positions and masks matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = cls(config)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    return made.eval()


def ocr() -> Any:
    """Make a ViT that a GPT-2 tells what it has seen, as TrOCR and Donut are built."""
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_PICTURE),
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(TOKENS), add_cross_attention=True),
        decoder_start_token_id=1,
        pad_token_id=0,
        eos_token_id=2,
    )
    return seeded(transformers.VisionEncoderDecoderModel, config)


def parts(kind: str) -> dict[str, Any]:
    """The processors of a model, by the name that `TransformersModel` has for each."""
    if kind == "vit":
        size = {"height": 16, "width": 16}
        return {"image_processor": transformers.ViTImageProcessor(size=size)}
    if kind.startswith("wav2vec2"):
        own = transformers.Wav2Vec2FeatureExtractor(sampling_rate=100, return_attention_mask=True)
        return {"feature_extractor": own}
    if kind == "whisper":
        own = transformers.WhisperFeatureExtractor(
            feature_size=8, sampling_rate=100, hop_length=1, chunk_length=1, n_fft=16
        )
        return {"feature_extractor": own}
    return {"tokenizer": tokenizer()}


def save(folder: Any, kind: str) -> str:
    """Save a checkpoint with its processors."""
    module(kind).save_pretrained(folder)
    for part in parts(kind).values():
        part.save_pretrained(folder)
    return str(folder)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=numpy.uint8))


def wave(seed: int, samples: int) -> Any:
    return numpy.random.default_rng(seed).normal(size=samples).astype(numpy.float32)


def given(kind: str) -> list[Any]:
    """Two inputs, of different lengths where the model takes such."""
    if kind == "vit":
        return [picture(0), picture(1)]
    if kind == "wav2vec2-group":
        return [wave(0, 120), wave(1, 120)]
    if kind.startswith("wav2vec2"):
        return [wave(0, 90), wave(1, 160)]
    if kind == "whisper":
        return [wave(0, 60), wave(1, 100)]
    if kind == "electra-answer":
        return [
            {"question": "the cat", "context": "a small dog ran"},
            {"question": "the mat", "context": "the cat sat on the red mat and slept"},
        ]
    return ["the cat sat", "a small dog ran in the old house"]


def encoded(kind: str, value: Any) -> dict[str, Any]:
    """What transformers alone makes of an input."""
    (part,) = parts(kind).values()
    if kind == "vit":
        return dict(part(value, return_tensors="pt"))
    if kind == "whisper":
        return {**part(value, sampling_rate=100, return_tensors="pt"), "decoder_input_ids": torch.tensor([[1]])}
    if kind.startswith("wav2vec2"):
        return dict(part(value, sampling_rate=100, return_tensors="pt"))
    made = part(value["question"], value["context"], return_tensors="pt") if kind == "electra-answer" else None
    made = part(value, return_tensors="pt") if made is None else made
    return {name: made[name] for name in made if kind not in ("distilbert",) or name != "token_type_ids"}


def captioner() -> Any:
    """Make a BLIP, whose `generate` is its text decoder's."""
    text = {**_TEXT, "encoder_hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    config = transformers.BlipConfig(text_config=text, vision_config=_PICTURE, projection_dim=16)
    return seeded(transformers.BlipForConditionalGeneration, config)


def listener() -> Any:
    """Make a Speech2Text, which reads spectra of different lengths."""
    config = transformers.Speech2TextConfig(
        vocab_size=len(TOKENS),
        d_model=32,
        **BOTH_SIDES,
        input_feat_per_channel=8,
        conv_channels=16,
        max_source_positions=200,
        max_target_positions=30,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    return seeded(transformers.Speech2TextForConditionalGeneration, config)


def speaker() -> Any:
    """Make a SpeechT5, whose `generate` gives a spectrogram and calls its decoder by itself."""
    config = transformers.SpeechT5Config(
        vocab_size=len(TOKENS),
        hidden_size=32,
        **BOTH_SIDES,
        num_mel_bins=8,
        speech_decoder_prenet_units=16,
        speaker_embedding_dim=12,
        speech_decoder_postnet_units=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_text_positions=60,
        max_speech_positions=60,
    )
    return seeded(transformers.SpeechT5ForTextToSpeech, config)
