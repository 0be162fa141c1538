"""Weights in transformers' format: in several files, pickled, of a part alone; and what is refused of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tosa_cli.errors import CheckpointError, TosaError, UnsupportedModelError
from tosa_cli.hub.source import load_source

from .transformers_folders import (
    TOLERANCE,
    assert_equal_outputs,
    edit_weights,
    make_their_vit,  # noqa: F401 (the fixture `vit`)
)
from .transformers_models import make, make_pixels, published, save, tokens_of


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
