"""What is said of whole models of transformers: their files, and the images that they are given; a long table."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.model.whole_models import BACKBONE
from tosa_cli.config import Method, TosaConfig
from tosa_cli.data.processed import ProcessedPhotos, norm_of
from tosa_cli.fit.whole import choose_run_rates
from tosa_cli.hub.architectures import plan_model
from tosa_cli.hub.whole import load_whole, save_whole
from tosa_cli.measure.agreement import compare_outputs
from tosa_cli.workflow.whole import convert_whole

from .rows import Row, check, table

KEY = "dinov2.encoder.layer.1.mlp.fc1.weight"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`theirs`, a classifier with a processor, and `whole`, which is converted from it."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**BACKBONE)).save_pretrained(folder / "theirs")
    transformers.BitImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False).save_pretrained(
        folder / "theirs"
    )
    whole = load_whole(str(folder / "theirs"))
    convert_whole(whole.model, TosaConfig(layers=(2, 3), keep_rate=0.6, selector="ward", bypass="mean"))
    save_whole(whole, folder / "whole")
    return folder


@pytest.fixture
def theirs(made: Path, place: Path) -> Path:
    return Path(shutil.copytree(made / "theirs", place / "theirs")).relative_to(place)


@pytest.fixture
def whole(made: Path, place: Path) -> Path:
    return Path(shutil.copytree(made / "whole", place / "whole")).relative_to(place)


def load_with(folder: Path, change: Callable[[State], State]) -> Any:
    """Load a model whose weights were changed."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return load_whole(str(folder))


def load_sets(folder: Path, *names: str) -> Any:
    """Load a model whose weights are there several times."""
    file = folder / "model.safetensors"
    torch.save({name: load_file(file) for name in names}, folder / "pytorch_model.bin")
    file.unlink()
    return load_whole(str(folder))


def load_saying(folder: Path, key: str, value: Any) -> Any:
    """Load a model whose config.json says something else."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    return load_whole(str(folder))


def cut(file: Path) -> Any:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return load_whole(str(file.parent))


def spoilt(state: State) -> State:
    state[KEY][0, 0] = float("nan")
    return state


class Nowhere(nn.Module):
    """A model whose output is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float("nan")))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": pixel_values.mean((2, 3)) * self.scale}


def read(folder: Path, *images: Any) -> Any:
    photos = folder / "photos"
    photos.mkdir()
    for number, image in enumerate(images):
        if isinstance(image, bytes):
            (photos / f"{number}.png").write_bytes(image)
        else:
            image.save(photos / f"{number}.tiff")
    return list(ProcessedPhotos("theirs/photos", load_whole("theirs").processor))


def prepares(folder: Path, **settings: Any) -> Any:
    """The processor of a model, some of whose settings are others."""
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return load_whole(str(folder)).processor


WEIGHTS: list[Row] = [
    (
        "weights that are not finite",
        lambda theirs: load_with(theirs, spoilt),
        f"The weights of theirs hold values that are not finite, the first of them under '{KEY}': take a checkpoint "
        f"from before they were spoilt.",
    ),
    (
        "weights of a converted model that are not finite",
        lambda whole: load_with(whole, spoilt),
        f"The weights of whole hold values that are not finite, the first of them under '{KEY}': take a checkpoint "
        f"from before they were spoilt.",
    ),
    (
        "weights that are whole numbers",
        lambda theirs: load_with(theirs, lambda state: {key: value.to(torch.int8) for key, value in state.items()}),
        "The weights of theirs are not floating-point: 'classifier.bias' is of type int8. Take the model from before "
        "it was quantized or cast.",
    ),
    (
        "a weight that is missing",
        lambda theirs: load_with(theirs, lambda state: {key: value for key, value in state.items() if key != KEY}),
        f"The weights of theirs lack 1 that Dinov2ForImageClassification has, the first '{KEY}': take a whole "
        f"checkpoint of this model.",
    ),
    (
        "keys that begin with something else",
        lambda theirs: load_with(theirs, lambda _: {f"net.{number}": torch.ones(1) for number in range(3)}),
        "The weights of theirs lack … that Dinov2ForImageClassification has, the first 'classifier.bias', and keys "
        "that it does not have begin with 'net.': take a whole checkpoint of this model.",
    ),
    (
        "a weight that is missing where all names have something before them",
        lambda theirs: load_with(
            theirs, lambda state: {f"net.{key}": value for key, value in state.items() if key != KEY}
        ),
        f"The weights of theirs lack 1 that Dinov2ForImageClassification has, the first '{KEY}': take a whole "
        f"checkpoint of this model.",
    ),
    (
        "biases that config.json leaves out",
        lambda theirs: load_saying(theirs, "qkv_bias", False),
        "The weights of theirs have 'dinov2.encoder.layer.0.attention.k_proj.bias', but its config.json leaves it out "
        "of Dinov2ForImageClassification: take the config.json that belongs to them.",
    ),
    (
        "an adapter",
        lambda theirs: load_with(theirs, lambda state: {**state, "dinov2.x.lora_A.mine.weight": torch.ones(1)}),
        "theirs holds an adapter that is not merged into the weights, as 'dinov2.x.lora_A.mine.weight': load it with "
        "peft, call merge_and_unload(), and save that model.",
    ),
    (
        "weights under a name that is not read",
        lambda theirs: (theirs / "model.safetensors").rename(theirs / "last.ckpt") and load_whole(str(theirs)),
        "theirs has no model.safetensors or pytorch_model.bin, but last.ckpt: if that is the model, call it "
        "pytorch_model.bin.",
    ),
    (
        "several sets of weights",
        lambda theirs: load_sets(theirs, "model", "ema"),
        "The weights of theirs are several, 'model' and 'ema': save those that are meant by save_pretrained().",
    ),
    (
        "a weight of another shape",
        lambda theirs: load_with(theirs, lambda state: {**state, KEY: state[KEY][:5].contiguous()}),
        f"The weights of theirs do not fit its config.json: {KEY} has shape [5, 32], expected [128, 32].",
    ),
    (
        "a key of a converted model that is not known",
        lambda whole: load_with(whole, lambda state: {**state, "mine": torch.zeros(1)}),
        "The weights of whole do not fit: they have the unknown key 'mine'.",
    ),
    (
        "a file that is cut short",
        lambda theirs: cut(theirs / "model.safetensors"),
        "The weights of theirs are broken or cut short (…). Download or copy them again.",
    ),
]
"""Where the weights are not those of the model."""

CONFIGS: list[Row] = [
    (
        "a class that is none",
        lambda theirs: load_saying(theirs, "architectures", ["pipeline"]),
        "The config.json of theirs names the class pipeline, which is no model of the installed transformers …: update "
        "transformers.",
    ),
    (
        "no class",
        lambda theirs: load_saying(theirs, "architectures", None),
        "The config.json of theirs does not say of which class the model is: name it under 'architectures', as in "
        '"architectures": ["DepthAnythingForDepthEstimation"].',
    ),
    (
        "a value of another type",
        lambda theirs: load_saying(theirs, "patch_size", "wide"),
        "theirs was not read by transformers (…): correct it, or update transformers.",
    ),
    (
        "a number below 0",
        lambda theirs: load_saying(theirs, "backbone_config", {"num_attention_heads": -1}),
        "theirs/config.json cannot be used: num_attention_heads is -1. Write the number there that the model was made "
        "with, or take the model from its source again.",
    ),
    (
        "a number that is none",
        lambda theirs: load_saying(theirs, "hidden_dropout_prob", float("nan")),
        "theirs/config.json cannot be used: hidden_dropout_prob is nan. Write the number there that the model was made "
        "with, or take the model from its source again.",
    ),
    (
        "a quantized model",
        lambda theirs: load_saying(theirs, "quantization_config", {"quant_method": "bitsandbytes"}),
        "theirs is quantized, and quantized layers are not converted: take the model from before it was quantized.",
    ),
    (
        "a model of which no encoder is taken",
        lambda: plan_model({"model_type": "depth_anything", "architectures": ["DepthAnything"]}, "theirs"),
        "theirs is a transformers model of type 'depth_anything', of which no encoder is taken alone: convert the "
        "whole, with `tosa convert theirs --preset calibrated --data-dir PHOTOS`.",
    ),
]
"""Where config.json cannot be used."""

IMAGES: list[Row] = [
    (
        "files that are no images",
        lambda theirs: read(theirs, b"nothing"),
        "No image of theirs/photos can be used, the first of them theirs/photos/0.png (it is not an image, or broken).",
    ),
    (
        "floating-point values, whose range is not known",
        lambda theirs: read(theirs, Image.fromarray(np.full((8, 8), 0.5, np.float32))),
        "No image of theirs/photos can be used, the first of them theirs/photos/0.tiff (its values are floating-point, "
        "from 0.5 to 0.5, whose range is not known).",
    ),
    (
        "an output that is no number",
        lambda: compare_outputs(Nowhere(), Nowhere(), [{"pixel_values": torch.ones(1, 3, 8, 8)}]),
        "The output logits holds values that are no finite numbers, so nothing can be said of it: take other images, "
        "or a model from before its weights were spoilt.",
    ),
    (
        "images that are too small for one patch",
        lambda theirs: compare_outputs(None, load_whole("theirs").model, [{"pixel_values": torch.ones(1, 3, 5, 5)}]),
        "Dinov2ForImageClassification was not run on what it was given, of the shape 1x3x5x5 (…). Give it batches that "
        "it takes; of photos it is its processor that makes them.",
    ),
    (
        "a processor by which pixels are not finite",
        lambda theirs: (prepares(theirs, image_std=[0.0] * 3), read(theirs, Image.new("RGB", (70, 60)))),
        "No image of theirs/photos can be used, the first of them theirs/photos/0.tiff (…).",
    ),
    (
        "a processor without a deviation, in training",
        lambda theirs: norm_of(prepares(theirs, image_std=[0.0] * 3)),
        "The processor of images has the image_std (0.0, 0.0, 0.0), by which nothing can be normalised: it is one "
        "finite number a channel, and as a deviation not 0.",
    ),
    (
        "a processor that is no object",
        lambda theirs: (theirs / "preprocessor_config.json").write_text("[]") and load_whole("theirs"),
        "theirs/preprocessor_config.json should hold a JSON object, but holds a list.",
    ),
    (
        "a processor of no name",
        lambda theirs: prepares(theirs, image_processor_type=5),
        "theirs/preprocessor_config.json was not read by transformers (AttributeError: …): correct it, or update "
        "transformers.",
    ),
    (
        "tokens that are not finite while rates are sought",
        lambda theirs: choose_run_rates(
            load_whole("theirs").model,
            [torch.full((2, 3, 56, 56), 1e38)],
            Method(selector="ward", bypass="mean"),
            target_reduction=0.1,
        ),
        "The final tokens of some images are no finite numbers, so nothing can be measured by them: check how images "
        "are prepared, and the weights.",
    ),
]
"""Where images, or what a model makes of them, cannot be used."""


@table(WEIGHTS)
def test_weights_are_refused(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)


@table(CONFIGS)
def test_a_config_is_refused(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)


@table(IMAGES)
def test_images_are_refused(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)


def test_images_of_sixteen_bits_are_scaled_and_odd_ones_left_out(theirs: Path) -> None:
    grey = Image.fromarray(np.full((60, 70), 32768, np.uint16))
    (batch,) = read(theirs, grey, Image.fromarray(np.full((60, 70), 0.5, np.float32)))
    (same,) = (load_whole("theirs").processor(images=[Image.new("RGB", (70, 60), (128,) * 3)], return_tensors="pt"),)
    torch.testing.assert_close(batch["pixel_values"], same["pixel_values"])
