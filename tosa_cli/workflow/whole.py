"""Whole models: converted in place, whatever they are made of besides a run of blocks that is known."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from tosa_cli.config import CALIBRATED, Method, TosaConfig
from tosa_cli.fit.calibrate import CalibrationReport
from tosa_cli.fit.whole import choose_run_rates
from tosa_cli.hub.transformers_config import record_settings
from tosa_cli.hub.weights import check_finite
from tosa_cli.measure.agreement import AgreementReport, compare_outputs
from tosa_cli.model.families import class_of, is_supported_kind
from tosa_cli.model.runs import convert_runs
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.whole_distill import calibrate_on


def is_whole(model: nn.Module) -> bool:
    """Whether a model is converted as a whole: it is none of timm's, which become a `TosaViT`."""
    of_timm = type(model).__module__.partition(".")[0] == "timm" or hasattr(model, "pretrained_cfg")
    return not of_timm and not is_supported_kind(class_of(model))


def convert_whole(model: nn.Module, config: TosaConfig, example: Any = None) -> nn.Module:
    """Convert the encoder inside a model, in place, and check that with every token kept the model equals its source.

    Args:
        model: A model of transformers, or any module with a run of blocks that are known. Its weights are not changed.
        config: Where and how tokens are selected.
        example: A batch that the model takes: images (B, C, height, width), a tuple or a dictionary; None makes one of
            random images of the model's own size.

    Returns:
        The model. One of transformers has the settings in its config, and is saved with them.

    Raises:
        TosaError: If it cannot be converted; the subclass and the message say why. It is as it was then.
    """
    check_finite(model, type(model).__name__)
    convert_runs(model, config, example)
    record_settings(model)
    return model


def calibrate(model: nn.Module, batches: Iterable[Any], config: DistillConfig | None = None) -> list[CalibrationReport]:
    """Train and fit what a conversion leaves to do, in place; no labels are read, and nothing else is changed.

    A selector that is trained learns to predict the attention maps of the layers that select tokens, as the dense model
    has them (paper 2.2); if it comes out worse, a warning tells. Bypasses and probes are fitted in closed form. Where
    there is neither nothing is done.

    Args:
        model: A model that `convert` converted in place.
        batches: What it is called with: any iterable of tensors, tuples or dictionaries. A selector is trained by a
            step on each, in every epoch.
        config: Settings of that training, as `epochs` and `lr`; None takes the defaults. What they say of images is
            not read.

    Returns:
        A report of each encoder inside.

    Raises:
        TosaError: If the model is not converted, there is no batch, or the loss or a fit is not finite.
    """
    return calibrate_on(model, batches, config or DistillConfig())


def choose_rates(
    model: nn.Module,
    batches: Iterable[Any],
    target_reduction: float | None = None,
    method: Method | None = None,
    *,
    min_cosine: float | None = None,
    max_drop: float | None = None,
) -> TosaConfig:
    """Find keep rates by what they do to the whole encoder: for a share of the MACs to save, or for what is to hold.

    Args:
        model: A model that `convert` can convert in place; it is not changed.
        batches: What it is called with; a few tens of images are enough. Where something is to hold two of three
            batches are held out, and it holds on these.
        target_reduction: Share of the MACs of the encoder's layers to save, as 0.25.
        method: A method that puts tokens into groups; None takes that of the preset `calibrated`.
        min_cosine: Instead, the mean cosine to hold between the encoder's tokens and the dense model's, as 0.99.
        max_drop: Instead, how many percentage points of agreement with the dense model's outputs may be lost, as 1.0:
            of the figure that says most of them, such as `top1_agreement`, `delta1`, `keypoints_near`, `iou` or
            `cosine` (see `compare`).

    Returns:
        The settings, for `convert`.

    Raises:
        TosaError: If the model cannot be converted, there is no batch, as much cannot be saved, or what is asked for
            holds at no saving.
    """
    config, _ = choose_run_rates(
        model,
        batches,
        method or CALIBRATED,
        target_reduction=target_reduction,
        min_cosine=min_cosine,
        max_drop=max_drop,
    )
    return config


def compare(dense: nn.Module | None, tosa: nn.Module, batches: Iterable[Any]) -> AgreementReport:
    """Tell how near the outputs of a converted model are to the dense model's; no labels are read.

    Args:
        dense: The dense model; None takes the converted one with every token computed.
        tosa: The converted model.
        batches: What the models are called with: any iterable of tensors, tuples or dictionaries.

    Raises:
        TosaError: If there is no batch, or the models have no output in common.
    """
    return compare_outputs(dense, tosa, batches)
