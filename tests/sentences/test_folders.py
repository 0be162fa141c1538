"""What is said where a model cannot be saved, or a folder is no converted model; a long table."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tosa_cli
from tests.hub.conftest import ARGS, drop, room_for, set_value
from tests.model.tiny_models import make_tosa, make_vit
from tosa_cli.config import TosaConfig
from tosa_cli.hub.checkpoint import load
from tosa_cli.provenance import FORMAT_VERSION
from tosa_cli.workflow.save import save

from .folders import cut, edited, reweighted, rewritten, without, written
from .rows import Row, check, table


def save_on_a_full_disk() -> None:
    with room_for(1000):
        save(make_tosa(make_vit(num_classes=5)), Path("new"))


def save_pruned() -> None:
    model = make_tosa()
    model.prune_intermediate_layers([1])
    save(model, Path("new"))


def save_a_class() -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3).eval()
    save(tosa_cli.convert(model, TosaConfig(layers=(2, 4))), Path("new"))


def save_with_a_function() -> None:
    source = timm.create_model("test_vit", img_size=32, patch_size=8, norm_layer=partial(nn.LayerNorm, eps=1e-5))
    save(tosa_cli.convert(source, TosaConfig(layers=(2,))), Path("new"))


SAVED: list[Row] = [
    (
        "a folder that is there",
        lambda model: save(make_tosa(), model),
        "model already exists. Choose another name with -o, or pass --overwrite.",
    ),
    (
        "a folder of something else",
        lambda: save(make_tosa(), Path(written("mine/notes.txt")).parent, overwrite=True),
        "mine is not a model folder and will not be overwritten. Choose another name with -o.",
    ),
    (
        "a folder of a dense model",
        lambda dense: save(make_tosa(), dense, overwrite=True),
        "dense is not a model folder and will not be overwritten. Choose another name with -o.",
    ),
    (
        "a file where a folder is written",
        lambda: save(make_tosa(), Path(written("file")), overwrite=True),
        "file is a file, but a folder is written: choose another name with -o.",
    ),
    (
        "a folder below a file",
        lambda: save(make_tosa(), Path(written("file")) / "model"),
        "…/file cannot be written to: choose another place with -o.",
    ),
    (
        "a full disk",
        save_on_a_full_disk,
        "new could not be written (…). Free space or choose another place.",
    ),
    (
        "a model built from a function",
        save_with_a_function,
        "VisionTransformer cannot be written to a config.json (Model argument 'norm_layer' …) Build it with "
        "timm's names in the place of classes and functions, as in norm_layer='layernorm'.",
    ),
    (
        "a model that was pruned",
        save_pruned,
        "The model's layers were pruned, and a pruned model cannot be saved: save it before pruning.",
    ),
    (
        "a model built by its class",
        save_a_class,
        "The model cannot be saved, as its VisionTransformer was built by its class, and timm cannot build "
        "it again by a name: make it with timm.create_model, as in timm.create_model('vit_tiny_patch16_224', "
        "img_size=64, depth=6), and convert that.",
    ),
]
"""Where a model cannot be saved."""

LOADED: list[Row] = [
    (
        "a key of the backbone that lacks",
        lambda model: load(reweighted(model, lambda state: state.pop("norm.weight"))),
        "The weights of model do not fit: they lack the key 'norm.weight'.",
    ),
    (
        "a key of a selector that lacks",
        lambda model: load(reweighted(model, lambda state: state.pop("selectors.4.conv2.bias"))),
        "The weights of model do not fit: they lack the key 'selectors.4.conv2.bias'.",
    ),
    (
        "a key too many",
        lambda model: load(reweighted(model, lambda state: state.update(surplus=torch.ones(1)))),
        "The weights of model do not fit: they have the unknown key 'surplus'.",
    ),
    (
        "a mask token",
        lambda model: load(reweighted(model, lambda state: state.update(mask_token=torch.ones(1, 64)))),
        "The weights of model do not fit: they have the unknown key 'mask_token'.",
    ),
    (
        "a layer before the logits",
        lambda model: load(reweighted(model, lambda state: state.update({"pre_logits.fc.weight": torch.ones(1)}))),
        "The weights of model do not fit: they have the unknown key 'pre_logits.fc.weight'.",
    ),
    (
        "a selector too many",
        lambda model: load(reweighted(model, lambda state: state.update({"selectors.3.conv1.bias": torch.ones(1)}))),
        "The weights of model do not fit: they have the unknown key 'selectors.3.conv1.bias'.",
    ),
    (
        "a head of other classes",
        lambda model: load(reweighted(model, lambda state: state.update({"head.weight": torch.ones(7, 64)}))),
        "The weights of model do not fit its configuration: head.weight has shape [7, 64], expected [5, 64].",
    ),
    (
        "a selector of another width",
        lambda model: load(reweighted(model, lambda state: state.update({"selectors.2.conv1.bias": torch.ones(7)}))),
        "The weights of model do not fit its configuration: selectors.2.conv1.bias has shape [7], expected [8].",
    ),
    (
        "positions of another size",
        lambda model: load(reweighted(model, lambda state: state.update(pos_embed=torch.ones(1, 50, 64)))),
        "The weights of model do not fit its configuration: pos_embed has shape [1, 50, 64], expected [1, 101, 64].",
    ),
    (
        "weights that are cut short",
        lambda model: load(cut(model / "model.safetensors").parent),
        "The weights of model are broken or cut short (…). Download or copy them again.",
    ),
    (
        "weights of no length",
        lambda model: load(cut(model / "model.safetensors", 0).parent),
        "The weights of model are broken or cut short (…). Download or copy them again.",
    ),
    (
        "a newer format",
        lambda model: load(edited(model, set_value("tosa", "format_version", value=FORMAT_VERSION + 1))),
        "model/config.json cannot be used: The folder has format_version 2, but this tosa reads up to 1: run "
        "`pip install -U tosa-cli`.",
    ),
    (
        "a format that is no number",
        lambda model: load(edited(model, set_value("tosa", "format_version", value="1"))),
        "model/config.json cannot be used: format_version should be a whole number from 1 up, but is '1'.",
    ),
    (
        "no format",
        lambda model: load(edited(model, drop("tosa", "format_version"))),
        "model/config.json cannot be used: format_version should be a whole number from 1 up, but is None.",
    ),
    (
        "a misspelt key",
        lambda model: load(edited(model, set_value("tosa", "sorce", value="x"))),
        "model/config.json cannot be used: Unknown key in the tosa block: 'sorce'. Did you mean 'source'? "
        "Valid: base_hub_id, base_model, base_revision, format_version, license, results, source, stage, "
        "steps.",
    ),
    (
        "no tosa block",
        lambda model: load(edited(model, drop("tosa"))),
        "model/config.json should hold an object under 'tosa', but holds None.",
    ),
    (
        "a tosa block that is a list",
        lambda model: load(edited(model, set_value("tosa", value=[]))),
        "model/config.json should hold an object under 'tosa', but holds [].",
    ),
    (
        "no arguments",
        lambda model: load(edited(model, drop(ARGS))),
        "model/config.json should hold an object under 'model_args', but holds None.",
    ),
    (
        "arguments that are a number",
        lambda model: load(edited(model, set_value(ARGS, value=3))),
        "model/config.json should hold an object under 'model_args', but holds 3.",
    ),
    (
        "no pretrained_cfg",
        lambda model: load(edited(model, set_value("pretrained_cfg", value=None))),
        "model/config.json should hold an object under 'pretrained_cfg', but holds None.",
    ),
    (
        "a pretrained_cfg that timm does not know",
        lambda model: load(edited(model, set_value("pretrained_cfg", "no", value=1))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "no base architecture",
        lambda model: load(edited(model, drop(ARGS, "base_architecture"))),
        "model/config.json lacks 'base_architecture' under model_args: put it there, or convert the source anew.",
    ),
    (
        "an unknown base architecture",
        lambda model: load(edited(model, set_value(ARGS, "base_architecture", value="vit_of_mine"))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "a base architecture that is a number",
        lambda model: load(edited(model, set_value(ARGS, "base_architecture", value=5))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "a base architecture that cannot be converted",
        lambda model: load(edited(model, set_value(ARGS, "base_architecture", value="test_resnet"))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "a base architecture that is converted",
        lambda model: load(edited(model, set_value(ARGS, "base_architecture", value="tosa_vit"))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "no layers",
        lambda model: load(edited(model, drop(ARGS, "layers"))),
        "model/config.json lacks 'layers' under model_args: put it there, or convert the source anew.",
    ),
    (
        "layers that are a text",
        lambda model: load(edited(model, set_value(ARGS, "layers", value="2,4,6"))),
        "model/config.json cannot be used: layers must be a list of layer numbers such as [2, 4, 6], not '2,4,6'.",
    ),
    (
        "a layer that is not there",
        lambda model: load(edited(model, set_value(ARGS, "layers", value=[2, 4, 9]))),
        "model/config.json cannot be used: Layer 9 was asked for, but the model has layers 1 to 6: choose among these.",
    ),
    (
        "adjacent layers",
        lambda model: load(edited(model, set_value(ARGS, "layers", value=[2, 3, 6]))),
        "model/config.json cannot be used: Layers 2 and 3 are adjacent, but a ToSA layer needs a standard "
        "layer before it. Leave one of them out.",
    ),
    (
        "a keep rate out of range",
        lambda model: load(edited(model, set_value(ARGS, "keep_rate", value=3))),
        "model/config.json cannot be used: The keep rate of layer 2 is 3, but must be above 0 and at most 1.",
    ),
    (
        "a misspelt argument",
        lambda model: load(edited(model, set_value(ARGS, "keep_rat", value=0.5))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "an unknown selector",
        lambda model: load(edited(model, set_value(ARGS, "selector", value="oracle"))),
        "model/config.json cannot be used: selector must be one of: attention, similarity, ward, probe, previous, "
        "random; not 'oracle'.",
    ),
    (
        "an image size that is a text",
        lambda model: load(edited(model, set_value(ARGS, "img_size", value="big"))),
        "model/config.json does not describe a model (…): correct it, or convert the source anew.",
    ),
    (
        "another kernel of the selectors",
        lambda model: load(edited(model, set_value(ARGS, "selector_kernel", value=3))),
        "The weights of model do not fit its configuration: selectors.2.conv1.weight has shape [8, 2, 1], "
        "expected [8, 2, 3].",
    ),
    (
        "another selector",
        lambda model: load(edited(model, set_value(ARGS, "selector", value="random"))),
        "The weights of model do not fit: they have the unknown key 'selectors.2.conv1.bias'.",
    ),
    (
        "other classes at the top",
        lambda model: load(edited(model, set_value("num_classes", value=7))),
        "The weights of model do not fit its configuration: head.weight has shape [5, 64], expected [7, 64].",
    ),
    (
        "other classes below",
        lambda model: load(edited(model, set_value(ARGS, "num_classes", value=7))),
        "model/config.json names 5 classes at the top, but 7 under model_args: they must be the same.",
    ),
    (
        "a dense model",
        lambda model: load(edited(model, set_value("architecture", value="test_vit"))),
        "model holds test_vit, which is not converted yet: run `tosa convert model --layers 2,4,6,8,10` first.",
    ),
    (
        "no architecture",
        lambda model: load(edited(model, drop("architecture"))),
        "model holds a model of another kind, which is not converted yet: run `tosa convert model --layers "
        "2,4,6,8,10` first.",
    ),
    (
        "a configuration that ends early",
        lambda model: load(rewritten(model, "config.json", b"{")),
        "model/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "an empty configuration",
        lambda model: load(rewritten(model, "config.json", b"")),
        "model/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "a configuration that is a list",
        lambda model: load(rewritten(model, "config.json", b"[]")),
        "model/config.json should hold a JSON object, but holds a list.",
    ),
    (
        "a configuration that is no text",
        lambda model: load(rewritten(model, "config.json", b"\xff")),
        "model/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "no weights",
        lambda model: load(without(model, "model.safetensors")),
        "model has no model.safetensors, so it is not a whole model folder: copy it again.",
    ),
    (
        "no configuration",
        lambda model: load(without(model, "config.json")),
        "model has no config.json, so it is not a model folder: name one that has it.",
    ),
    (
        "a folder that is not there",
        lambda: load("nowhere"),
        "There is no model folder nowhere. Make one with `tosa convert`, or name a Hub repository.",
    ),
    (
        "a path that is not there",
        lambda: load("a/b/c"),
        "There is no model folder a/b/c. Make one with `tosa convert`, or name a Hub repository.",
    ),
    (
        "a folder as timm names it that is not there",
        lambda: tosa_cli.load("local-dir:me/model"),
        "There is no model folder me/model. Make one with `tosa convert`, or name a Hub repository.",
    ),
    (
        "an image size that is no whole number of patches",
        lambda model: tosa_cli.load(model, img_size=65),
        "An image of 65x65 pixels is no whole number of patches of 16x16: use 64x64 or 80x80.",
    ),
]
"""Folders that are no converted model."""


@table(SAVED + LOADED)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
