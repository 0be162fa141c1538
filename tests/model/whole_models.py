"""Tiny models of transformers, with random weights: one of each type that people use whole."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**SMALL, "image_size": 56, "patch_size": 14}
BACKBONE = {key: value for key, value in VISION.items() if key != "intermediate_size"}
HEAD = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
TEXT = {**SMALL, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LANGUAGE = {**SMALL, "vocab_size": 120, "model_type": "llama", "num_key_value_heads": 4}
IMAGE_TOKEN = 110


def dinov2(**settings: Any) -> Any:
    return hf.Dinov2Config(**{**BACKBONE, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False, **settings})


def depth_anything(**settings: Any) -> Any:
    sizes = {"reassemble_hidden_size": 32, "patch_size": 14, "head_hidden_size": 8, **HEAD}
    config = hf.DepthAnythingConfig(**{"backbone_config": dinov2(), **sizes, **settings})
    return hf.DepthAnythingForDepthEstimation(config)


def prompt_depth_anything() -> Any:
    config = hf.PromptDepthAnythingConfig(
        backbone_config=dinov2(), reassemble_hidden_size=32, patch_size=14, head_hidden_size=8, **HEAD
    )
    return hf.PromptDepthAnythingForDepthEstimation(config)


def dpt() -> Any:
    return hf.DPTForDepthEstimation(
        hf.DPTConfig(**VISION, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, backbone_config=None, **HEAD)
    )


def dpt_dinov2() -> Any:
    return hf.DPTForDepthEstimation(hf.DPTConfig(backbone_config=dinov2(), hidden_size=32, is_hybrid=False, **HEAD))


def vitpose(**settings: Any) -> Any:
    small = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    backbone = hf.VitPoseBackboneConfig(**small, image_size=[64, 48], patch_size=[16, 16], out_indices=[4], **settings)
    return hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=backbone))


def vitpose_classic() -> Any:
    small = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    backbone = hf.VitPoseBackboneConfig(**small, image_size=[64, 48], patch_size=[16, 16], out_indices=[4])
    return hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=backbone, use_simple_decoder=False))


def upernet() -> Any:
    backbone = hf.Dinov2Config(**BACKBONE, out_indices=[1, 2, 3, 4])
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=5
    )
    return hf.UperNetForSemanticSegmentation(config)


def clip() -> Any:
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


def siglip() -> Any:
    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION))


def clipseg() -> Any:
    config = hf.CLIPSegConfig(
        text_config=TEXT,
        vision_config=VISION,
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[1, 2, 3],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return hf.CLIPSegForImageSegmentation(config)


def owlvit() -> Any:
    return hf.OwlViTForObjectDetection(hf.OwlViTConfig(text_config=TEXT, vision_config=VISION, projection_dim=32))


def owlv2() -> Any:
    return hf.Owlv2ForObjectDetection(hf.Owlv2Config(text_config=TEXT, vision_config=VISION, projection_dim=32))


def yolos(**settings: Any) -> Any:
    sizes = {**VISION, "image_size": [56, 70]}
    return hf.YolosForObjectDetection(hf.YolosConfig(**sizes, num_detection_tokens=10, **settings))


def eomt() -> Any:
    sizes = {**BACKBONE, "num_hidden_layers": 6}
    config = hf.EomtConfig(
        **sizes, num_queries=5, num_blocks=2, num_register_tokens=3, num_upscale_blocks=1, num_labels=4
    )
    return hf.EomtForUniversalSegmentation(config)


def eomt_dinov3() -> Any:
    sizes = {**VISION, "num_hidden_layers": 6}
    config = hf.EomtDinov3Config(
        **sizes, num_queries=5, num_blocks=2, num_register_tokens=3, num_upscale_blocks=1, num_labels=4
    )
    return hf.EomtDinov3ForUniversalSegmentation(config)


def upernet_dinov3() -> Any:
    backbone = hf.DINOv3ViTConfig(**VISION, num_register_tokens=4, out_indices=[1, 2, 3, 4])
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=5
    )
    return hf.UperNetForSemanticSegmentation(config)


def metaclip_2() -> Any:
    return hf.MetaClip2Model(hf.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=16))


def llava() -> Any:
    config = hf.LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        text_config=LANGUAGE,
        image_token_index=IMAGE_TOKEN,
        image_token_id=IMAGE_TOKEN,
    )
    return hf.LlavaForConditionalGeneration(config)


def paligemma() -> Any:
    text = {**LANGUAGE, "model_type": "gemma", "head_dim": 8}
    config = hf.PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_token_id=IMAGE_TOKEN,
        projection_dim=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


CONVERTED: dict[str, tuple[Callable[[], Any], str]] = {
    "depth_anything": (depth_anything, "predicted_depth"),
    "depth_anything_metric": (lambda: depth_anything(depth_estimation_type="metric", max_depth=20), "predicted_depth"),
    "prompt_depth_anything": (prompt_depth_anything, "predicted_depth"),
    "dpt": (dpt, "predicted_depth"),
    "dpt_dinov2": (dpt_dinov2, "predicted_depth"),
    "vitpose": (vitpose, "heatmaps"),
    "vitpose_classic": (vitpose_classic, "heatmaps"),
    "upernet": (upernet, "logits"),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**VISION)), "logits"),
    "deit": (lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VISION)), "logits"),
    "dinov2": (lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**BACKBONE)), "logits"),
    "dinov2_with_registers": (
        lambda: hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(**BACKBONE, num_register_tokens=3)
        ),
        "logits",
    ),
    "dinov3_vit": (
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION, num_register_tokens=4)),
        "last_hidden_state",
    ),
    "upernet_dinov3": (upernet_dinov3, "logits"),
    "eomt": (eomt, "masks_queries_logits"),
    "eomt_dinov3": (eomt_dinov3, "masks_queries_logits"),
    "pixio": (lambda: hf.PixioModel(hf.PixioConfig(**BACKBONE, n_cls_tokens=3)), "last_hidden_state"),
    "internvl": (
        lambda: hf.InternVLVisionModel(
            hf.InternVLVisionConfig(**{**VISION, "image_size": [56, 56], "patch_size": [14, 14]})
        ),
        "last_hidden_state",
    ),
    "clip": (clip, "image_embeds"),
    "metaclip_2": (metaclip_2, "image_embeds"),
    "siglip": (siglip, "image_embeds"),
    "clipseg": (clipseg, "logits"),
    "owlvit": (owlvit, "pred_boxes"),
    "owlv2": (owlv2, "pred_boxes"),
    "yolos": (yolos, "pred_boxes"),
    "yolos_mid_positions": (lambda: yolos(use_mid_position_embeddings=True), "pred_boxes"),
    "llava": (llava, "logits"),
    "paligemma": (paligemma, "logits"),
}
"""How each is made, and the output that people read."""

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "vitmatte": (lambda: hf.VitDetModel(hf.VitDetConfig(**BACKBONE)), "windows"),
    "vitpose_experts": (lambda: vitpose(num_experts=2, part_features=8), "experts"),
    "siglip2_naflex": (
        lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**SMALL, patch_size=14, num_patches=16)),
        "different shapes",
    ),
    "sam": (
        lambda: hf.SamVisionModel(
            hf.SamVisionConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_dim=32, image_size=64, patch_size=16
            )
        ),
        "windows",
    ),
    "beit": (lambda: hf.BeitForImageClassification(hf.BeitConfig(**{**VISION, "image_size": 56})), "position bias"),
    "vit_mae": (lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VISION)), "random part"),
    "swin": (
        lambda: hf.SwinModel(hf.SwinConfig(image_size=56, embed_dim=16, depths=[1, 1], num_heads=[2, 2])),
        "window",
    ),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**SMALL)), "no list of blocks"),
}
"""How each is made, and a word of the reason."""


def batch_for(model: Any) -> dict[str, Any]:
    """A batch that a model takes, of random images and, where it reads one, a text."""
    config = model.config
    vision = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    size = vision.image_size if isinstance(vision.image_size, (list, tuple)) else (vision.image_size,) * 2
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {"pixel_values": torch.randn(2, 3, *size, generator=generator)}
    kind = config.model_type
    if kind in ("clip", "metaclip_2", "siglip", "clipseg", "owlvit", "owlv2"):
        batch["input_ids"] = torch.tensor([[1, 7, 9, 2], [1, 8, 5, 2]])
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if kind in ("llava", "paligemma"):
        num_images = 16
        batch["input_ids"] = torch.tensor([[1] + [IMAGE_TOKEN] * num_images + [5, 6]] * 2)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch
