"""What is said of models that cannot be converted, built or trusted; a long table."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import tosa_cli
from tests.model.families import make_family
from tests.model.family_runs import convert_family
from tests.model.test_convert import AddsPlace
from tests.model.test_eligible_layers import make_mixed
from tests.model.test_new_family import EncoderFamily, make_encoder
from tests.model.tiny_models import LAYERS, make_images, make_tosa, make_vit
from tosa_cli.config import Method, TosaConfig
from tosa_cli.fit.budget import measure_curves
from tosa_cli.hub import checkpoint
from tosa_cli.hub.predictor import load_predictor, make_predictor
from tosa_cli.measure.oracle import with_oracle
from tosa_cli.measure.sweep import with_keep_rate
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.convert import check_identity, insert_selectors
from tosa_cli.model.families import FAMILIES, check_convertible, check_supported, embed
from tosa_cli.model.flops import count_flops, solve_keep_rate
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.task import TaskConfig
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.workflow.save import save

from .rows import Row, check, table


def named(name: str) -> nn.Module:
    """A timm model without weights."""
    return timm.create_model(name, device="meta")


def subclassed() -> nn.Module:
    model = make_vit()
    model.__class__ = type("Almost", (type(model),), {})
    return model


def gated(*layers: int) -> Any:
    """A model, some layers of which have gated attention."""
    model: Any = make_vit()
    for layer in layers:
        model.blocks[layer - 1].attn.gate = nn.Linear(64, 64)
    return model


def not_fused(model: Any, *layers: int) -> Any:
    """A model, some layers of which, or all, do not call fused attention."""
    for layer in layers or range(1, len(model.blocks) + 1):
        model.blocks[layer - 1].attn.fused_attn = False
    return model


def mixed(*blocks: int) -> Any:
    """Some blocks of the model of many kinds."""
    model = make_mixed()
    model.blocks = nn.Sequential(*(model.blocks[block] for block in blocks))
    return model


def read_the_first_layer() -> None:
    model = not_fused(make_vit(), 1)
    run_and_tap(model.blocks[0], embed(model, make_images()), 16)


def convert_where_places_count() -> None:
    model: Any = make_vit()
    model.blocks[3].ls1 = AddsPlace()
    insert_selectors(model, TosaConfig(layers=LAYERS))


def convert_a_forward_that_does_more() -> None:
    model: Any = make_vit()
    plain = model.forward_features
    model.forward_features = lambda images, **kwargs: 1.001 * plain(images)
    insert_selectors(model, TosaConfig(layers=LAYERS))


def convert_what_is_not_finite() -> None:
    model: Any = make_vit()
    model.blocks[5].mlp.fc1.weight.data[0, 0] = float("nan")
    insert_selectors(model, TosaConfig(layers=LAYERS))


def check_without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convert_family("EVA-02")
    monkeypatch.setattr("tosa_cli.model.families.timm_eva.gather_rope", lambda rope, indices: rope)
    with torch.no_grad():
        check_identity(model)


@pytest.fixture
def encoder() -> Iterator[Any]:
    """A model of a family that is registered for one row."""
    FAMILIES.append(EncoderFamily())
    yield make_encoder()
    FAMILIES.pop()


@pytest.fixture
def depth(dense: Path) -> Path:
    """A model that predicts depth, in the folder `depth`."""
    predictor = make_predictor(str(dense), TaskConfig(decoder="dpt", decoder_dim=16))
    save(predictor, Path("depth"))
    return Path("depth")


def with_decoder(folder: Path, decoder: str) -> Path:
    """A folder whose configuration names another decoder."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"decoder": "dpt"', f'"decoder": "{decoder}"'))
    return folder


REFUSED: list[Row] = [
    (
        "a resnet18",
        lambda: check_supported(named("resnet18")),
        "resnet18 is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a swin_tiny_patch4_window7_224",
        lambda: check_supported(named("swin_tiny_patch4_window7_224")),
        "swin_tiny_patch4_window7_224 is a SwinTransformer, which cannot be converted: its attention runs in "
        "windows of the image, which a selection of its tokens does not fill. Type `tosa list` to see what "
        "can be.",
    ),
    (
        "a samvit_base_patch16",
        lambda: check_supported(named("samvit_base_patch16")),
        "samvit_base_patch16 is a VisionTransformerSAM, which cannot be converted: its attention runs in "
        "windows of the image, which a selection of its tokens does not fill. Type `tosa list` to see what "
        "can be.",
    ),
    (
        "a vit_dlittle_patch16_reg1_gap_256",
        lambda: check_supported(named("vit_dlittle_patch16_reg1_gap_256")),
        "Layer 1 of vit_dlittle_patch16_reg1_gap_256 has differential attention, which cannot be converted: "
        "it takes one map of attention off another, so its logits do not tell what a token receives.",
    ),
    (
        "a vit_dpwee_patch16_reg1_gap_256",
        lambda: check_supported(named("vit_dpwee_patch16_reg1_gap_256")),
        "Layer 1 of vit_dpwee_patch16_reg1_gap_256 has differential attention, which cannot be converted: it "
        "takes one map of attention off another, so its logits do not tell what a token receives.",
    ),
    (
        "a naflexvit_base_patch16_gap",
        lambda: check_supported(named("naflexvit_base_patch16_gap")),
        "naflexvit_base_patch16_gap is a NaFlexVit, which cannot be converted: it is made for batches of "
        "images of several sizes, padded and masked, and tosa needs one whole grid. Type `tosa list` to see "
        "what can be.",
    ),
    (
        "a cait_xxs24_224",
        lambda: check_supported(named("cait_xxs24_224")),
        "cait_xxs24_224 is a Cait, which cannot be converted: its attention mixes the heads before and after "
        "the softmax, and the class token enters in layers apart. Type `tosa list` to see what can be.",
    ),
    (
        "a test_resnet",
        lambda: check_supported(named("test_resnet")),
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a module that timm did not make",
        lambda: check_supported(nn.Linear(2, 2)),
        "The model is a Linear, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a subclass",
        lambda: check_supported(subclassed()),
        "test_vit is a Almost, which cannot be converted: it is a subclass, which may compute something "
        "else. Type `tosa list` to see what can be.",
    ),
    (
        "blocks that norm after attention, by head",
        lambda: check_supported(named("vit_base_patch16_rpn_224"), "per-head"),
        "Layer 1 of vit_base_patch16_rpn_224 is a ResPostBlock, which cannot be converted with per-head "
        "selection: supported are Block.",
    ),
    (
        "parallel blocks, by head",
        lambda: check_supported(named("vit_base_patch16_xp_224"), "per-head"),
        "Layer 1 of vit_base_patch16_xp_224 is a ParallelScalingBlock, which cannot be converted with "
        "per-head selection: supported are Block.",
    ),
    (
        "parallel blocks, by head, counted",
        lambda: count_flops(named("vit_base_patch16_xp_224"), TosaConfig(layers=LAYERS, selection="per-head")),
        "Layer 1 of vit_base_patch16_xp_224 is a ParallelScalingBlock, which cannot be converted with "
        "per-head selection: supported are Block.",
    ),
    (
        "one gated layer, by head",
        lambda: check_convertible(gated(4), TosaConfig(layers=(2, 4), selection="per-head")),
        "Layer 4 of test_vit has gated attention, which per-head selection does not support: use --selection "
        "shared; layers that can are 2,3,5,6.",
    ),
    (
        "gated layers alone, by head",
        lambda: check_supported(gated(1, 2, 3, 4, 5, 6), "per-head"),
        "Layer 1 of test_vit has gated attention, which per-head selection does not support: use --selection shared.",
    ),
    (
        "relative positions, by head",
        lambda: check_supported(make_family("relative positions"), "per-head"),
        "Layer 1 of test_vit_relpos is a RelPosBlock, which cannot be converted with per-head selection: "
        "supported are Block.",
    ),
    (
        "a bias that cannot be gathered",
        lambda: check_convertible(not_fused(make_family("BEiT"), 3), TosaConfig(layers=(3,), selector="similarity")),
        "Layer 3 of beit_base_patch16_224 cannot be converted: its position bias can be fitted to the "
        "selected tokens only in PyTorch's fused attention, which is off: unset TIMM_FUSED_ATTN; layers that "
        "can are 1,2,4.",
    ),
    (
        "biases that cannot be gathered",
        lambda: check_supported(not_fused(make_family("relative positions"))),
        "Layer 1 of test_vit_relpos cannot be converted: its position bias can be fitted to the selected "
        "tokens only in PyTorch's fused attention, which is off: unset TIMM_FUSED_ATTN.",
    ),
    (
        "attention that is not fused",
        read_the_first_layer,
        "Block ran without PyTorch's fused attention, so its logits cannot be read. Unset TIMM_FUSED_ATTN, "
        "or build the model without exportable=True.",
    ),
    (
        "differential attention",
        lambda: check_convertible(make_mixed(), TosaConfig(layers=(2, 3), selector="similarity")),
        "Layer 3 of test_vit has differential attention, which cannot be converted: it takes one map of "
        "attention off another, so its logits do not tell what a token receives; layers that can are "
        "1,2,4,6.",
    ),
    (
        "a block of an unknown type",
        lambda: check_convertible(make_mixed(), TosaConfig(layers=(5,), selector="similarity")),
        "Layer 5 of test_vit is a TwiceBlock, which cannot be converted with shared selection: supported are "
        "Block, ResPostBlock, ParallelScalingBlock, ParallelThingsBlock, EvaBlock, EvaBlockPostNorm, Block, "
        "RelPosBlock, ResPostRelPosBlock; layers that can are 1,2,4,6.",
    ),
    (
        "a layer after one that cannot be read",
        lambda: check_convertible(make_mixed(), TosaConfig(layers=(4,), selector="attention")),
        "The selector of layer 4 cannot read the layer before it: layer 3 of test_vit has differential "
        "attention, which cannot be converted: it takes one map of attention off another, so its logits do "
        "not tell what a token receives; layers that can are 2.",
    ),
    (
        "no layer that can",
        lambda: check_supported(mixed(2, 4)),
        "Layer 1 of test_vit has differential attention, which cannot be converted: it takes one map of "
        "attention off another, so its logits do not tell what a token receives.",
    ),
    (
        "no layer for a selector",
        lambda: measure_curves(make_accelerator(TrainConfig()), mixed(0), Method(selector="previous"), images=None),
        "The selector 'previous' can select tokens in no layer of the model: take another.",
    ),
    (
        "a layer of a new family that cannot select",
        lambda encoder: insert_selectors(encoder, TosaConfig(layers=(2, 3), selector="random")),
        "Layer 3 of encoder attends in windows, which a selection of its tokens does not fill; layers that "
        "can are 1,2,4.",
    ),
    (
        "a layer of a new family that cannot be read",
        lambda encoder: insert_selectors(encoder, TosaConfig(layers=(4,))),
        "The selector of layer 4 cannot read the layer before it: layer 3 of encoder attends in windows, "
        "which a selection of its tokens does not fill; layers that can are 2.",
    ),
    (
        "a module that timm did not make, built",
        lambda: TosaViT(nn.Linear(2, 2), TosaConfig(layers=(2,))),
        "The model is a Linear, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a layer that is not there",
        lambda: TosaViT(make_vit(), TosaConfig(layers=(2, 9))),
        "Layer 9 was asked for, but the model has layers 1 to 6: choose among these.",
    ),
    (
        "a layer that is not there, counted",
        lambda: count_flops(make_vit(), TosaConfig(layers=(2, 7))),
        "Layer 7 was asked for, but the model has layers 1 to 6: choose among these.",
    ),
    (
        "a layer that is not there, converted",
        lambda: insert_selectors(make_vit(), TosaConfig(layers=(2, 7))),
        "Layer 7 was asked for, but the model has layers 1 to 6: choose among these.",
    ),
    (
        "a reduction out of reach",
        lambda: solve_keep_rate(named("deit_tiny_patch16_224"), TosaConfig(layers=(2, 4)), 0.5),
        "The target reduction 50.0% cannot be reached: with layers 2,4 at most 16.0% is saved. Name more layers.",
    ),
    (
        "a reduction of 0.0",
        lambda: solve_keep_rate(make_vit(), TosaConfig(layers=LAYERS), 0.0),
        "The target reduction is 0.0, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "a reduction of 1.0",
        lambda: solve_keep_rate(make_vit(), TosaConfig(layers=LAYERS), 1.0),
        "The target reduction is 1.0, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "a reduction of -0.1",
        lambda: solve_keep_rate(make_vit(), TosaConfig(layers=LAYERS), -0.1),
        "The target reduction is -0.1, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "a reduction of 25.8",
        lambda: solve_keep_rate(make_vit(), TosaConfig(layers=LAYERS), 25.8),
        "The target reduction is 25.8, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "a reduction of float('nan')",
        lambda: solve_keep_rate(make_vit(), TosaConfig(layers=LAYERS), float("nan")),
        "The target reduction is nan, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "a layer where places count",
        convert_where_places_count,
        "With every token kept, layer 4 on shuffled tokens should equal the source model's, but differs by "
        "…. Nothing was written. Please report the model's name.",
    ),
    (
        "a forward that does more than its layers",
        convert_a_forward_that_does_more,
        "With every token kept, the final tokens should equal the source model's, but differs by …. Nothing "
        "was written. Please report the model's name.",
    ),
    (
        "weights that are not finite",
        convert_what_is_not_finite,
        "With every token kept, the final tokens should equal the source model's, but differs by nan. "
        "Nothing was written. Please report the model's name.",
    ),
    (
        "positions that are not gathered",
        check_without_places,
        "With every token kept, layer 2 on shuffled tokens should equal the source model's, but differs by "
        "…. Nothing was written. Please report the model's name.",
    ),
    (
        "layers that are a text",
        lambda: timm.create_model("tosa_vit", base_architecture="test_vit", layers="2,4"),
        "layers must be a list of layer numbers such as [2, 4, 6], not '2,4'.",
    ),
    (
        "no layers",
        lambda: timm.create_model("tosa_vit", base_architecture="test_vit"),
        "The setting 'layers' is missing: it must be a list of layer numbers such as [2, 4, 6].",
    ),
    (
        "an architecture that cannot be converted",
        lambda: timm.create_model("tosa_vit", base_architecture="test_resnet", layers=[2]),
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a name that the package does not have",
        lambda: tosa_cli.nonsense,
        "module 'tosa_cli' has no attribute 'nonsense'",
    ),
    (
        "a form of intermediate tokens",
        lambda: make_tosa().forward_intermediates(make_images(), output_fmt="NHWC"),
        "output_fmt must be NCHW or NLC, not 'NHWC'.",
    ),
    (
        "a keep rate above 1",
        lambda: with_keep_rate(make_tosa(), 1.5),
        "The keep rate of layer 2 is 1.5, but must be above 0 and at most 1.",
    ),
    (
        "an oracle of heads",
        lambda: with_oracle(make_tosa(selection="per-head")),
        "The oracle selects one set of tokens a layer, so it does not stand in for per-head selection: leave out "
        "--selector oracle.",
    ),
    (
        "a decoder for more layers",
        lambda: Predictor(timm.create_model("test_vit2", depth=3, num_classes=0), TaskConfig(decoder="dpt")),
        "The decoder 'dpt' reads 4 layers, but the encoder has 3: use --decoder linear.",
    ),
    (
        "an unknown decoder",
        lambda depth: load_predictor(with_decoder(depth, "pdt")),
        "depth/config.json cannot be used: decoder must be one of: linear, dpt, newcrfs; not 'pdt'.",
    ),
    (
        "another decoder",
        lambda depth: load_predictor(with_decoder(depth, "linear")),
        "The weights of depth do not fit: they lack the key 'decoder.proj.weight'.",
    ),
    (
        "a model without a decoder",
        lambda model: load_predictor(model),
        "model holds no model with a decoder: train one with `tosa finetune --task depth`.",
    ),
    (
        "a model with a decoder",
        lambda depth: checkpoint.load(depth),
        "depth holds a model with a decoder, which only `tosa eval`, `finetune`, `flops`, `viz` and `push` "
        "take: name the converted model that its encoder came from.",
    ),
]
"""Models and layers that cannot be converted."""


@table(REFUSED)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
