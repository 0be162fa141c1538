"""Which layers to select tokens in, and how many in each, for a share of the MACs to save.

Each layer alone is converted at a few keep rates, and what that does to the final tokens is measured: its error curve.
Errors of several layers are taken to add up, which makes the best choice a sum of one term a layer under one bound on
the MACs. It is found by a Lagrange multiplier: at a price a MAC, each layer takes the keep rate at which error plus
price is least, and the price is raised until enough is saved.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.config import Method, TosaConfig
from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError
from tosa_cli.fit.calibrate import fit_candidates, fit_selectors
from tosa_cli.fit.calibration import Calibration
from tosa_cli.methods import SELECTORS
from tosa_cli.model.families import Backbone, eligible_layers, has_class_token
from tosa_cli.model.flops import count_flops, count_tosa_layer
from tosa_cli.model.regression import Sums
from tosa_cli.model.stream import Stream, run_all
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import NoProgress, Progress
from tosa_cli.seeding import seed_step

MEASURED_RATES = (0.85, 0.65, 0.45, 0.25)
RATE_STEP = 0.01


@dataclass(frozen=True)
class ErrorCurve:
    """What selecting tokens in one layer alone, or in one span of layers, does to the final tokens.

    Attributes:
        layers: The layer, from 1, or those of the span, which share one choice of tokens.
        keep_rates: Keep rates at which it was measured, falling.
        errors: 1 - cosine of final tokens to the dense model's, at each; mean of patch and class tokens.
    """

    layers: tuple[int, ...]
    keep_rates: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def name(self) -> str:
        """The layers as text: `3`, or `3-4`."""
        return "-".join(map(str, dict.fromkeys((self.layers[0], self.layers[-1]))))

    def at(self, keep_rate: float) -> float:
        """Error at any keep rate: between two measured ones the logarithm is interpolated; 0 at keep rate 1."""
        rates, errors = self.keep_rates, self.errors
        if keep_rate >= rates[0]:
            return errors[0] * ((1 - keep_rate) / (1 - rates[0])) ** 2
        for high, low, above, below in zip(rates, rates[1:], errors, errors[1:], strict=False):
            if keep_rate >= low:
                share = (high - keep_rate) / (high - low)
                return math.exp((1 - share) * math.log(above) + share * math.log(below))
        return math.inf

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def measure_curves(
    accelerator: Accelerator,
    backbone: Backbone,
    method: Method,
    images: Images,
    *,
    keep_rates: Sequence[float] = MEASURED_RATES,
    strict: bool = False,
    progress: Progress | None = None,
) -> list[ErrorCurve]:
    """Measure the error curve of every layer, or span of layers, in which tokens can be selected.

    Args:
        accelerator: From `make_accelerator`.
        backbone: The dense model; it is not changed.
        method: Selector, selection, bypass and span.
        images: Images in order and not augmented; a few tens are enough.
        keep_rates: Where to measure, falling.
        strict: Stop at an image that cannot be read.
        progress: Told about the advance.

    Raises:
        ConfigError: If the selector can select tokens in no layer, or says nothing before it is trained.
        DataError: If no image can be read, or one cannot and `strict` is set.
    """
    method.check_measurable()
    eligible = eligible_layers(backbone, method.selection, method.reads_maps)
    # A selector that reads maps needs a standard layer before its own: every other layer at a time.
    even, odd = (tuple(layer for layer in eligible if layer % 2 == rest) for rest in (0, 1))
    groups = [group for group in ((even, odd) if method.reads_maps else (eligible,)) if group]
    if not groups:
        raise ConfigError(f"The selector {method.selector!r} can select tokens in no layer of the model: take another.")
    models = [TosaViT(backbone, method.at(group, keep_rate=1.0)) for group in groups]
    fits = 1 + SELECTORS[method.selector].is_fitted if method.is_fitted else 0
    progress = progress or NoProgress()
    runs = [Calibration(accelerator, model, images, strict, progress) for model in models]
    progress.start(len(runs) * (fits + 1) * runs[0].num_batches, 0)
    curves = []
    for run in runs:
        if method.is_fitted:
            fit_candidates(run)
        if SELECTORS[method.selector].is_fitted:
            fit_selectors(run)
        for layers, total in run.sum_up(_error_pass(run, keep_rates)).items():
            errors = (total["errors"] / run.num_images).tolist()
            curves.append(ErrorCurve(layers, tuple(keep_rates), _rising(errors)))
    return sorted(curves, key=lambda curve: curve.layers)


def _spans(model: TosaViT) -> list[tuple[int, ...]]:
    """The ToSA layers of a model in groups that share one choice of tokens."""
    spans: dict[int, tuple[int, ...]] = {}
    for layer, choosing in model.choosing_layers.items():
        spans[choosing] = (*spans.get(choosing, ()), layer)
    return list(spans.values())


def _error_pass(run: Calibration, keep_rates: Sequence[float]) -> Iterator[dict[Any, Sums]]:
    """Errors of each span of layers, one a keep rate, summed over the images of a batch, batch by batch."""
    model = run.model
    for number, tokens in run.read():
        dense, stream = [tokens], Stream(tokens, run.places)
        for _ in model.dense_layers(stream):
            dense.append(stream.tokens)
        final = model.norm(dense[-1])
        sums: dict[Any, Sums] = {}
        for layers in _spans(model):
            first, errors = layers[0], []
            # A selector that reads maps reads those of the layer before.
            start = first - 2 if model.config.reads_maps else first - 1
            entering = Stream(dense[start], run.places, start)
            run_all(model.layers(entering, first - 1))
            for rate in keep_rates:
                model.keep_rates[first] = rate
                stream = copy.copy(entering)
                seed_step(0, first, number, 0)  # for the selector `random`
                run_all(model.layers(stream, layers[-1]))
                run_all(model.dense_layers(stream))
                errors.append(image_errors(model, final, model.norm(stream.tokens)).sum().item())
            sums[layers] = {"errors": torch.tensor(errors, dtype=torch.float64)}
        yield sums


def image_errors(model: TosaViT, dense: Tensor, tokens: Tensor) -> Tensor:
    """1 - cosine of final tokens (B, N, D) of each image to the dense model's, mean of patch and class tokens: (B,)."""
    cosine = F.cosine_similarity(dense.float(), tokens.float(), dim=-1)
    error = 1 - cosine[:, model.num_prefix_tokens :].mean(dim=1)
    if has_class_token(model.backbone):
        error = (error + 1 - cosine[:, 0]) / 2
    return error


def _rising(errors: list[float]) -> tuple[float, ...]:
    """The errors with what noise makes fall from one keep rate to the next lower one taken out; above 0."""
    rising: list[float] = []
    for error in errors:
        rising.append(max(error, 1e-9, *rising[-1:]))
    return tuple(rising)


@dataclass(frozen=True)
class _Option:
    """A keep rate for a layer or a span of layers, or none (1): what it saves in MACs, and its error."""

    keep_rate: float
    saved: int
    error: float


Options = dict[tuple[int, ...], list[_Option]]
"""What each layer, or span of layers, may choose from, in their order."""


def allocate(backbone: Backbone, method: Method, curves: Sequence[ErrorCurve], target_reduction: float) -> TosaConfig:
    """Choose layers and keep rates by their error curves.

    Args:
        backbone: The dense model.
        method: Selector, selection, bypass and span.
        curves: From `measure_curves`.
        target_reduction: Share of the dense MACs to save, selectors, matching and bypasses counted.

    Raises:
        ConfigError: If the share is not between 0 and 1, or cannot be saved within the measured keep rates.
    """
    if not 0 < target_reduction < 1:
        raise ConfigError(f"The target reduction is {target_reduction}, but must be between 0 and 1, as in 0.25.")
    dense_macs = count_flops(backbone).dense_gmacs * 1e9
    options = {curve.layers: _options(backbone, method, curve) for curve in curves}
    needed = target_reduction * dense_macs
    most = sum(option.saved for option in _choose(options, math.inf, method.reads_maps).values())
    if most < needed:
        raise ConfigError(
            f"The target reduction {target_reduction:.1%} cannot be reached: the layers save at most "
            f"{most / dense_macs:.1%} at the keep rates that were measured. Ask for less."
        )
    low, high = 1e-6, 1e6  # price of all MACs of the dense model, in errors
    for _ in range(60):
        price = math.sqrt(low * high)
        saved = sum(option.saved for option in _choose(options, price / dense_macs, method.reads_maps).values())
        low, high = (low, price) if saved >= needed else (price, high)
    chosen = _choose(options, high / dense_macs, method.reads_maps)
    _spend_surplus(options, chosen, needed)
    rates = {layer: option.keep_rate for layers, option in chosen.items() for layer in layers if option.keep_rate < 1}
    return method.at(rates, rates.values())


def _options(backbone: Backbone, method: Method, curve: ErrorCurve) -> list[_Option]:
    options = [_Option(1.0, 0, 0.0)]
    for step in range(1, round(1 / RATE_STEP)):
        rate = round(1 - step * RATE_STEP, 4)
        if rate < curve.keep_rates[-1]:
            break
        counts = [
            count_tosa_layer(backbone, method, layer, rate, chooses=layer == curve.layers[0]) for layer in curve.layers
        ]
        saved = sum(macs.dense_macs - macs.macs - macs.selector_macs - macs.bypass_macs for macs in counts)
        if saved > options[-1].saved:
            options.append(_Option(rate, saved, curve.at(rate)))
    return options


def _choose(options: Options, price: float, no_neighbors: bool) -> dict[tuple[int, ...], _Option]:
    """The best option of each layer at a price a MAC; with `no_neighbors` no two layers in a row select tokens."""
    # Best value and choice so far, where the last layer selects tokens and where it does not.
    paths: dict[bool, tuple[float, dict[tuple[int, ...], _Option]]] = {False: (0.0, {})}
    before = 0
    for layers, found in options.items():
        follows, before = layers[0] == before + 1, layers[-1]
        values = [(-float(o.saved) if price == math.inf else o.error - price * o.saved, o) for o in found]
        standard = values[0]
        tosa = min(values[1:], key=lambda value: value[0], default=None)
        extended: dict[bool, tuple[float, dict[tuple[int, ...], _Option]]] = {}
        for last, (value, path) in paths.items():
            for selects, choice in ((False, standard), (True, tosa)):
                if choice is None or (no_neighbors and follows and last and selects):
                    continue
                total = value + choice[0]
                if selects not in extended or total < extended[selects][0]:
                    extended[selects] = (total, {**path, layers: choice[1]})
        paths = extended
    return min(paths.values(), key=lambda path: path[0])[1]


def _spend_surplus(options: Options, chosen: dict[tuple[int, ...], _Option], needed: float) -> None:
    """Raise keep rates while enough is saved, the largest gain first: a price leaves a little over."""
    while True:
        surplus = sum(option.saved for option in chosen.values()) - needed
        gains = [
            (current.error - option.error, layers, option)
            for layers, current in chosen.items()
            for option in options[layers]
            if option.error < current.error and current.saved - option.saved <= surplus
        ]
        if not gains:
            return
        _, layers, option = max(gains, key=lambda gain: gain[0])
        chosen[layers] = option
