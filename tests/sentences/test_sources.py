"""What is said of what is no dense model; a long table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tosa_cli
from tests.hub import transformers_models as transformers
from tests.hub.conftest import ARGS, set_value
from tests.hub.sources import WritesMarker, split_weights, write_folder, write_weights
from tests.hub.test_image_processor import SQUARE
from tests.hub.test_image_processor import settings as image_settings_of
from tests.hub.transformers_folders import edit_weights
from tests.hub.transformers_models import make, published
from tests.model.tiny_models import make_vit
from tosa_cli.config import TosaConfig
from tosa_cli.hub.original import dense_model
from tosa_cli.hub.source import load_source

from .folders import cut, edited, reweighted, rewritten, without, written
from .rows import Row, check, table


def weights_file(name: str = "test_vit.safetensors", **changes: Any) -> str:
    """A weights file of `test_vit`; what is None is left out."""
    state = {**make_vit(num_classes=5).state_dict(), **changes}
    return write_weights(Path(name), {key: value for key, value in state.items() if value is not None})


def convert_infinite() -> None:
    model: Any = make_vit()
    model.blocks[1].mlp.fc2.weight.data[3, 4] = float("inf")
    tosa_cli.convert(model, TosaConfig(layers=(2, 4)))


def lose_the_source(dense: Path) -> None:
    model = tosa_cli.convert(str(dense), TosaConfig(layers=(2, 4)))
    model.provenance = model.provenance.after("finetuned", {})
    dense.rename("elsewhere")
    dense_model(model)


def split_dense(dense: Path) -> str:
    """A folder with weights in several files, one of which is missing."""
    return without(split_weights(dense), "model-00002-of-00003.safetensors")


def split_theirs() -> str:
    """A folder in transformers' format with weights in several files, one of which is missing."""
    folder = transformers.save(
        make(published("google/vit-base-patch16-224"), "ViTModel"), Path("theirs"), max_shard_size="100KB"
    )
    return without(folder, sorted(path.name for path in folder.glob("*.safetensors"))[1])


def transformers_folder(change: Callable[[dict[str, Any]], Any] | None = None) -> str:
    folder = transformers.save(make(published("google/vit-base-patch16-224"), "ViTModel"), Path("theirs"))
    return str(edit_weights(folder, change) if change else folder)


def described(**config: Any) -> str:
    """A folder with a configuration alone, in transformers' format."""
    return str(Path(written("theirs/config.json", json.dumps(config).encode())).parent)


def with_two_classes() -> str:
    config = published("facebook/dinov2-small")
    model = make(config, "Dinov2ForImageClassification", id2label={0: "cat", 1: "dog"})
    return str(transformers.save(model, Path("theirs")))


SOURCES: list[Row] = [
    (
        "a misspelt name",
        lambda: load_source("test_vitt"),
        "timm knows no model 'test_vitt'. Did you mean test_vit or …?",
    ),
    (
        "another misspelt name",
        lambda: load_source("deit_tinny"),
        "timm knows no model 'deit_tinny'. Did you mean deit_tiny or …?",
    ),
    (
        "a name like no other",
        lambda: load_source("xyzzy"),
        "timm knows no model 'xyzzy'. Did you mean deit_tiny_patch16_224?",
    ),
    (
        "a model that cannot be converted",
        lambda: load_source("resnet18"),
        "resnet18 is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "another model that cannot be converted",
        lambda: load_source("test_convnext"),
        "test_convnext is a ConvNeXt, which cannot be converted: it is not built of transformer blocks that "
        "all work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a name without weights",
        lambda: load_source("vit_base_patch16_xp_224"),
        "timm has no pretrained weights of vit_base_patch16_xp_224. Pass --no-pretrained, or name a weights file.",
    ),
    (
        "a tag that timm does not know",
        lambda: load_source("deit_tiny_patch16_224.nope", pretrained=False),
        "timm has no such weights of deit_tiny_patch16_224.nope (…) Leave the tag out to take the default ones.",
    ),
    (
        "an empty name",
        lambda: load_source(""),
        "The name of the model is empty: name a timm model such as deit_tiny, a folder or a Hub id.",
    ),
    (
        "split weights of which one lacks",
        lambda dense: load_source(split_dense(dense)),
        "dense lacks model-00002-of-00003.safetensors, which model.safetensors.index.json names. Download it again.",
    ),
    (
        "a key of the source that lacks",
        lambda dense: load_source(reweighted(dense, lambda state: state.pop("blocks.3.attn.qkv.bias"))),
        "The weights of dense do not fit: they lack the key 'blocks.3.attn.qkv.bias'.",
    ),
    (
        "a key of the source too many",
        lambda dense: load_source(reweighted(dense, lambda state: state.update(surplus=torch.ones(1)))),
        "The weights of dense do not fit: they have the unknown key 'surplus'.",
    ),
    (
        "a norm of another width",
        lambda dense: load_source(reweighted(dense, lambda state: state.update({"norm.weight": torch.ones(7)}))),
        "The weights of dense do not fit its configuration: norm.weight has shape [7], expected [64].",
    ),
    (
        "a key of the source that lacks, for other classes",
        lambda dense: load_source(reweighted(dense, lambda state: state.pop("blocks.3.attn.qkv.bias")), num_classes=3),
        "The weights of dense do not fit: they lack the key 'blocks.3.attn.qkv.bias'.",
    ),
    (
        "other classes than the head's at the top",
        lambda dense: load_source(edited(dense, set_value("num_classes", value=7))),
        "config.json of dense names 7 classes at the top, but 5 under model_args: they must be the same.",
    ),
    (
        "other classes than the head's below",
        lambda dense: load_source(edited(dense, set_value(ARGS, "num_classes", value=7))),
        "config.json of dense names 5 classes at the top, but 7 under model_args: they must be the same.",
    ),
    (
        "a source's configuration that ends early",
        lambda dense: load_source(rewritten(dense, "config.json", b"{")),
        "dense/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "a source's configuration of no length",
        lambda dense: load_source(rewritten(dense, "config.json", b"")),
        "dense/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "a source's configuration that is no text",
        lambda dense: load_source(rewritten(dense, "config.json", b"\xff\xfe")),
        "dense/config.json cannot be read as JSON (…): copy or download it again.",
    ),
    (
        "a source's configuration that is a list",
        lambda dense: load_source(rewritten(dense, "config.json", b"[1, 2]")),
        "dense/config.json should hold a JSON object, but holds a list.",
    ),
    (
        "a source's configuration that is a text",
        lambda dense: load_source(rewritten(dense, "config.json", b'"test_vit"')),
        "dense/config.json should hold a JSON object, but holds a str.",
    ),
    (
        "a source's configuration without keys",
        lambda dense: load_source(rewritten(dense, "config.json", b"{}")),
        "In dense, config.json has no 'architecture', so it is not in timm's format: name a folder that timm or "
        "transformers wrote.",
    ),
    (
        "an architecture that is a number",
        lambda dense: load_source(rewritten(dense, "config.json", b'{"architecture": 5}')),
        "In dense, config.json has no 'architecture', so it is not in timm's format: name a folder that timm or "
        "transformers wrote.",
    ),
    (
        "an architecture that timm does not know",
        lambda dense: load_source(rewritten(dense, "config.json", b'{"architecture": "vit_of_mine"}')),
        "config.json of dense names the architecture 'vit_of_mine', which timm does not know: update timm, or correct "
        "it.",
    ),
    (
        "a pretrained_cfg that is a number",
        lambda dense: load_source(
            rewritten(dense, "config.json", b'{"architecture": "test_vit", "pretrained_cfg": 5}')
        ),
        "dense has a configuration of the wrong shape (AttributeError: …): correct its config.json.",
    ),
    (
        "a pretrained_cfg with a foreign key",
        lambda dense: load_source(
            rewritten(dense, "config.json", b'{"architecture": "test_vit", "pretrained_cfg": {"no": 1}}')
        ),
        "dense has a configuration of the wrong shape (TypeError: …): correct its config.json.",
    ),
    (
        "foreign arguments",
        lambda dense: load_source(
            rewritten(
                dense, "config.json", b'{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"no": 1}}'
            )
        ),
        "dense has a configuration of the wrong shape (TypeError: …): correct its config.json.",
    ),
    (
        "arguments of a source that are a number",
        lambda dense: load_source(
            rewritten(dense, "config.json", b'{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": 5}')
        ),
        "dense has a configuration of the wrong shape (AttributeError: …): correct its config.json.",
    ),
    (
        "a source without weights",
        lambda dense: load_source(without(dense, "model.safetensors")),
        "The weights of dense cannot be loaded (…). Download or copy them again.",
    ),
    (
        "a source without configuration",
        lambda dense: load_source(without(dense, "config.json")),
        "dense has no config.json, so it is not a model folder. To read a file of weights, name it and what it is of: "
        "dense/model.safetensors --architecture deit_tiny_patch16_224.",
    ),
    (
        "a source of another kind",
        lambda: load_source(str(write_folder(Path("resnet"), timm.create_model("test_resnet")))),
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a source that is cut short",
        lambda dense: load_source(str(cut(dense / "model.safetensors").parent)),
        "The weights of dense are broken or cut short (…). Download or copy them again.",
    ),
    (
        "a folder that is converted",
        lambda model: load_source(str(model)),
        "model is already a converted model. Convert its source instead, or run `tosa flops model`.",
    ),
    (
        "a file that is converted",
        lambda model: load_source(str(model / "model.safetensors"), architecture="test_vit"),
        "The weights of model/model.safetensors do not fit: they have the unknown key 'selectors.2.conv1.bias'.",
    ),
    (
        "nothing at /no/such/folder",
        lambda: load_source("/no/such/folder"),
        "There is no folder or file /no/such/folder. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "nothing at ./nowhere",
        lambda: load_source("./nowhere"),
        "There is no folder or file nowhere. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "nothing at nowhere.safetensors",
        lambda: load_source("nowhere.safetensors"),
        "There is no folder or file nowhere.safetensors. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "nothing at local-dir:a/b/c",
        lambda: load_source("local-dir:a/b/c"),
        "There is no folder or file a/b/c. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "a file whose name tells nothing",
        lambda: load_source(weights_file("weights.safetensors")),
        "The name of weights.safetensors does not tell its architecture: add --architecture, as in "
        "--architecture deit_tiny_patch16_224.",
    ),
    (
        "a misspelt architecture",
        lambda: load_source(weights_file(), architecture="test_vitt"),
        "timm knows no model 'test_vitt'. Did you mean test_vit or …?",
    ),
    (
        "an architecture that cannot be converted",
        lambda: load_source(weights_file(), architecture="resnet18"),
        "resnet18 is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "another architecture",
        lambda: load_source(weights_file(), architecture="test_vit2"),
        "The weights of test_vit.safetensors do not fit: they lack the key 'reg_token'.",
    ),
    (
        "a file that lacks a key",
        lambda: load_source(weights_file(**{"norm.weight": None})),
        "The weights of test_vit.safetensors do not fit: they lack the key 'norm.weight'.",
    ),
    (
        "a file of other weights",
        lambda: load_source(write_weights(Path("test_vit.safetensors"), {"bert.embeddings": torch.ones(3, 3)})),
        "The weights of test_vit.safetensors do not fit: they lack the key 'cls_token', and each of their keys "
        "begins with 'bert.'.",
    ),
    (
        "a pickle of more than tensors",
        lambda: load_source(weights_file("test_vit.pth", code=WritesMarker(Path("marker")))),
        "The weights of test_vit.pth are a pickle that holds more than tensors, and were not loaded: "
        "unpickling them could run code. Ask for a .safetensors file.",
    ),
    (
        "a file that is cut short",
        lambda: load_source(str(cut(weights_file()))),
        "The weights of test_vit.safetensors are broken or cut short (…). Download or copy them again.",
    ),
    (
        "a pickle that is cut short",
        lambda: load_source(str(cut(weights_file("test_vit.pth")))),
        "The weights of test_vit.pth are broken or cut short. Download or copy them again.",
    ),
    (
        "a file that holds a list",
        lambda: load_source(write_weights(Path("test_vit.pth"), [1, 2])),
        "test_vit.pth should hold tensors with names, as model.state_dict() gives them, but holds a list: save these.",
    ),
    (
        "a file that holds a tensor",
        lambda: load_source(write_weights(Path("test_vit.pth"), torch.ones(3))),
        "test_vit.pth should hold tensors with names, as model.state_dict() gives them, but holds a Tensor: save "
        "these.",
    ),
    (
        "a file that holds no tensors",
        lambda: load_source(write_weights(Path("test_vit.pth"), {"epoch": 3})),
        "test_vit.pth should hold tensors with names, as model.state_dict() gives them, but holds a dictionary without "
        "any: save these.",
    ),
    (
        "an adapter among weights",
        lambda: load_source(write_weights(Path("test_vit.pth"), {"blocks.0.attn.qkv.lora_A.x": torch.ones(3)})),
        "test_vit.pth holds an adapter that is not merged into the weights, as 'blocks.0.attn.qkv.lora_A.x': load it "
        "with peft, call merge_and_unload(), and save that model.",
    ),
    (
        "a folder with an adapter",
        lambda dense: load_source(rewritten(dense, "adapter_config.json", b"{}")),
        "dense holds an adapter that is not merged into the weights, as adapter_config.json: load it with peft, call "
        "merge_and_unload(), and save that model.",
    ),
    (
        "a file of something else",
        lambda: load_source(written("test_vit.pth", b"hello, world")),
        "The weights of test_vit.pth cannot be loaded (…). Download or copy them again.",
    ),
    (
        "a file with another suffix",
        lambda: load_source(written("test_vit.onnx")),
        "test_vit.onnx is not a weights file: expected one of .safetensors, .pth, .pt, .ckpt, .bin, .tar.",
    ),
    (
        "a head's norm that belongs to no pretraining",
        lambda: load_source(
            write_weights(
                Path("test_vit.pth"), {**make_vit(num_classes=0).state_dict(), "head.norm.weight": torch.ones(4)}
            )
        ),
        "The weights of test_vit.pth do not fit: they have the unknown key 'head.norm.weight'.",
    ),
    (
        "a file in transformers' naming",
        lambda: load_source(
            write_weights(Path("test_vit.bin"), {"vit.embeddings.patch_embeddings.projection.bias": torch.ones(4)})
        ),
        "test_vit.bin is in transformers' naming: name the folder that holds it with its config.json instead.",
    ),
    (
        "weights that are not finite",
        convert_infinite,
        "The weights of test_vit hold values that are not finite, the first of them under "
        "'blocks.1.mlp.fc2.weight': take a checkpoint from before they were spoilt.",
    ),
    (
        "a dense source that is gone",
        lose_the_source,
        "The dense source …/dense cannot be loaded: bring it back, or leave the comparison out. There is no "
        "folder or file …/dense. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "an id that is none",
        lambda: load_source("hf-hub:with space/name"),
        "hf-hub:with space/name: the repository id is not valid; give namespace/name of letters, digits, "
        "'-', '_' and '.', as in me/deit_tiny-tosa.",
    ),
    (
        "no id",
        lambda: load_source("hf-hub:"),
        "The name of the model is empty: name a timm model such as deit_tiny, a folder or a Hub id.",
    ),
]
"""What is no dense model."""

TRANSFORMERS: list[Row] = [
    (
        "a part of the weights that lacks",
        lambda: load_source(split_theirs()),
        "theirs lacks model-00002-of-….safetensors, which model.safetensors.index.json names. Download it again.",
    ),
    (
        "no weights in transformers' format",
        lambda: load_source(without(Path(transformers_folder()), "model.safetensors")),
        "theirs has no weights: expected model.safetensors or pytorch_model.bin.",
    ),
    (
        "a projection that lacks",
        lambda: load_source(
            transformers_folder(lambda state: state.pop("encoder.layer.1.attention.attention.key.weight"))
        ),
        "The weights of theirs do not fit: they lack the key "
        "'encoder.layer.1.attention.attention.{query,key,value}.weight'.",
    ),
    (
        "a tensor too many",
        lambda: load_source(transformers_folder(lambda state: state.update(surplus=torch.ones(1)))),
        "The weights of theirs do not fit: they have the unknown key 'surplus'.",
    ),
    (
        "a tensor of another shape",
        lambda: load_source(transformers_folder(lambda state: state.update({"layernorm.weight": torch.ones(7)}))),
        "The weights of theirs do not fit its configuration: layernorm.weight has shape [7], expected [48].",
    ),
    (
        "weights of theirs that are cut short",
        lambda: load_source(str(cut(Path(transformers_folder()) / "model.safetensors").parent)),
        "The weights of theirs are broken or cut short (…). Download or copy them again.",
    ),
    (
        "a text model",
        lambda: load_source(described(model_type="bert")),
        "theirs is a transformers model of type 'bert', which cannot be converted. Types that can: vit, "
        "vit_mae, deit, dinov2, dinov2_with_registers, clip, clip_vision_model, siglip, siglip_vision_model. "
        "If timm has the model, name it as timm does.",
    ),
    (
        "a rotary embedding of its own",
        lambda: load_source(described(model_type="dinov3_vit")),
        "theirs is a transformers model of type 'dinov3_vit', which cannot be converted: its rotary position "
        "embedding is not read from this format. Types that can: vit, vit_mae, deit, dinov2, "
        "dinov2_with_registers, clip, clip_vision_model, siglip, siglip_vision_model. If timm has the model, "
        "name it as timm does.",
    ),
    (
        "a bias of positions",
        lambda: load_source(described(model_type="beit")),
        "theirs is a transformers model of type 'beit', which cannot be converted: its relative position "
        "bias is not read from this format. Types that can: vit, vit_mae, deit, dinov2, "
        "dinov2_with_registers, clip, clip_vision_model, siglip, siglip_vision_model. If timm has the model, "
        "name it as timm does.",
    ),
    (
        "images of any shape",
        lambda: load_source(described(model_type="siglip2")),
        "theirs is a transformers model of type 'siglip2', which cannot be converted: it takes images of any "
        "shape as lists of patches (NaFlex). Types that can: vit, vit_mae, deit, dinov2, "
        "dinov2_with_registers, clip, clip_vision_model, siglip, siglip_vision_model. If timm has the model, "
        "name it as timm does.",
    ),
    (
        "an activation that timm lacks",
        lambda: load_source(described(model_type="vit", hidden_act="mish")),
        "theirs cannot be converted: no timm ViT expresses hidden_act = 'mish' of its config.json. Convert it as a "
        "whole, with `tosa convert theirs --whole`.",
    ),
    (
        "another kind of positions",
        lambda: load_source(described(model_type="vit", position_embedding_type="relative")),
        "theirs cannot be converted: no timm ViT expresses position_embedding_type = 'relative' of its config.json.",
    ),
    (
        "heads that do not divide",
        lambda: load_source(described(model_type="vit", num_attention_heads=7)),
        "theirs cannot be converted: no timm ViT expresses num_attention_heads = 7 of its config.json.",
    ),
    (
        "a width that is a text",
        lambda: load_source(described(**{**published("google/vit-base-patch16-224"), "hidden_size": "many"})),
        "config.json of theirs has a value of the wrong shape (TypeError: …): correct it, or download it again.",
    ),
    (
        "no heads",
        lambda: load_source(described(**{**published("google/vit-base-patch16-224"), "num_attention_heads": 0})),
        "config.json of theirs has a value of the wrong shape (ZeroDivisionError: …): correct it, or download it "
        "again.",
    ),
    (
        "an image size without width",
        lambda: load_source(described(**{**published("google/vit-base-patch16-224"), "image_size": {"height": 224}})),
        "config.json of theirs has a value of the wrong shape (TypeError: …): correct it, or download it again.",
    ),
    (
        "class numbers that are none",
        lambda: load_source(described(**{**published("google/vit-base-patch16-224"), "id2label": {"a": "b"}})),
        "config.json of theirs has a value of the wrong shape (ValueError: …): correct it, or download it again.",
    ),
    (
        "class numbers from 1",
        lambda: load_source(
            described(**{**published("google/vit-base-patch16-224"), "id2label": {"1": "owl", "2": "cat"}})
        ),
        "config.json of theirs has a value of the wrong shape (ValueError: id2label does not number the "
        "classes from 0): correct it, or download it again.",
    ),
    (
        "architectures that are a number",
        lambda: load_source(described(**{**published("google/vit-base-patch16-224"), "architectures": 5})),
        "config.json of theirs has a value of the wrong shape (TypeError: …): correct it, or download it again.",
    ),
    (
        "a head that timm does not have",
        lambda: load_source(with_two_classes()),
        "theirs cannot be converted with its head: its head reads the class token and the mean of the patch "
        "tokens side by side, as no timm model does. Pass --num-classes 0 to convert it without, or the "
        "number of classes of a new one.",
    ),
    (
        "a filter that is none",
        lambda: image_settings_of({**SQUARE, **{"resample": 17}}),
        "The image processor's configuration of it cannot be used (IndexError: …): correct it, or download it again.",
    ),
    (
        "a size without height",
        lambda: image_settings_of({**SQUARE, **{"size": {"width": 5}}}),
        "The image processor's configuration of it cannot be used (KeyError: …): correct it, or download it again.",
    ),
    (
        "two means",
        lambda: image_settings_of({**SQUARE, **{"image_mean": [0.5, 0.5]}}),
        "The image processor's configuration of it cannot be used (ValueError: 2 values for 3 channels): correct it, "
        "or download it again.",
    ),
    (
        "a deviation that is a text",
        lambda: image_settings_of({**SQUARE, **{"image_std": "half"}}),
        "The image processor's configuration of it cannot be used (ValueError: …): correct it, or download it again.",
    ),
    (
        "a factor of 0",
        lambda: image_settings_of({**SQUARE, **{"rescale_factor": 0}}),
        "The image processor's configuration of it cannot be used (ZeroDivisionError: …): correct it, or download it "
        "again.",
    ),
]
"""Folders in transformers' format."""


@table(SOURCES + TRANSFORMERS)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
