"""Keep rates of groups that grow, found on the whole model: what is measured is the error of the final tokens.

Errors of single layers do not add up where groups grow: what is merged in one layer stays merged in those behind it. So
a schedule, how many groups are merged in each layer, is judged by a pass through all layers. The schedules begin at one
of the first layers, and are steady or rise or fall with the depth; all save the same share of the MACs. Giving single
layers more or less was tried and left: it fits the images that are measured, and other images suffer. What is compared
is the mean of the roots of the errors of the images, as the mean of the errors is often that of one image.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from tosa_cli.config import Method, TosaConfig
from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError
from tosa_cli.fit.budget import image_errors
from tosa_cli.fit.calibration import Calibration
from tosa_cli.model.families import Backbone, eligible_layers
from tosa_cli.model.flops import count_flops
from tosa_cli.model.regression import Sums
from tosa_cli.model.selection import num_kept
from tosa_cli.model.stream import Stream, run_all
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import NoProgress, Progress

RISES = (0.0, 0.5, 1.0, -0.5)
"""Powers of the depth that the number of merged groups rises or falls with."""

BEGINNINGS = 3
"""With how many of the layers that choose a schedule may begin: the first of them, the second, ..."""

LEAST_KEPT = 0.1
"""No layer computes a smaller share of the tokens."""


@dataclass(frozen=True)
class RateSearch:
    """How keep rates were found on the whole model.

    Attributes:
        keep_rates: Keep rate of each ToSA layer, by its number.
        error: 1 - cosine of final tokens to the dense model's with them; mean of patch and class tokens.
        steady_error: The same where every layer merges as many groups as every other, at the same MACs.
        images: Number of images that it was measured on.
        tries: Number of schedules that were measured.
    """

    keep_rates: dict[int, float]
    error: float
    steady_error: float
    images: int
    tries: int

    def to_dict(self) -> dict[str, Any]:
        """The search as plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def search_rates(
    accelerator: Accelerator,
    backbone: Backbone,
    method: Method,
    images: Images,
    target_reduction: float,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> RateSearch:
    """Find the keep rate of each layer with which the final tokens are nearest to the dense model's.

    Args:
        accelerator: From `make_accelerator`.
        backbone: The dense model; it is not changed.
        method: A method that puts tokens into groups.
        images: Images in order and not augmented; a few tens are enough.
        target_reduction: Share of the dense MACs to save, what is spent on the choice counted.
        strict: Stop at an image that cannot be read.
        progress: Told about the advance.

    Raises:
        ConfigError: If tokens can be selected in no layer, or as much cannot be saved.
        DataError: If no image can be read, or one cannot and `strict` is set.
    """
    layers = eligible_layers(backbone, method.selection, method.reads_maps)
    if not layers:
        raise ConfigError(f"The selector {method.selector!r} can select tokens in no layer of the model: take another.")
    schedules = Schedules(backbone, method, layers, target_reduction)
    model = TosaViT(backbone, method.at(layers, 1.0))
    with Calibration(accelerator, model, images, strict, progress or NoProgress()) as run:
        shares = [
            schedules.rising(rise, first) for first in range(min(BEGINNINGS, len(schedules.choosing))) for rise in RISES
        ]
        run.progress.start(run.num_batches * (1 + len(shares)), 0)
        search = _Search(run, schedules)
        search.read()
        for each in shares:
            search.attempt(each)
        return search.report()


class Schedules:
    """How much is merged in each layer, as shares, and the keep rates that save enough with them.

    Args:
        backbone: The dense model.
        method: A method that puts tokens into groups.
        layers: Layers in which tokens can be selected.
        target_reduction: Share of the dense MACs to save.

    Raises:
        ConfigError: If as much cannot be saved.
    """

    def __init__(self, backbone: Backbone, method: Method, layers: Sequence[int], target_reduction: float) -> None:
        self.backbone = backbone
        self.method = method
        self.layers = tuple(layers)
        self.target = target_reduction
        self.depth = len(backbone.blocks)
        self.prefix = backbone.num_prefix_tokens
        self.tokens = int(backbone.patch_embed.num_patches) + self.prefix
        config = method.at(layers, 1.0)
        self.choosing = tuple(layer for layer, first in config.choosing_layers.items() if layer == first)
        self.chooser = config.choosing_layers
        most = self.reduction(self.at_scale(self.rising(0.0), float(self.tokens)))
        if most < target_reduction:
            raise ConfigError(
                f"The target reduction {target_reduction:.1%} cannot be reached: the layers save at most {most:.1%} "
                f"with a tenth of the tokens computed. Ask for less."
            )

    def rising(self, power: float, first: int = 0) -> list[float]:
        """Shares of the merging, one a layer that chooses: a power of the depth, and nothing in the first so many."""
        return [(layer / self.depth) ** power * (i >= first) for i, layer in enumerate(self.choosing)]

    def keep_rates(self, shares: Sequence[float]) -> dict[int, float]:
        """The keep rates that share the merging out so, and save just enough."""
        low, high = 0.0, float(self.tokens) / min(share for share in shares if share > 0)
        for _ in range(40):
            middle = (low + high) / 2
            enough = self.reduction(self.at_scale(shares, middle)) >= self.target
            low, high = (low, middle) if enough else (middle, high)
        return self.at_scale(shares, high)

    def at_scale(self, shares: Sequence[float], scale: float) -> dict[int, float]:
        """Keep rates where each layer that chooses merges its share times a scale, in tokens."""
        merges = dict(zip(self.choosing, shares, strict=True))
        least = max(self.prefix + 1, round(LEAST_KEPT * self.tokens))
        rates, merged = {}, 0.0
        for layer in self.layers:
            if layer - 1 not in rates:  # behind a standard layer every token is there again
                merged = 0.0
            if self.chooser[layer] == layer:
                merged += merges[layer] * scale
            rates[layer] = round(max(least, round(self.tokens - merged)) / self.tokens, 5)
        return rates

    def reduction(self, keep_rates: dict[int, float]) -> float:
        """Share of the dense MACs that keep rates save."""
        return count_flops(self.backbone, self.config(keep_rates)).reduction

    def config(self, keep_rates: dict[int, float]) -> TosaConfig:
        """The conversion at these keep rates, in the layers that merge anything; all of them where none does."""
        kept = {
            layer: rate for layer, rate in keep_rates.items() if num_kept(self.tokens, rate, self.prefix) < self.tokens
        }
        kept = kept or keep_rates
        return self.method.at(kept, kept.values())


class _Errors(NamedTuple):
    """Errors of a schedule, over all images: the mean of their roots, by which it is judged, and their mean."""

    root: float
    mean: float


class _Search:
    """The best schedule so far, and how another one is measured.

    Args:
        run: The images, and a model with every layer that can select tokens.
        schedules: What turns shares into keep rates.
    """

    def __init__(self, run: Calibration, schedules: Schedules) -> None:
        self.run = run
        self.schedules = schedules
        self.found: dict[tuple[float, ...], _Errors] = {}
        self.steady = self.best = _Errors(float("inf"), float("inf"))
        self.best_shares: list[float] = []

    def read(self) -> None:
        """Run the dense model on the images once, and keep what enters its layers and what comes out."""
        self.run.sum_up(self._dense_pass())

    def _dense_pass(self) -> Iterator[dict[Any, Sums]]:
        model = self.run.model
        for number, tokens in self.run.read():
            stream = Stream(tokens, self.run.places)
            run_all(model.dense_layers(stream))
            self.run.keep(number, {"tokens": tokens, "final": model.norm(stream.tokens)})
            yield {}

    def attempt(self, shares: list[float]) -> None:
        """Measure a schedule, and keep it if it is the best so far; one that does not save enough is left out."""
        rates = self.schedules.keep_rates(shares)
        if self.schedules.reduction(rates) < self.schedules.target:
            return
        key = tuple(rates.values())
        if key not in self.found:
            self.found[key] = self._measure(rates)
        errors = self.found[key]
        if not self.best_shares:
            self.steady = errors  # the first schedule is steady
        if errors.root < self.best.root:
            self.best, self.best_shares = errors, shares

    def _measure(self, keep_rates: dict[int, float]) -> "_Errors":
        self.run.model.keep_rates.update(keep_rates)
        total = self.run.sum_up(self._error_pass())["error"]
        return _Errors(*((total[name] / self.run.num_images).item() for name in _Errors._fields))

    def _error_pass(self) -> Iterator[dict[Any, Sums]]:
        model = self.run.model
        for _, kept in self.run.kept():
            stream = Stream(kept["tokens"], self.run.places)
            run_all(model.layers(stream))
            errors = image_errors(model, kept["final"], model.norm(stream.tokens)).double().clamp_min(0)
            yield {"error": {"root": errors.sqrt().sum().cpu(), "mean": errors.sum().cpu()}}

    def report(self) -> RateSearch:
        """What was found."""
        config = self.schedules.config(self.schedules.keep_rates(self.best_shares))
        return RateSearch(config.keep_rates, self.best.mean, self.steady.mean, self.run.num_images, len(self.found))
