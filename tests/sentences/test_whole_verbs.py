"""What is said where a command or a function does not fit a whole model of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tosa_cli
from tests.model.whole_models import depth_anything, eomt, vitpose, yolos
from tosa_cli.cli import whole as cli
from tosa_cli.cli.timing import Setup
from tosa_cli.config import Method, TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.processed import prepare
from tosa_cli.hub.whole import load_whole, save_whole
from tosa_cli.measure.agreement import chief_figure
from tosa_cli.model.runs import converted_runs, find_runs
from tosa_cli.model.runs.flops import count_whole, solve_run_rate
from tosa_cli.model.runs.insert import dense_copy
from tosa_cli.peers.smaller_whole import make_smaller
from tosa_cli.peers.whole import build_whole_peers
from tosa_cli.progress import Nobody
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.whole import feature_layers
from tosa_cli.workflow import whole_finetune, whole_folder
from tosa_cli.workflow.whole_inspect import inspect_whole

from .rows import Row, check, table

GROUPED = TosaConfig(layers=(2, 3), keep_rate=0.6, selector="ward", bypass="mean")
BATCH = torch.zeros(1, 3, 56, 56)
FEATURES = FinetuneConfig(objective="features", data_dir="photos")


@pytest.fixture
def folder(place: Path) -> Path:
    """A converted model without a processor."""
    depth_anything().save_pretrained("theirs")
    found = load_whole("theirs")
    tosa_cli.convert(found.model, GROUPED)
    save_whole(found, Path("whole"))
    return Path("whole")


def eager() -> Any:
    model: Any = depth_anything()
    model.set_attn_implementation("eager")
    return model


class Reads(nn.Module):
    """A model that sends no image through its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tosa_cli.convert(depth_anything(), TosaConfig(layers=(2,)))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return text


def counted(config: TosaConfig) -> tuple[Any, Any]:
    model = tosa_cli.convert(depth_anything(), config)
    return model, count_whole(model)


def one_size() -> tuple[Any, Any, Any]:
    model = tosa_cli.convert(vitpose(), GROUPED)
    dense, run = dense_copy(model), converted_runs(model)[0].run
    assert run is not None
    return dense, find_runs(dense)[0], run.patch_embed


def setup(**settings: Any) -> Setup:
    device = torch.device("cpu")
    return Setup("whole", 1, device=device, dtype=torch.float32, compile=False, rounds=1, json=False, **settings)


def finetuned(folder: Path) -> Any:
    found = load_whole(str(folder))
    found.provenance = found.provenance.after("finetuned", {})
    save_whole(found, folder, overwrite=True)
    return whole_finetune.finetune(str(folder), FEATURES, listener=Nobody())


NO_PROCESSOR = (
    "The model has no processor of images beside it, so photos cannot be prepared for it: save it there with "
    "processor.save_pretrained(FOLDER), or call tosa_cli from Python on your own batches."
)


def reduced(target: float) -> float:
    """The keep rate of two of four layers for a share of the MACs of all."""
    run: Any = converted_runs(tosa_cli.convert(depth_anything(), GROUPED))[0].run
    return solve_run_rate(run, Method(selector="random"), (2, 3), target)


ROWS: list[Row] = [
    (
        "more than layers of a whole model save",
        lambda: reduced(0.9),
        "The target reduction 90.0% cannot be reached: with layers 2,3 at most …% is saved. Name more layers.",
    ),
    (
        "all MACs of a whole model",
        lambda: reduced(1.0),
        "The target reduction is 1.0, but must be between 0 and 1, as in 0.25.",
    ),
    (
        "neither target nor wish",
        lambda: tosa_cli.choose_rates(depth_anything(), [BATCH]),
        "Keep rates are found for a target_reduction, as 0.25, a min_cosine, as 0.99, or a max_drop, as 1.0: pass one.",
    ),
    (
        "nothing to hold out",
        lambda: tosa_cli.choose_rates(depth_anything(), [BATCH], min_cosine=0.9),
        "What is to hold is measured on batches that are held out, but there is one batch: pass smaller ones, or more.",
    ),
    (
        "an output of which nothing is known",
        lambda: chief_figure({"score": {"difference": torch.zeros(2)}}),
        "Of the model's 'score' no share is known that agrees with the dense model's, so no drop can be held: hold the "
        "encoder's tokens with min_cosine.",
    ),
    (
        "a drop that holds nowhere",
        lambda: tosa_cli.choose_rates(yolos(), [torch.randn(2, 3, 56, 70)] * 2, max_drop=1e-9),
        "A drop of 1e-09 points is not held on 2 held-out images even where 1% of the MACs are saved: there "
        "matched_iou of pred_boxes is … %, and 100.00 % dense. Allow more with --max-drop, or hold out more images.",
    ),
    (
        "labels of a whole model",
        lambda folder: whole_folder.convert(
            ConvertConfig(source="theirs", layers="auto", selector="ward", bypass="mean", max_drop=1, class_map="a.txt")
        ),
        "A whole model is measured without labels: leave out --class-map.",
    ),
    (
        "what the processor of a whole model does",
        lambda folder: whole_folder.convert(ConvertConfig(source="theirs", layers=(2,), mean=0.5, interpolation="box")),
        "The images of a whole model are prepared by its own processor: leave out --mean and --interpolation.",
    ),
    (
        "a data set of a whole model",
        lambda folder: whole_folder.convert(
            ConvertConfig(
                source="theirs", layers="auto", selector="ward", bypass="mean", target_reduction=0.1, dataset="hfds/a"
            )
        ),
        "A whole model is measured on a folder of photos: leave out --dataset.",
    ),
    (
        "a layer behind the queries",
        lambda: tosa_cli.convert(eomt(), TosaConfig(layers=(5,), selector="ward", bypass="mean")),
        "Layer 5 of layers cannot select tokens, as queries enter behind layer 4.",
    ),
    (
        "maps of an attention that is not fused",
        lambda: tosa_cli.convert(eager(), TosaConfig(layers=(2,))),
        "Dinov2Layer ran without PyTorch's fused attention, so its logits cannot be read. Load the model with "
        "attn_implementation='sdpa'.",
    ),
    (
        "a selector trained on a text",
        lambda: tosa_cli.calibrate(Reads(), [torch.zeros(1, 4)]),
        "The batch sends no image through the encoder: pass what the model is called with.",
    ),
    (
        "peers of a model that saves nothing",
        lambda: build_whole_peers(*counted(TosaConfig(layers=(2,), keep_rate=1.0, selector="random"))),
        "Peers are compared at the model's reduction of MACs, but that is 0.0% of its layers: convert with a smaller "
        "--keep-rate.",
    ),
    (
        "a smaller input for a model of one size",
        lambda: make_smaller(*one_size(), 0.1),
        "VitPoseForPoseEstimation takes images of its own size alone (…).",
    ),
    (
        "another size to time at",
        lambda: setup(img_size=(70, 70)).load_whole(),
        "A whole model is timed at its own image size: leave out --img-size and --img-sizes.",
    ),
    (
        "labels for a whole model",
        lambda folder: whole_finetune.finetune(str(folder), FinetuneConfig(), listener=Nobody()),
        "A whole model learns to be its dense self again, without labels: pass --objective features.",
    ),
    (
        "finetuned twice",
        finetuned,
        "whole was finetuned already, so its own dense weights are not its source's: finetune the model as it was "
        "converted, with more --epochs.",
    ),
    (
        "too many feature layers",
        lambda: feature_layers(converted_runs(tosa_cli.convert(depth_anything(), GROUPED))[0], 4),
        "--feature-layers must be below 4, as the encoder has so many layers and the last is matched anyway; not 4.",
    ),
    (
        "no processor to finetune with",
        lambda folder: whole_finetune.finetune(str(folder), FEATURES, listener=Nobody()),
        NO_PROCESSOR,
    ),
    ("no processor to draw with", lambda: prepare(Path("cat.jpg"), None), NO_PROCESSOR),
    (
        "texts for a model that reads none",
        lambda folder: whole_folder.evaluate(str(folder), "", None, Nobody(), ["a cat"]),
        NO_PROCESSOR,
    ),
    (
        "inspected again",
        lambda folder: inspect_whole(str(folder)),
        "whole is a whole model that is converted already: `tosa flops whole` tells what it saves.",
    ),
    (
        "options that inspect does not take",
        lambda: cli.check_given("inspect", {"selector": "ward", "img_size": None}),
        "`tosa inspect` of a whole model takes nothing but its name: leave out --selector.",
    ),
    (
        "options that export does not take",
        lambda: cli.check_given("export", {"outputs": ("logits",), "atol": 1e-3}, "atol"),
        "`tosa export` of a whole model takes --atol: leave out --outputs.",
    ),
]


@table(ROWS)
def test_a_refusal_says_what_to_do(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
