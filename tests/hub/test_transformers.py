"""Checkpoints in transformers' format become the timm model that computes the same, to the last rounding."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers.core_model_loading import revert_weight_conversion

from tosa_cli.hub.architectures import plan_model
from tosa_cli.hub.source import load_source
from tosa_cli.hub.state_dict import to_timm

from .transformers_folders import TOLERANCE, assert_equal_outputs
from .transformers_models import NAMES, build, make, make_pixels, published, save, tokens_of

RESOLVED: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/deit-tiny-patch16-224": ("vit_tiny_patch16_224", {"num_classes": 1000}),
    "facebook/deit-tiny-distilled-patch16-224": ("deit_tiny_distilled_patch16_224", {"num_classes": 1000}),
    "google/vit-base-patch16-224": ("vit_base_patch16_224", {"num_classes": 1000}),
    "facebook/dino-vits16": ("vit_small_patch16_224", {"num_classes": 0}),
    "facebook/vit-mae-base": ("vit_base_patch16_224", {"num_classes": 0}),
    "facebook/dinov2-small": ("vit_small_patch14_dinov2", {"num_classes": 0}),
    "facebook/dinov2-with-registers-small": ("vit_small_patch14_reg4_dinov2", {"num_classes": 0}),
    "openai/clip-vit-base-patch32": ("vit_base_patch32_clip_quickgelu_224", {"num_classes": 512}),
    "google/siglip-base-patch16-224": ("vit_base_patch16_siglip_224", {"num_classes": 0, "act_layer": "gelu_tanh"}),
    "google/siglip2-base-patch16-224": ("vit_base_patch16_siglip_224", {"num_classes": 0, "act_layer": "gelu_tanh"}),
}


OTHER_SIZES: list[tuple[str, dict[str, Any], str]] = [
    ("facebook/dinov2-small", {"hidden_size": 768, "num_attention_heads": 12}, "vit_base_patch14_dinov2"),
    (
        "facebook/dinov2-small",
        {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 40, "use_swiglu_ffn": True},
        "vit_giant_patch14_dinov2",
    ),
    (
        "facebook/dinov2-with-registers-small",
        {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 40, "use_swiglu_ffn": True},
        "vit_giant_patch14_reg4_dinov2",
    ),
    (
        "google/vit-base-patch16-224",
        {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
            "image_size": 384,
        },
        "vit_large_patch16_384",
    ),
]


OTHER_CLASSES = [
    ("google/vit-base-patch16-224", "ViTModel"),
    ("google/vit-base-patch16-224", "ViTForMaskedImageModeling"),
    ("facebook/deit-tiny-distilled-patch16-224", "DeiTModel"),
    ("facebook/deit-tiny-distilled-patch16-224", "DeiTForImageClassification"),
    ("facebook/vit-mae-base", "ViTMAEModel"),
    ("openai/clip-vit-base-patch32", "CLIPVisionModel"),
    ("openai/clip-vit-base-patch32", "CLIPVisionModelWithProjection"),
    ("openai/clip-vit-base-patch32", "CLIPForImageClassification"),
    ("google/siglip-base-patch16-224", "SiglipVisionModel"),
    ("google/siglip-base-patch16-224", "SiglipForImageClassification"),
]


# ---------------------------------------------------------------------- the published configurations


def assert_fits(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Build both models without memory; every tensor of one finds its place in the other, in its shape."""
    plan = plan_model(config, "it")
    assert plan.architecture == architecture
    with torch.device("meta"):
        theirs = build(config)
    ours = timm.create_model(plan.architecture, device="meta", **plan.args)
    state = theirs.state_dict()
    for named in (state, revert_weight_conversion(theirs, dict(state))):
        fitted = to_timm(named, plan.family.naming, ours.state_dict(), "it", plan.dropped)
        assert fitted.keys() == ours.state_dict().keys()
    return plan.args


@pytest.mark.parametrize("name", NAMES)
def test_a_published_configuration_gives_the_timm_model_of_that_name(name: str) -> None:
    architecture, args = RESOLVED[name]
    assert assert_fits(published(name), architecture) == args


@pytest.mark.parametrize(("name", "changes", "architecture"), OTHER_SIZES, ids=lambda value: str(value)[:30])
def test_other_sizes_of_a_family_have_their_names_too(name: str, changes: dict[str, Any], architecture: str) -> None:
    args = assert_fits({**published(name), **changes}, architecture)
    assert set(args) == {"num_classes"}


def test_a_clip_without_quick_gelu_has_a_name_of_its_own() -> None:
    config = published("openai/clip-vit-base-patch32")
    config["vision_config"].update(hidden_act="gelu")
    assert assert_fits(config, "vit_base_patch32_clip_224") == {"num_classes": 512}
    config["vision_config_dict"] = {"patch_size": 16, "num_hidden_layers": 12}  # old files have the last word here
    assert assert_fits(config, "vit_base_patch16_clip_224") == {"num_classes": 512}


def test_what_timm_has_no_name_for_is_built_by_arguments() -> None:
    config = published("google/siglip-base-patch16-224")
    config["vision_config"].update(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, patch_size=14
    )
    assert set(assert_fits(config, "vit_so400m_patch14_siglip_224")) == {"num_classes", "act_layer"}
    config["vision_config"].update(image_size=252)
    args = assert_fits(config, "vit_base_patch16_siglip_224")
    assert args["img_size"] == 252 and args["patch_size"] == 14 and args["depth"] == 27
    assert int(1152 * args["mlp_ratio"]) == 4304


def test_classes_have_the_names_that_were_published() -> None:
    plan = plan_model(published("google/vit-base-patch16-224"), "it")
    assert len(plan.label_names) == 1000 and plan.label_names[:2] == (
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
    )
    assert plan_model(published("openai/clip-vit-base-patch32"), "it").label_names == ()


# ---------------------------------------------------------------------- outputs


@pytest.mark.parametrize("original_format", [True, False], ids=["hub", "transformers-5"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_published_class(name: str, original_format: bool, tmp_path: Path) -> None:
    theirs = make(published(name))
    assert_equal_outputs(theirs, save(theirs, tmp_path, save_original_format=original_format))


@pytest.mark.parametrize(("name", "kind"), OTHER_CLASSES, ids=lambda value: value)
def test_outputs_are_those_of_other_classes_of_the_same_family(name: str, kind: str, tmp_path: Path) -> None:
    labels = {"id2label": {0: "cat", 1: "dog", 2: "owl"}} if kind.endswith("ForImageClassification") else {}
    theirs = make(published(name), kind, **labels)
    if kind == "ViTForMaskedImageModeling":
        save(theirs, tmp_path)
        loaded = load_source(str(tmp_path)).model.forward_features(make_pixels(theirs))
        assert (loaded - tokens_of(theirs.vit, make_pixels(theirs))).abs().max() <= TOLERANCE
    else:
        assert_equal_outputs(theirs, save(theirs, tmp_path))


@pytest.mark.parametrize("name", ["facebook/dinov2-small", "facebook/dinov2-with-registers-small"])
def test_gated_layers_are_those_of_the_giant(name: str, tmp_path: Path) -> None:
    theirs = make(published(name), use_swiglu_ffn=True, mlp_ratio=4)
    for original_format in (True, False):
        assert_equal_outputs(theirs, save(theirs, tmp_path, save_original_format=original_format))


@pytest.mark.parametrize("name", ["facebook/dinov2-small", "facebook/dinov2-with-registers-small"])
def test_positions_of_another_image_size_are_resampled_as_transformers_does(name: str, tmp_path: Path) -> None:
    theirs = make(published(name))
    images = make_pixels(theirs, size=98)
    ours = load_source(str(save(theirs, tmp_path)), img_size=98).model
    with torch.no_grad():
        assert (ours.forward_features(images) - tokens_of(theirs, images)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": False},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 0.1},
        {"image_size": [32, 80]},
        {"num_channels": 5},
        {"intermediate_size": 101},
    ],
    ids=str,
)
def test_each_setting_of_a_configuration_counts(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(published("google/vit-base-patch16-224"), "ViTModel", **changes)
    height, width = changes.get("image_size", [64, 64])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, changes.get("num_channels", 3), height, width, generator=generator)
    save(theirs, tmp_path, {"image_mean": 0.5, "image_std": 0.5})
    ours = load_source(str(tmp_path)).model
    with torch.no_grad():
        assert (ours.forward_features(images) - tokens_of(theirs, images)).abs().max() <= TOLERANCE


def test_siglip_without_its_pooling_gives_the_same_tokens(tmp_path: Path) -> None:
    theirs = make(published("google/siglip-base-patch16-224"), "SiglipVisionModel", vision_use_head=False)
    ours = load_source(str(save(theirs, tmp_path))).model
    images = make_pixels(theirs)
    with torch.no_grad():
        assert (ours.forward_features(images) - tokens_of(theirs, images)).abs().max() <= TOLERANCE
