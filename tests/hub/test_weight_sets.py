"""Which of the tensors in a file are a ViT's: wherever people put them, and whatever stands before their names."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sentences import fragments
from tosa_cli.errors import CheckpointError, ConfigError
from tosa_cli.hub.weight_sets import choose_weights

State = dict[str, Tensor]


def vit(value: float = 1.0) -> State:
    """A few tensors by timm's names."""
    return {key: torch.full((2,), value) for key in ("patch_embed.proj.weight", "blocks.0.norm1.bias", "norm.weight")}


def prefixed(front: str, state: State) -> State:
    return {front + key: value for key, value in state.items()}


def same(found: State, state: State) -> bool:
    return list(found) == list(state) and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "front",
    [
        "model.",
        "net.",
        "encoder.",
        "teacher.backbone.",
        "base_model.model.",
        "module.model.",
        "_orig_mod.module.",
        "x.",
    ],
)
@pytest.mark.parametrize("nest", ["", "state_dict", "model", "module", "ema"])
def test_what_stands_before_the_names_is_found_and_taken_off(front: str, nest: str) -> None:
    state = prefixed(front, vit())
    found = choose_weights({nest: state, "epoch": 3} if nest else state, None, "file")
    assert same(found.tensors, vit())
    assert found.named("norm.weight") == f"{nest}.{front}norm.weight".lstrip(".")
    assert not found.notes("file")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("model", "ema"), "model"),
        (("model", "model_ema"), "model_ema"),
        (("state_dict", "state_dict_ema"), "state_dict_ema"),
        (("student.backbone", "teacher.backbone"), "teacher.backbone"),
        (("encoder", "target_encoder"), "encoder"),
        (("online.net", "target.net"), "online.net"),
    ],
)
def test_of_several_weights_which_were_taken_is_told_and_can_be_chosen(names: tuple[str, str], taken: str) -> None:
    values = {name: vit(index) for index, name in enumerate(names)}
    other = next(name for name in names if name != taken)
    for file in (values, {key: value for name in names for key, value in prefixed(f"{name}.", values[name]).items()}):
        found = choose_weights(file, None, "file")
        assert found.name == taken and same(found.tensors, values[taken])
        assert found.notes("file") == [
            f"Of file the weights {taken!r} are taken, not {other!r}: --weights-key {other} takes those."
        ]
        assert same(choose_weights(file, other, "file").tensors, values[other])
        assert choose_weights(file, other.partition(".")[0], "file").name == other
    with pytest.raises(ConfigError, match=fragments.NO_WEIGHTS_BEST_WEIGHTS_KEY):
        choose_weights(values, "best", "file")


def test_a_head_beside_the_backbone_belongs_to_it_and_what_else_is_left_out_is_told() -> None:
    head = {"head.weight": torch.ones(3, 2), "head.bias": torch.ones(3)}
    beside = {"projector.0.weight": torch.ones(1), "dino_head.mlp.0.weight": torch.ones(1)}
    found = choose_weights({"state_dict": {**prefixed("backbone.", vit()), **head, **beside}}, None, "file")
    assert same(found.tensors, {**vit(), **head})
    assert found.notes("file") == ["Left out of file, as outside of 'state_dict.backbone': 'projector'."]


@pytest.mark.parametrize("front", ["", "module.", "state_dict."])
def test_of_open_clip_the_image_tower_is_taken_with_its_projection_as_head(front: str) -> None:
    text = {"text.token_embedding.weight": torch.ones(1), "logit_scale": torch.ones(1), "transformer.x": torch.ones(1)}
    trunk = {**prefixed("visual.trunk.", vit()), "visual.head.proj.weight": torch.ones(3, 2), **text}
    found = choose_weights(prefixed(front, trunk), None, "file")
    assert found.tensors["head.weight"].shape == (3, 2) and not found.tensors["head.bias"].any()
    assert not found.notes("file")
    own = {"visual.conv1.weight": torch.ones(1), "visual.proj": torch.ones(2, 3), **text}
    found = choose_weights(prefixed(front, own), None, "file")
    assert list(found.tensors) == ["visual.conv1.weight", "visual.proj"] and not found.notes("file")


def test_layers_that_peft_wrapped_are_read_once_the_adapter_is_merged() -> None:
    wrapped = {
        "base_model.model.patch_embed.proj.weight": torch.ones(2),
        "base_model.model.blocks.0.attn.qkv.base_layer.weight": torch.ones(2),
        "base_model.model.head.original_module.weight": torch.zeros(2),
        "base_model.model.head.modules_to_save.default.weight": torch.ones(2),
    }
    found = choose_weights(wrapped, None, "file").tensors
    assert list(found) == ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"]
    assert found["head.weight"].all()
    adapter = {"base_model.model.blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=fragments.NOT_MERGED_LORA_A_MERGE):
        choose_weights({**wrapped, **adapter}, None, "file")


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_blocks_that_pytorch_wrapped_are_read(wrapper: str) -> None:
    wrapped = {
        "model.patch_embed.proj.weight": torch.ones(2),
        f"model.blocks.0.{wrapper}.attn.qkv.weight": torch.ones(2),
        f"model.blocks.1.{wrapper}._orig_mod.mlp.{wrapper}.fc1.weight": torch.ones(2),
    }
    found = choose_weights(wrapped, None, "file").tensors
    assert list(found) == ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"]


def test_what_an_optimizer_keeps_is_no_weights() -> None:
    moments = {0: {"exp_avg": torch.ones(2)}}
    file: Any = {"model": vit(), "optimizer": {"state": moments}, "loss": {"center": torch.ones(4)}, "epoch": 3}
    found = choose_weights(file, None, "file")
    assert same(found.tensors, vit()) and not found.notes("file")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {}, {1: torch.ones(3)}, {"epoch": 3}, "text"], ids=repr)
def test_what_holds_no_tensors_with_names_is_refused(content: Any) -> None:
    with pytest.raises(CheckpointError, match=fragments.TENSORS_WITH_NAMES):
        choose_weights(content, None, "file")
