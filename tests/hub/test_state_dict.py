"""Weights files as the authors of DeiT, DINO, DINOv2 and MAE publish them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sentences import fragments
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.source import load_source
from tosa_cli.hub.weight_sets import WeightSet, choose_weights

from ..model.tiny_models import make_images, make_vit

State = dict[str, Any]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def dino_head(prefix: str) -> State:
    return {f"{prefix}mlp.0.weight": torch.ones(4, 4), f"{prefix}last_layer.weight_v": torch.ones(4, 4)}


def with_decoder(state: State) -> State:
    decoder = {"decoder_embed.weight": torch.ones(4, 4), "decoder_blocks.0.norm1.bias": torch.ones(4)}
    return {**state, "mask_token": torch.ones(1, 1, 4), "decoder_pos_embed": torch.ones(1, 5, 4), **decoder}


def in_chunks(state: State) -> State:
    return {
        f"blocks.{int(key.split('.')[1]) // 3}.{key.removeprefix('blocks.')}"
        if key.startswith("blocks.")
        else key: value
        for key, value in state.items()
    }


PUBLISHED: list[Any] = [
    pytest.param(lambda state: {"model": state}, id="DeiT, MAE"),
    pytest.param(lambda state: state, id="DINO's backbone"),
    pytest.param(
        lambda state: {
            "student": {**prefixed(state, "module.backbone."), **dino_head("module.head.")},
            "teacher": {**prefixed(state, "backbone."), **dino_head("head.")},
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "args": argparse.Namespace(arch="vit_small"),
            "epoch": 100,
        },
        id="DINO's whole checkpoint",
    ),
    pytest.param(lambda state: {**state, "mask_token": torch.zeros(1, 64)}, id="DINOv2's backbone"),
    pytest.param(lambda state: {"state_dict": {**state, "masked_embed": torch.zeros(1, 64)}}, id="iBOT's backbone"),
    pytest.param(
        lambda state: {
            "teacher": {
                **prefixed({**in_chunks(state), "mask_token": torch.zeros(1, 64)}, "backbone."),
                **dino_head("dino_head."),
                **dino_head("ibot_head."),
            }
        },
        id="DINOv2's training checkpoint",
    ),
    pytest.param(lambda state: {"model": with_decoder(state)}, id="MAE with its decoder"),
    pytest.param(lambda state: {"state_dict": prefixed(state, "module.")}, id="data parallel"),
    pytest.param(lambda state: {"model": prefixed(state, "_orig_mod.module.")}, id="compiled"),
]


@pytest.mark.parametrize("wrap", PUBLISHED)
def test_the_backbone_is_found_in_what_authors_publish(wrap: Callable[[State], State], tmp_path: Path) -> None:
    model = make_vit("test_vit", num_classes=0)
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(model.state_dict()), path)
    loaded = load_source(str(path), architecture="test_vit").model
    assert torch.equal(loaded(make_images()), model(make_images()))


@pytest.mark.parametrize(
    "wrap", [lambda state: {"model": state}, lambda state: {"model": {f"module.{k}": v for k, v in state.items()}}]
)
def test_both_heads_of_a_distilled_deit_are_read(wrap: Callable[[State], State], tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    model = make_vit(name, num_classes=5)
    torch.save(wrap(model.state_dict()), tmp_path / f"{name}-b40b3cf7.pth")
    loaded = load_source(str(tmp_path / f"{name}-b40b3cf7.pth"))
    images = make_images(1, size=224)
    assert loaded.name == name and torch.equal(loaded.model(images), model(images))


def test_dinov2_with_registers_is_read_from_its_authors_naming(tmp_path: Path) -> None:
    model = make_vit("vit_small_patch14_reg4_dinov2", img_size=56)
    state = model.state_dict()
    class_position = torch.randn(1, 1, 384, generator=torch.Generator().manual_seed(0))
    theirs: dict[str, Tensor] = {
        **{key: value for key, value in state.items() if key not in ("reg_token", "cls_token", "pos_embed")},
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - class_position,
        "pos_embed": torch.cat([class_position, state["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 384),
    }
    torch.save(theirs, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    loaded = load_source(
        str(tmp_path / "dinov2_vits14_reg4_pretrain.pth"), architecture="vit_small_patch14_reg4_dinov2", img_size=56
    ).model
    images = make_images(1, size=56)
    assert torch.allclose(loaded(images), model(images), atol=1e-5)


def test_a_finetuned_mae_pools_as_it_was_trained_to(tmp_path: Path) -> None:
    model = make_vit("test_vit", num_classes=5, global_pool="avg")
    assert "fc_norm.weight" in model.state_dict() and "norm.weight" not in model.state_dict()
    torch.save({"model": model.state_dict()}, tmp_path / "mae_finetuned.pth")
    loaded = load_source(str(tmp_path / "mae_finetuned.pth"), architecture="test_vit").model
    assert torch.equal(loaded(make_images()), model(make_images()))


def test_what_is_no_pretraining_head_is_not_dropped_in_silence(tmp_path: Path) -> None:
    state = {**make_vit("test_vit", num_classes=0).state_dict(), "head.norm.weight": torch.ones(4)}
    torch.save({"teacher": state}, tmp_path / "test_vit.pth")
    with pytest.raises(CheckpointError, match=r"'teacher\.head\.norm\.weight'"):
        load_source(str(tmp_path / "test_vit.pth"))


def test_a_file_in_transformers_naming_alone_says_what_is_missing(tmp_path: Path) -> None:
    torch.save({"vit.embeddings.patch_embeddings.projection.bias": torch.ones(4)}, tmp_path / "test_vit.bin")
    with pytest.raises(CheckpointError, match=fragments.TEST_VIT_BIN_CONFIG_JSON):
        load_source(str(tmp_path / "test_vit.bin"))


def test_what_is_plain_is_left_as_it_is() -> None:
    state = make_vit("test_vit").state_dict()
    assert choose_weights(state, None, "test_vit.pth") == WeightSet(state)
