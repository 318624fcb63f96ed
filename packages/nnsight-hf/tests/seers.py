"""A tiny model of each family that reads images and text, with seeded weights, and where its parts are.

How each is configured, and its processor, is `seer_configs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pictures
import seer_configs as configs
import torch
import transformers


@dataclass(frozen=True)
class Seer:
    """One family.

    Attributes:
        make: makes its configuration and its processor.
        mark: the placeholder that a prompt has for each image.
        tower: a layer of what sees images.
        joint: what gives the language part its image features.
        layer: a layer of the language part.
        one: whether a prompt has one image, neither more nor none.
        places: how many positions images have before the text, without tokens for them.
        shown: whether what the tower gives for an image has the same places in a batch as alone; not so where images are
            filled up to one extent.
        padded: whether every row has places for as many images as the row with most.
    """

    make: Callable[[], tuple[Any, Any]]
    mark: str = "<image>"
    tower: str = "model.vision_tower.encoder.layers.0"
    joint: str = "model.multi_modal_projector"
    layer: str = "model.language_model.layers.1"
    one: bool = False
    places: int = 0
    shown: bool = True
    padded: bool = False

    def module(self) -> torch.nn.Module:
        config, _ = self.make()
        # relies on: _BaseAutoModelClass._model_mapping, transformers 5.15 to 5.23
        made = pictures.seeded(transformers.AutoModelForImageTextToText._model_mapping[type(config)], config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "gate" in name and parameter.numel() == 1:
                    parameter.fill_(0.5)  # closed in a new model, which would see nothing
        return made

    def processor(self) -> Any:
        return self.make()[1]

    def prompt(self, words: str, images: int) -> str:
        return " ".join([*filter(None, [self.mark] * images), words])


QWEN = {
    "mark": "<|vision_start|><|image_pad|><|vision_end|>",
    "tower": "model.visual.blocks.0",
    "joint": "model.visual.merger",
}
IDEFICS = {
    "tower": "model.vision_model.encoder.layers.0",
    "joint": "model.connector",
    "layer": "model.text_model.layers.1",
}
BLIP = {
    "mark": "",
    "tower": "vision_model.encoder.layers.0",
    "joint": "language_projection",
    "layer": "language_model.model.decoder.layers.1",
    "one": True,
}

SEERS = {
    "llava_next": Seer(configs.llava_next),
    "llava_onevision": Seer(configs.llava_onevision),
    "llava_next_video": Seer(configs.llava_next_video),
    "vipllava": Seer(configs.vipllava),
    "aya_vision": Seer(configs.aya),
    "idefics2": Seer(configs.idefics2, **IDEFICS, shown=False),
    "idefics3": Seer(configs.idefics3, **IDEFICS),
    "smolvlm": Seer(lambda: configs.idefics3("SmolVLM"), **IDEFICS),
    "paligemma": Seer(configs.paligemma),
    "gemma3": Seer(configs.gemma3, "<boi>"),
    "mllama": Seer(configs.mllama, "<|image|>", "model.vision_model.transformer.layers.0", padded=True),
    "qwen2_vl": Seer(configs.qwen, **QWEN),
    "qwen2_5_vl": Seer(lambda: configs.qwen("Qwen25VL"), **QWEN),
    "qwen3_vl": Seer(lambda: configs.qwen("Qwen3VL"), **QWEN),
    "internvl": Seer(configs.internvl, "<ctx>", "model.vision_tower.encoder.layer.0"),
    "blip_2": Seer(configs.blip2, **BLIP),
    "instructblip": Seer(configs.instructblip, **BLIP),
    "kosmos2": Seer(
        configs.kosmos2,
        "",
        "vision_model.model.encoder.layers.0",
        "image_to_text_projection",
        "text_model.model.layers.1",
        one=True,
    ),
    "chameleon": Seer(
        configs.chameleon, tower="model.vqmodel.encoder", joint="model.vqmodel.encoder", layer="model.layers.1"
    ),
    "florence2": Seer(configs.florence2, "", "model.vision_tower", layer="model.language_model.encoder.layers.1"),
    "git": Seer(
        configs.git,
        "",
        "git.image_encoder.vision_model.encoder.layers.0",
        "git.visual_projection",
        "git.encoder.layer.1.intermediate",
        one=True,
        places=17,
    ),
}
