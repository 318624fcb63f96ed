"""Tiny models that see images alone, by families that differ in how rows lie: windows, queries, points, frames, pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
import transformers
from heads import picture, seeded
from tasks import SIZES, Arguments, Kind, kind


def of_images(task: str, make: Callable[[], Any], processor: Any, size: int | None = None, **own: Any) -> Kind:
    sizes = {} if size is None else {"size": {"height": size, "width": size}}
    process = processor(**{**sizes, **own})

    def encode(image: Any) -> Arguments:
        made = process(image, return_tensors="pt")
        return {"pixel_values": made["pixel_values"]}

    return Kind(task, make, encode, [picture(0), picture(1)], {"image_processor": process})


@kind
def convnext() -> Kind:
    config = transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], layer_scale_init_value=1.0)
    make = functools.partial(seeded, transformers.ConvNextForImageClassification, config)
    return of_images("image-classification", make, transformers.ViTImageProcessor, 32)


@kind
def swin() -> Kind:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    make = functools.partial(seeded, transformers.SwinForImageClassification, config)
    return of_images("image-classification", make, transformers.ViTImageProcessor, 32)


@kind
def dinov2_features() -> Kind:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28, patch_size=7
    )
    make = functools.partial(seeded, transformers.Dinov2Model, config)
    return of_images("image-feature-extraction", make, transformers.ViTImageProcessor, 28)


@kind
def segformer() -> Kind:
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16
    )
    make = functools.partial(seeded, transformers.SegformerForSemanticSegmentation, config)
    return of_images("image-segmentation", make, transformers.SegformerImageProcessor, 32)


def stages(*stages: str) -> Any:
    return transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[1, 2, 4, 4],
        window_size=4,
        out_features=list(stages),
    )


ALL = ("stage1", "stage2", "stage3", "stage4")


def _queries(**own: Any) -> Any:
    widths = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 5}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return transformers.DetrConfig(**{**widths, **layers, **own})


@kind
def maskformer() -> Kind:
    config = transformers.MaskFormerConfig(
        backbone_config=stages(*ALL), decoder_config=_queries(), fpn_feature_size=32, mask_feature_size=32
    )
    make = functools.partial(seeded, transformers.MaskFormerForInstanceSegmentation, config)
    return of_images("image-segmentation", make, transformers.MaskFormerImageProcessor, 64)


@kind
def mask2former() -> Kind:
    config = transformers.Mask2FormerConfig(
        backbone_config=stages(*ALL),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        dim_feedforward=48,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
    )
    make = functools.partial(seeded, transformers.Mask2FormerForUniversalSegmentation, config)
    return of_images("image-segmentation", make, transformers.Mask2FormerImageProcessor, 64)


@kind
def detr() -> Kind:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1] * 4, out_features=["stage4"]
    )
    config = _queries(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        encoder_layers=2,
    )
    make = functools.partial(seeded, transformers.DetrForObjectDetection, config)
    return of_images("object-detection", make, transformers.DetrImageProcessor, 64)


@kind
def yolos() -> Kind:
    config = transformers.YolosConfig(**SIZES, image_size=[32, 32], patch_size=8, num_detection_tokens=4)
    make = functools.partial(seeded, transformers.YolosForObjectDetection, config)
    return of_images("object-detection", make, transformers.YolosImageProcessor, 32)


_DEPTHS = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}


@kind
def dpt() -> Kind:
    sizes = {**SIZES, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
    config = transformers.DPTConfig(**sizes, **_DEPTHS, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False)
    make = functools.partial(seeded, transformers.DPTForDepthEstimation, config)
    made = of_images("depth-estimation", make, transformers.DPTImageProcessor, 32)
    made.rounding = 1e-1  # values over ten thousand
    return made


@kind
def depth_anything() -> Kind:
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=28,
        patch_size=7,
        out_features=list(ALL),
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=7, reassemble_hidden_size=32, head_hidden_size=8, **_DEPTHS
    )
    make = functools.partial(seeded, transformers.DepthAnythingForDepthEstimation, config)
    made = of_images("depth-estimation", make, transformers.DPTImageProcessor, 28)
    made.rounding = 1e-2  # values in the thousands
    return made


@kind
def swin2sr() -> Kind:
    config = transformers.Swin2SRConfig(
        image_size=16, patch_size=1, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2
    )
    make = functools.partial(seeded, transformers.Swin2SRForImageSuperResolution, config)
    made = of_images("image-to-image", make, transformers.Swin2SRImageProcessor)
    made.rounding = 1e-2  # values in the thousands
    return made


@kind
def sam() -> Kind:
    vision = {
        "hidden_size": 16,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "mlp_dim": 24,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 4,
    }
    prompts = {"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    sizes = {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config={**sizes, "iou_head_hidden_dim": 8},
    )
    pixels = transformers.SamImageProcessor(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    process = transformers.SamProcessor(pixels)

    def encode(given: Any) -> Arguments:
        made = process(given["image"], input_points=[given["input_points"]], return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "input_points")}

    given = [
        {"image": picture(0), "input_points": [[[3, 4]], [[10, 12]]]},
        {"image": picture(1), "input_points": [[[13, 14]], [[1, 2]]]},
    ]
    make = functools.partial(seeded, transformers.SamModel, config)
    return Kind("mask-generation", make, encode, given, {"processor": process})


def _matching(name: str, **own: Any) -> Kind:
    finds = transformers.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        descriptor_decoder_dim=16,
        max_keypoints=10,
        keypoint_threshold=0.0,
        border_removal_distance=1,
    )
    config = getattr(transformers, f"{name}Config")(keypoint_detector_config=finds, num_attention_heads=2, **own)
    process = getattr(transformers, f"{name}ImageProcessor")(size={"height": 32, "width": 32})

    def encode(pair: Any) -> Arguments:
        return {"pixel_values": process(list(pair), return_tensors="pt")["pixel_values"]}

    make = functools.partial(seeded, getattr(transformers, f"{name}ForKeypointMatching"), config)
    given = [[picture(0), picture(1)], [picture(2), picture(3)]]
    return Kind("keypoint-matching", make, encode, given, {"image_processor": process})


@kind
def superglue() -> Kind:
    sizes = {"hidden_size": 16, "keypoint_encoder_sizes": [8, 16], "sinkhorn_iterations": 5}
    return _matching("SuperGlue", **sizes, gnn_layers_types=["self", "cross"])


@kind
def lightglue() -> Kind:
    return _matching("LightGlue", descriptor_dim=16, num_hidden_layers=2, intermediate_size=24)


@kind
def videomae() -> Kind:
    config = transformers.VideoMAEConfig(**SIZES, image_size=16, patch_size=8, num_frames=4, tubelet_size=2)
    process = transformers.VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

    def encode(frames: Any) -> Arguments:
        return dict(process(list(frames), return_tensors="pt"))

    films = [numpy.stack([numpy.asarray(picture(4 * film + at)) for at in range(4)]) for film in range(2)]
    make = functools.partial(seeded, transformers.VideoMAEForVideoClassification, config)
    given = [[picture(at) for at in range(4)], films[1]]
    return Kind("video-classification", make, encode, given, {"image_processor": process})
