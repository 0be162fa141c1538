"""The whole of timm's registry: every architecture converts, or is refused with a reason."""

import sys
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import DiffParallelScalingBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.catalog import Architecture, find_architectures, look_up
from tosa_cli.model.families import check_supported, is_supported_kind, why_unsupported
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT

look_up_once = cache(look_up)


def test_names_are_found_by_a_part_or_a_pattern() -> None:
    assert find_architectures("dinov3") == timm.list_models("*dinov3*") != []
    assert find_architectures("vit_*_dinov3") == timm.list_models("vit_*_dinov3")
    assert find_architectures("test_vit?") == ["test_vit2", "test_vit3", "test_vit4"]
    assert find_architectures("nonsense") == []
    assert len(find_architectures()) == len(timm.list_models()) - 2  # not tosa_vit and tosa_dense themselves


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("test_vit", "vision_transformer"),
        ("deit_tiny_distilled_patch16_224", "deit"),
        ("vit_base_patch16_sapiens2", "eva"),
        ("beit_base_patch16_224", "beit"),
        ("test_vit_relpos", "vision_transformer_relpos"),
        ("vit_tiny_r_s16_p8_224", "vision_transformer_hybrid"),
    ],
)
def test_what_converts_is_told_with_its_family(name: str, family: str) -> None:
    assert look_up(name) == Architecture(name, family, None)
    assert look_up(name).to_dict() == {"architecture": name, "family": family, "convertible": True, "reason": None}


def test_what_does_not_convert_is_told_with_the_reason() -> None:
    assert "windows" in str(look_up("swin_tiny_patch4_window7_224").reason)
    assert "channels" in str(look_up("xcit_tiny_12_p8_224").reason)
    assert "blocks" in str(look_up("resnet18").reason)
    assert "differential" in str(look_up("vit_dwee_patch16_reg1_gap_256").reason)


def test_an_architecture_that_timm_cannot_build_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("no such package")

    monkeypatch.setattr("tosa_cli.model.catalog.timm.create_model", fail)
    assert look_up("test_vit").reason == "timm does not build it here (ImportError: no such package)."


def test_an_architecture_converts_where_only_its_later_layers_can_select(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, device: str, depth: int = 3) -> Any:
        model = create_model(name, device=device, depth=depth)
        model.blocks[0] = DiffParallelScalingBlock(model.embed_dim, 1)
        return model

    create_model = timm.create_model
    monkeypatch.setattr("tosa_cli.model.catalog.timm.create_model", build)
    assert look_up("test_vit").reason is None


def test_every_architecture_converts_or_is_refused_in_one_sentence(no_random_weights: None) -> None:
    found = [look_up_once(name) for name in find_architectures()]
    assert len(found) > 1300
    for one in found:
        if one.reason is not None:
            assert one.reason.endswith(".") and ". " not in one.reason and len(one.reason) < 250, one
    families = {"vision_transformer", "vision_transformer_hybrid", "vitamin", "deit", "eva", "beit"}
    families |= {"vision_transformer_relpos"}
    assert {one.family for one in found if one.reason is None} == families
    refused = {one.name for one in found if one.family in families and one.reason is not None}
    assert refused == {f"vit_{size}_patch16_reg1_gap_256" for size in ("dwee", "dpwee", "dlittle")}


class Found(Exception):
    """Carries the type of model that an entry point of timm would build."""


@pytest.fixture
def type_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes timm's entry points tell what they would build instead of building it."""

    def tell(kind: type[nn.Module], *_: Any, **__: Any) -> None:
        raise Found(kind)

    for name, module in list(sys.modules.items()):
        if name.startswith("timm.models.") and hasattr(module, "build_model_with_cfg"):
            monkeypatch.setattr(module, "build_model_with_cfg", tell)


def kind_of(name: str) -> type[nn.Module]:
    try:
        return type(timm.create_model(name, device="meta"))
    except Found as found:
        return found.args[0]


def test_the_architectures_that_are_not_built_are_of_no_supported_type(type_only: None) -> None:
    kinds = {name: kind_of(name) for name in find_architectures() if look_up_once(name).reason is not None}
    assert len(set(kinds.values())) > 80
    assert {name for name, kind in kinds.items() if is_supported_kind(kind)} == {
        f"vit_{size}_patch16_reg1_gap_256" for size in ("dwee", "dpwee", "dlittle")
    }


@pytest.fixture
def no_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time to build a model without weights goes into drawing them."""
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_, **__: tensor)


def test_the_architectures_that_convert_do_so_whole(no_random_weights: None) -> None:
    for name in find_architectures():
        if look_up_once(name).reason is None:
            model = timm.create_model(name, device="meta")
            assert is_supported_kind(type(model)) and why_unsupported(model) is None, name


def test_the_architectures_that_convert_run_and_are_counted_as_they_run(no_random_weights: None) -> None:
    config = TosaConfig(layers=(2,), keep_rate=0.6, selector="attention", bypass="nearest+affine")
    for name in find_architectures():
        if look_up_once(name).reason is not None:
            continue
        depth = {} if "sapiens2" in name else {"depth": 2}
        source: Any = timm.create_model(name, device="meta", **depth).eval().requires_grad_(False)
        model = TosaViT(source, config).requires_grad_(False)
        images = torch.empty(1, source.in_chans, *source.patch_embed.img_size, device="meta")
        with FlopCounterMode(display=False) as counter:
            output = model(images)
        assert counter.get_total_flops() // 2 == round(count_flops(model).gmacs * 1e9), name
        source.blocks = source.blocks[:0]  # blocks leave the shape of their tokens as it is
        assert output.shape == source(images).shape, name


def test_a_refusal_of_a_model_says_what_to_type() -> None:
    with pytest.raises(UnsupportedModelError, match=fragments.RESNET_TOSA_LIST):
        check_supported(timm.create_model("test_resnet", device="meta"))
