"""Checkpoints in transformers' format become the timm model that computes the same, to the last rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

import tosa_cli
from tests.sentences import fragments
from tosa_cli.api import convert
from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError, HubError, SourceError, TosaError, UnsupportedModelError
from tosa_cli.hub.architectures import plan_model
from tosa_cli.hub.download import fetch_file
from tosa_cli.hub.source import load_source
from tosa_cli.hub.state_dict import to_timm
from tosa_cli.model.class_names import class_names

from ..model.tiny_models import make_images, make_vit
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)
from .transformers_models import NAMES, build, make, make_pixels, output_of, published, save, tokens_of

TOLERANCE = 1e-5

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

WITH_TOKENS = (
    "ViTModel",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
    "DeiTModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
)
"""Classes whose last hidden state is timm's final tokens; CLIP's is before the last norm, which timm's is behind."""


def convert_all(folder: Path) -> tosa_cli.TosaViT:
    return convert(str(folder), TosaConfig(layers=(2,), keep_rate=1.0))


def refusal(folder: Path, kind: type[TosaError], **args: Any) -> str:
    with pytest.raises(TosaError) as failure:
        load_source(str(folder), **args)
    message = str(failure.value)
    assert type(failure.value) is kind, message
    assert "\n" not in message and message.endswith(".") and str(folder) in message
    return message


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = "config.json") -> Path:
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return make(published("google/vit-base-patch16-224"), "ViTModel")


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


def assert_equal_outputs(theirs: nn.Module, folder: Path) -> None:
    images = make_pixels(theirs)
    expected = output_of(theirs, images)
    assert expected.std() > 0.05
    ours = load_source(str(folder)).model
    assert not ours.training
    with torch.no_grad():
        assert ours(images).shape == expected.shape
        assert (ours(images) - expected).abs().max() <= TOLERANCE
        if type(theirs).__name__ in WITH_TOKENS:
            assert (ours.forward_features(images) - tokens_of(theirs, images)).abs().max() <= TOLERANCE


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


# ---------------------------------------------------------------------- the converted folder


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_folder_loads_and_computes_what_transformers_did(name: str, tmp_path: Path) -> None:
    theirs = make(published(name))
    processor = published(name, "preprocessor_config.json")
    model = convert_all(save(theirs, tmp_path / "theirs", processor))
    tosa_cli.save(model, tmp_path / "ours")
    images = make_pixels(theirs)
    loaded = tosa_cli.load(tmp_path / "ours")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    for ours in (loaded, by_timm):
        with torch.no_grad():
            assert (ours(images) - output_of(theirs, images)).abs().max() <= TOLERANCE
        data = timm.data.resolve_model_data_config(ours)
        assert list(data["mean"]) == processor["image_mean"] and list(data["std"]) == processor["image_std"]
        assert tuple(data["input_size"]) == (3, *images.shape[2:])


@pytest.mark.parametrize("front", ["", "module.", "model."])
def test_weights_of_a_type_that_is_no_float_are_refused_before_they_are_joined(tmp_path: Path, front: str) -> None:
    folder = save(make(published("google/vit-base-patch16-224"), "ViTModel"), tmp_path / "theirs")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    query = next(key for key in state if key.endswith("query.weight"))
    torch.save({front + key: value.to(torch.int8) if key == query else value for key, value in state.items()},
               folder / "pytorch_model.bin")  # fmt: skip
    with pytest.raises(CheckpointError, match=f"'{front}{query}' is of type int8"):
        load_source(str(folder))


@pytest.mark.parametrize("wrap", [
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
    lambda state: {"module": {f"_orig_mod.{key}": value for key, value in state.items()}},
    lambda state: {key.replace("query.", "query.base_layer."): value for key, value in state.items()},
])  # fmt: skip
@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "facebook/dinov2-small"])
def test_what_training_put_around_weights_is_taken_off(tmp_path: Path, name: str, wrap: Any) -> None:
    folder = save(make(published(name)), tmp_path / "theirs")
    expected = load_source(str(folder)).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wrap(state), folder / "pytorch_model.bin")
    found = load_source(str(folder)).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_tiny_epsilon_is_kept_in_the_folder(tmp_path: Path) -> None:
    # Tokens so small that timm's own 1e-6 would be most of their variance.
    theirs = make(published("google/vit-base-patch16-224"), "ViTModel")
    with torch.no_grad():
        theirs.embeddings.patch_embeddings.projection.weight *= 1e-4
        theirs.embeddings.patch_embeddings.projection.bias *= 1e-4
        theirs.embeddings.position_embeddings *= 1e-4
    tosa_cli.save(convert_all(save(theirs, tmp_path / "theirs")), tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_args"]["norm_eps"] == 1e-12
    images = make_pixels(theirs)
    loaded = tosa_cli.load(tmp_path / "ours")
    with torch.no_grad():
        expected = tokens_of(theirs, images)
        assert (loaded.forward_features(images) - expected).abs().max() <= TOLERANCE
        for module in loaded.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        assert (loaded.forward_features(images) - expected).abs().max() > 0.01


def test_class_names_go_into_the_folder_and_its_card(tmp_path: Path) -> None:
    labels = {0: "owl", 1: "cat", 2: "dog"}
    theirs = make(published("google/vit-base-patch16-224"), id2label=labels)
    folder = tosa_cli.save(convert_all(save(theirs, tmp_path / "theirs")), tmp_path / "ours")
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["owl", "cat", "dog"]
    assert fragments.OWL_CAT_DOG in (folder / "README.md").read_text()
    for model in (tosa_cli.load(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        assert list(model.pretrained_cfg["label_names"]) == ["owl", "cat", "dog"]
    resaved = tosa_cli.save(tosa_cli.load(folder), tmp_path / "again")
    assert (resaved / "config.json").read_text() == (folder / "config.json").read_text()


def test_a_new_head_has_no_names_of_the_old_one(tmp_path: Path) -> None:
    theirs = make(published("google/vit-base-patch16-224"), id2label={0: "owl", 1: "cat", 2: "dog"})
    source = load_source(str(save(theirs, tmp_path / "theirs")), num_classes=5)
    assert source.model.num_classes == 5
    expected = tokens_of(theirs.vit, make_pixels(theirs))
    assert (source.model.forward_features(make_pixels(theirs)) - expected).abs().max() <= TOLERANCE
    folder = tosa_cli.save(tosa_cli.convert(source.model, TosaConfig(layers=(2,))), tmp_path / "ours")
    assert "label_names" not in (folder / "config.json").read_text() and "owl" not in (folder / "README.md").read_text()


def test_numbers_are_no_names(tmp_path: Path) -> None:
    theirs = make(published("google/vit-base-patch16-224"), id2label={0: "LABEL_0", 1: "LABEL_1"})
    model = load_source(str(save(theirs, tmp_path))).model
    assert model.num_classes == 2 and not model.pretrained_cfg.get("label_names")


# ---------------------------------------------------------------------- files


def test_weights_in_several_files_are_read(vit: nn.Module, tmp_path: Path) -> None:
    save(vit, tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists() and len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal_outputs(vit, tmp_path)
    missing = sorted(tmp_path.glob("*.safetensors"))[1]
    missing.unlink()
    assert missing.name in refusal(tmp_path, CheckpointError)


def test_an_index_names_no_file_outside_the_folder(vit: nn.Module, tmp_path: Path) -> None:
    folder = save(vit, tmp_path / "in", max_shard_size="100KB")
    inside = sorted(folder.glob("*.safetensors"))[0]
    inside.rename(tmp_path / inside.name)
    edit(
        folder,
        lambda index: index.update(
            weight_map={k: f"../{v}" if v == inside.name else v for k, v in index["weight_map"].items()}
        ),
        "model.safetensors.index.json",
    )
    assert " ../" in refusal(folder, CheckpointError)


def test_a_pickle_of_tensors_is_read(vit: nn.Module, tmp_path: Path) -> None:
    save(vit, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(tmp_path, CheckpointError)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_equal_outputs(vit, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"something else")
    refusal(tmp_path, CheckpointError)


def test_what_only_other_classes_use_may_be_there_or_not(tmp_path: Path) -> None:
    theirs = make(published("openai/clip-vit-base-patch32"))
    positions = torch.arange(17).unsqueeze(0)
    folder = edit_weights(
        save(theirs, tmp_path),
        lambda state: state.update({"vision_model.embeddings.position_ids": positions, "logit_bias": torch.ones(1)}),
    )
    assert_equal_outputs(theirs, folder)
    edit_weights(folder, lambda state: [state.pop(key) for key in list(state) if key.startswith("text_model.")])
    assert_equal_outputs(theirs, folder)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_tower_alone_is_read_with_the_prefix_and_without(prefix: str, tmp_path: Path) -> None:
    theirs = make(published("openai/clip-vit-base-patch32"), "CLIPVisionModel")
    folder = save(theirs, tmp_path)
    state = load_file(folder / "model.safetensors")
    bare = {key.removeprefix("vision_model."): value for key, value in state.items()}
    save_file({prefix + key: value for key, value in bare.items()}, folder / "model.safetensors")
    assert_equal_outputs(theirs, folder)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (
            lambda state: state.pop("encoder.layer.1.attention.attention.key.weight"),
            "'encoder.layer.1.attention.attention.{query,key,value}.weight'",
        ),
        (lambda state: state.update(surplus=torch.ones(1)), "'surplus'"),
        (lambda state: state.update({"layernorm.weight": torch.ones(7)}), "layernorm.weight"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_every_tensor_is_used_and_none_is_missing(
    vit: nn.Module, tmp_path: Path, change: Callable[[dict[str, Any]], Any], key: str
) -> None:
    assert key in refusal(edit_weights(save(vit, tmp_path), change), CheckpointError)


@pytest.mark.parametrize("share", [0.5, 0])
def test_weights_that_are_cut_short_are_told(vit: nn.Module, tmp_path: Path, share: float) -> None:
    weights = save(vit, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    refusal(tmp_path, CheckpointError)


def test_without_weights_the_architecture_alone_is_built(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published("facebook/deit-tiny-patch16-224")))
    source = load_source(str(tmp_path), pretrained=False)
    assert source.name == "vit_tiny_patch16_224" and source.model.num_classes == 1000
    assert "has no preprocessor_config.json" in source.notes[0]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "bert"}, "'bert'"),
        ({"model_type": "dinov3_vit"}, "'dinov3_vit'"),
        ({"model_type": "beit"}, "'beit'"),
        ({"model_type": "siglip2"}, "'siglip2'"),
        ({"model_type": "vit", "hidden_act": "mish"}, "hidden_act = 'mish'"),
        ({"model_type": "vit", "position_embedding_type": "relative"}, "position_embedding_type = 'relative'"),
        ({"model_type": "vit", "num_attention_heads": 7}, "num_attention_heads = 7"),
    ],
    ids=str,
)
def test_what_timm_cannot_express_is_refused_by_name(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert named in refusal(tmp_path, UnsupportedModelError)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
        {"image_size": {"height": 224}},
        {"id2label": {"a": "b"}},
        {"id2label": {"1": "owl", "2": "cat"}},
        {"architectures": 5},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_meant_is_told(change: dict[str, Any], tmp_path: Path) -> None:
    config = {**published("google/vit-base-patch16-224"), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refusal(tmp_path, CheckpointError)


def test_a_head_that_timm_does_not_have_can_be_left_out(tmp_path: Path) -> None:
    theirs = make(published("facebook/dinov2-small"), "Dinov2ForImageClassification", id2label={0: "cat", 1: "dog"})
    folder = save(theirs, tmp_path)
    assert "--num-classes 0" in refusal(folder, UnsupportedModelError)
    expected = tokens_of(theirs.dinov2, make_pixels(theirs))
    for num_classes in (0, 4):
        model = load_source(str(folder), num_classes=num_classes).model
        assert model.num_classes == num_classes
        assert (model.forward_features(make_pixels(theirs)) - expected).abs().max() <= TOLERANCE


# ---------------------------------------------------------------------- the Hub


CARD = b"---\nlicense: mit\n---\n# A model\n"


def hub_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository_is_read_at_its_revision(stub_hub: StubHub, tmp_path: Path) -> None:
    config, processor = (
        published("facebook/dinov2-small"),
        published("facebook/dinov2-small", "preprocessor_config.json"),
    )
    old, new = make(config, seed=1), make(config, seed=2)
    commit = stub_hub.put("org/name", {**hub_files(save(old, tmp_path / "old", processor)), "README.md": CARD})
    latest = stub_hub.put("org/name", hub_files(save(new, tmp_path / "new")))
    images = make_pixels(old)
    for named, theirs, revision in (("org/name", new, latest.oid), (f"hf-hub:org/name@{commit.oid}", old, commit.oid)):
        source = load_source(named)
        assert (source.name, source.hub_id, source.revision) == ("org/name", "org/name", revision)
        assert torch.allclose(source.model(images), output_of(theirs, images), atol=TOLERANCE)
    provenance = convert(f"org/name@{commit.oid}", TosaConfig(layers=(2,))).provenance
    assert (provenance.base_hub_id, provenance.base_revision, provenance.license) == ("org/name", commit.oid, "mit")


def test_a_repository_in_several_files_is_read_and_then_read_again_offline(
    stub_hub: StubHub, tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hub.put("org/name", hub_files(save(vit, tmp_path / "vit", max_shard_size="100KB")))
    images = make_pixels(vit)
    first = load_source("org/name").model(images)
    assert torch.allclose(first, output_of(vit, images), atol=TOLERANCE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for known_to_be_missing in Path(constants.HF_HUB_CACHE).rglob("README.md"):
        known_to_be_missing.unlink()
    assert torch.equal(load_source("org/name").model(images), first)


def test_a_branch_that_moves_on_between_two_files_gives_no_mix(
    stub_hub: StubHub, tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = published("facebook/dinov2-small")
    old, new = make(config, seed=1), make(config, seed=2)
    stub_hub.put("org/name", hub_files(save(old, tmp_path / "old")))
    answer = stub_hub.answer

    def move_on(request: Any) -> Any:
        reply = answer(request)
        if request.method == "GET" and request.path.endswith("/config.json"):
            stub_hub.put("org/name", hub_files(save(new, tmp_path / "new")))
        return reply

    monkeypatch.setattr(stub_hub, "answer", move_on)
    images = make_pixels(old)
    assert torch.allclose(load_source("org/name").model(images), output_of(old, images), atol=TOLERANCE)


def test_where_the_hub_is_gone_halfway_it_is_asked_once(stub_hub: StubHub, tmp_path: Path, vit: nn.Module) -> None:
    stub_hub.put("org/name", hub_files(save(vit, tmp_path / "vit")))
    fetch_file("org/name", "config.json")
    stub_hub.fail("model.safetensors", 503, "Service Unavailable")
    asked = len(stub_hub.requests)
    with pytest.raises(HubError, match="503"):
        load_source("org/name")
    assert sum("model.safetensors" in request for request in stub_hub.requests[asked:]) == 1


def test_a_repository_that_lacks_its_weights_is_told(stub_hub: StubHub) -> None:
    stub_hub.put("org/name", {"config.json": json.dumps(published("facebook/dino-vits16")).encode()})
    with pytest.raises(CheckpointError, match=fragments.ORG_NAME_MODEL_SAFETENSORS_PYTORCH):
        load_source("org/name")
    with pytest.raises(SourceError, match="org/name@nowhere"):
        load_source("org/name@nowhere")


# ---------------------------------------------------------------------- timm's models in transformers' wrapper


def write_wrapped(folder: Path, model: nn.Module, kind: str, front: str = "", **config: Any) -> str:
    """A folder as `TimmWrapper...save_pretrained` writes it."""
    folder.mkdir()
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 160, 160], "license": "mit"}
    values = {"architecture": "test_vit", "architectures": [kind], "model_type": "timm_wrapper", "model_args": None}
    (folder / "config.json").write_text(json.dumps({**values, "pretrained_cfg": cfg, **config}))
    save_file({front + key: value for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("front", ["", "timm_model."])
def test_a_timm_model_that_transformers_finetuned_keeps_its_classes_and_images(tmp_path: Path, front: str) -> None:
    model, names = make_vit("test_vit", num_classes=3), ["cat", "dog", "fox"]
    folder = write_wrapped(
        tmp_path / "own", model, "TimmWrapperForImageClassification", front, num_classes=3, label_names=names
    )
    loaded = load_source(folder)
    images = make_images()
    assert torch.equal(loaded.model(images), model(images))
    assert class_names(loaded.model) == names and tuple(loaded.model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert loaded.provenance(folder).license == "mit" and not loaded.notes
    assert load_source(folder, num_classes=5).has_new_head


def test_a_timm_model_that_transformers_saved_without_a_head_has_none(tmp_path: Path) -> None:
    model = make_vit("test_vit", num_classes=0)
    folder = write_wrapped(tmp_path / "own", model, "TimmWrapperModel", num_classes=1000, label_names=["a"] * 1000)
    loaded = load_source(folder).model
    assert loaded.num_classes == 0 and torch.equal(loaded(make_images()), model(make_images()))


def test_a_size_that_transformers_was_given_is_kept(tmp_path: Path) -> None:
    model = make_vit("test_vit", num_classes=3, img_size=64)
    arguments = {"num_classes": 3, "model_args": {"img_size": 64}}
    loaded = load_source(write_wrapped(tmp_path / "own", model, "TimmWrapperForImageClassification", **arguments))
    assert torch.equal(loaded.model(make_images(size=64)), model(make_images(size=64)))
