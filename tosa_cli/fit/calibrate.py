"""Fits what has a closed form: bypasses, layer by layer on the converted stream, and probes. No labels are read."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tosa_cli.data.loading import Images
from tosa_cli.errors import TrainingError
from tosa_cli.fit.calibration import Calibration, KeptTokens
from tosa_cli.fit.candidates import (
    Partners,
    apply_bypass,
    bypass_errors,
    candidate_features,
    candidate_partners,
    skipped_features,
)
from tosa_cli.methods import SELECTORS
from tosa_cli.model.bypasses import Bypass
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import attention_input
from tosa_cli.model.regression import Sums
from tosa_cli.model.selection import gather_tokens, scatter_tokens
from tosa_cli.model.selectors import Selector
from tosa_cli.model.stream import Stream, run_all
from tosa_cli.model.tosa_layers import TosaLayers
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Progress
from tosa_cli.seeding import seed_step


@dataclass
class CalibrationReport:
    """What a calibration did.

    Attributes:
        images: Images that were read, in all processes.
        seconds: Time it took.
        errors: Of each ToSA layer, the error of the fitted bypass on the images it was fitted on: norm of the
            difference from the layer's true update, as a share of the norm of that update.
        failed: Images that could not be read, with the reason.
        updates: Optimizer steps of a selector that is trained, where it was trained as well.
        loss: Mean loss of the last epoch of these.
    """

    images: int = 0
    seconds: float = 0.0
    errors: dict[int, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    updates: int = 0
    loss: float | None = None


def calibrate(
    accelerator: Accelerator,
    model: TosaViT,
    images: Images,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Fit the bypasses of a model in place, and its selectors before them where they are fitted.

    Args:
        accelerator: From `make_accelerator`.
        model: The ToSA model; its backbone is not changed.
        images: Calibration images, in order and not augmented. Every process reads all, and computes its share.
        strict: Stop at an image that cannot be read.
        progress: Told about the advance.

    Raises:
        DataError: If no image can be read, or one cannot and `strict` is set.
        TrainingError: If a fit is not finite.
    """
    report = CalibrationReport()
    if not model.config.is_fitted:
        return report
    started = time.perf_counter()
    with Calibration(accelerator, model, images, strict, progress) as run:
        report.errors = fit(run)
        report.images = run.num_images
        report.failed = list(images.failed)
    report.seconds = time.perf_counter() - started
    return report


def fit(run: KeptTokens) -> dict[int, float]:
    """Fit what a conversion fits: the selectors, where they are fitted, and then the bypasses.

    Returns:
        Of each ToSA layer, the error of its bypass, as in `CalibrationReport`.
    """
    model = run.model
    fits_selectors = SELECTORS[model.config.selector].is_fitted
    passes = len(model.keep_rates) + 1 + fits_selectors * (1 + has_parameters(model))
    run.progress.start(run.num_batches * passes, 0)
    if fits_selectors:
        fit_candidates(run)
        fit_selectors(run)
    return fit_bypasses(run)


def has_parameters(model: TosaLayers) -> bool:
    """Whether the bypass of a model has something to fit."""
    return next(model.bypasses.parameters(), None) is not None


@torch.no_grad()
def fit_candidates(run: KeptTokens) -> None:
    """Fit every bypass on the dense model's tokens, each patch matched with those around it.

    What comes out tells how wrong the bypass is about any token, before it is known which ones are skipped. A bypass
    without parameters needs no look at the images.
    """
    model = run.model
    if not has_parameters(model):
        return

    def sums(layer: int, tokens: Tensor, updates: Tensor, partners: list[Partners]) -> Sums:
        return bypass_sums(model, layer, *candidate_features(model, layer, tokens, updates, partners))

    for layer, total in run.sum_up(_dense_pass(run, sums)).items():
        solve_(model.bypass(layer), layer, total)


@torch.no_grad()
def fit_selectors(run: KeptTokens) -> None:
    """Fit every selector to the errors of the bypass, on the dense model's tokens."""
    model = run.model

    def sums(layer: int, tokens: Tensor, updates: Tensor, partners: list[Partners]) -> Sums:
        if model.choosing_layers[layer] != layer:
            return {}
        errors = bypass_errors(model, layer, tokens, updates, partners)
        inputs = attention_input(model.blocks[layer - 1], tokens)[:, model.num_prefix_tokens :]
        return model.selector(layer).sums(inputs, errors)

    for layer, total in run.sum_up(_dense_pass(run, sums)).items():
        if total:
            solve_(model.selector(layer), layer, total)


def _dense_pass(
    run: KeptTokens, sums: Callable[[int, Tensor, Tensor, list[Partners]], Sums]
) -> Iterator[dict[Any, Sums]]:
    """Sums of each ToSA layer on the dense model's tokens, batch by batch.

    Args:
        run: The calibration.
        sums: Makes them from the layer, the tokens (B, N, D) that enter it, what it adds to them, (B, N, D), and the
            partners of every patch.
    """
    model = run.model
    for _, tokens in run.read():
        found, stream = {}, Stream(tokens, run.places)
        for layer in model.dense_layers(stream):
            if layer in model.keep_rates:
                if model.choosing_layers[layer] == layer:
                    partners = candidate_partners(model, layer, tokens, run.places.grid)
                found[layer] = sums(layer, tokens, stream.tokens - tokens, partners)
            tokens = run.places.entering(layer + 1, stream.tokens)
        yield found


@torch.no_grad()
def fit_bypasses(run: KeptTokens) -> dict[int, float]:
    """Fit the bypasses one after the other, each on what reaches its layer once those before it are fitted.

    Returns:
        Error of each, as a share of the norm of the true updates.
    """
    model = run.model
    errors: dict[int, float] = {}
    before: int | None = None
    for layer in [*model.keep_rates, None]:
        total = run.sum_up(_layer_pass(run, before, layer))
        if before is not None:
            error = total["error"]
            errors[before] = (error["wrong"] / error["all"].clamp_min(1e-30)).sqrt().item()
        if layer is not None:
            solve_(model.bypass(layer), layer, total.get(layer, {}))
        before = layer
    return errors


def _layer_pass(run: KeptTokens, before: int | None, layer: int | None) -> Iterator[dict[Any, Sums]]:
    """Update the tokens that `before` skipped, bring all to `layer`, and sum up what its bypass reads.

    Args:
        run: The calibration.
        before: The ToSA layer that was fitted last; None at the start.
        layer: The next one; None at the end.
    """
    model = run.model
    first: Iterator[tuple[int, dict[str, Tensor]]] = ((number, {"tokens": tokens}) for number, tokens in run.read())
    for number, kept in first if before is None else run.kept():
        tokens = kept["tokens"]
        sums: dict[Any, Sums] = {}
        if before is not None:
            made = apply_bypass(model, before, kept["inputs"], kept.get("updates"))
            wrong = (made - kept["truth"]).double().square().sum()
            sums["error"] = {"wrong": wrong.cpu(), "all": kept["truth"].double().square().sum().cpu()}
            tokens = scatter_tokens(tokens, kept["skip"], gather_tokens(tokens, kept["skip"]) + made)
        if layer is not None:
            stream = Stream(tokens, run.places, before or 0)
            run_all(model.layers(stream, layer - 1))
            model.approach(layer, stream)
            if model.choosing_layers[layer] == layer:
                seed_step(0, layer, number, 0)  # for the selector `random`
                choice = model.choose(layer, stream)
            else:
                choice = Choice(kept["keep"], kept["skip"], kept.get("partners"), kept.get("weights"))
            after, values = skipped_features(model, layer, stream.tokens, choice, run.places)
            sums[layer] = bypass_sums(model, layer, values["inputs"], values.get("updates"), values["truth"])
            values["tokens"] = after
            if not model.ends_span(layer):  # the next layer shares the choice
                values["keep"] = choice.keep_indices
                if choice.partners is not None and choice.weights is not None:
                    values |= {"partners": choice.partners, "weights": choice.weights}
            run.keep(number, values)
        yield sums


def bypass_sums(model: TosaLayers, layer: int, inputs: Tensor, updates: Tensor | None, truth: Tensor) -> Sums:
    """Sums that the bypass of a layer is solved from; none if it has nothing to fit, or no token is skipped."""
    if not truth.numel():
        return {}
    return {name: value.cpu() for name, value in model.bypass(layer).sums(inputs, updates, truth).items()}


def solve_(module: Bypass | Selector, layer: int, sums: Sums) -> None:
    """Solve for the parameters of a bypass or selector, and put the solution in; without sums it stays as it is.

    Raises:
        TrainingError: If it is not finite.
    """
    for name, value in (module.solve(sums) if sums else {}).items():
        if not torch.isfinite(value).all():
            raise TrainingError(
                f"The fit of layer {layer} is not finite: its tokens are not, or there are too few images. Use more "
                f"images, or check the model."
            )
        getattr(module, name).copy_(value)
