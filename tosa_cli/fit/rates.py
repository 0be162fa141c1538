"""Keep rates of groups that grow, found on the whole model: what is measured is the error of the final tokens.

Errors of single layers do not add up where groups grow: what is merged in one layer stays merged in those behind it. So
a schedule, which layers merge groups, is judged by a pass through all layers. Schedules begin early or late and save
the same share of the MACs. Where several are level, but for chance or a trifle, the one that begins last is taken.
Giving single layers more or less was tried and left: it fits the images that are measured, and other images suffer.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate import Accelerator

from tosa_cli.bisection import largest
from tosa_cli.config import Method
from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.fit.calibration import Calibration
from tosa_cli.fit.drop import Drop, Guesses, MaxDrop
from tosa_cli.fit.nearness import FinalTokens, MinCosine, Nearness
from tosa_cli.fit.schedules import BEGINS, Schedules
from tosa_cli.model.families import Backbone, has_class_token
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import NoProgress, Progress

FIRST_GUESS = 0.25
"""The share of the MACs for which a schedule is sought first, where it is not known how much can be saved."""


Wish = MinCosine | MaxDrop
"""What has to hold on held-out images."""


class Judge(Protocol):
    """What is measured on held-out images."""

    def at(self, keep_rates: Mapping[int, float]) -> Any:
        """What it finds at these keep rates, one a layer; a wish is met by it or is not."""


def wished(min_cosine: float | None, max_drop: float | None) -> Wish | None:
    """The wish that is named, if one is."""
    if max_drop is not None:
        return MaxDrop(max_drop)
    return None if min_cosine is None else MinCosine(min_cosine)


@dataclass(frozen=True)
class RateSearch:
    """How keep rates were found on the whole model.

    Attributes:
        keep_rates: Keep rate of each ToSA layer, by its number.
        error: 1 - cosine of final tokens to the dense model's with them; mean of patch and class tokens.
        steady_error: The same where every layer that chooses merges about as many groups, at the same MACs: what that
            takes is told by no MACs.
        images: Number of images that it was measured on.
        tries: Number of schedules that were measured.
        held: What held on held-out images, where it was asked for: how near the final tokens are, or what is lost of
            the task; None otherwise.
    """

    keep_rates: dict[int, float]
    error: float
    steady_error: float
    images: int
    tries: int
    held: Nearness | Drop | None = None

    def to_dict(self) -> dict[str, Any]:
        """The search as plain JSON values."""
        held = {} if self.held is None else {"held": self.held.to_dict()}
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "held"} | held


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
    schedules = Schedules(backbone, method)
    schedules.check(target_reduction)
    with _calibrated(accelerator, backbone, schedules, images, strict, progress, len(BEGINS) + 1) as run:
        tuning = _final_tokens(run, backbone)
        tuning.read()
        return search_on(tuning, schedules, target_reduction)


def hold(
    accelerator: Accelerator,
    backbone: Backbone,
    method: Method,
    images: Images,
    held_out: Images,
    wish: Wish,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> RateSearch:
    """Find the keep rates that save most while a wish is met on held-out images.

    Schedules are sought on some images, and how much they may save is decided on others, to the percent.

    Args:
        accelerator: From `make_accelerator`.
        backbone: The dense model; it is not changed.
        method: A method that puts tokens into groups.
        images: Images in order and not augmented, on which schedules are compared.
        held_out: Other images, on which the wish has to be met; labelled ones for a drop of accuracy.
        wish: What has to hold.
        strict: Stop at an image that cannot be read.
        progress: Told about the advance.

    Raises:
        ConfigError: If tokens can be selected in no layer, or the wish is met at no saving.
        DataError: If no image can be read, or one cannot and `strict` is set; or labels are missing or not the model's.
    """
    schedules = Schedules(backbone, method)
    tries = 2 * len(BEGINS) + 1
    with _calibrated(accelerator, backbone, schedules, images, strict, progress, tries) as run:
        tuning = _final_tokens(run, backbone)
        tuning.read()
        with _calibrated(accelerator, backbone, schedules, held_out, strict, progress, 0) as others:
            judge = Guesses(others, wish) if isinstance(wish, MaxDrop) else _final_tokens(others, backbone)
            judge.read()
            return hold_on(tuning, judge, schedules, wish)


def search_on(tuning: FinalTokens, schedules: Schedules, target_reduction: float) -> RateSearch:
    """Find the keep rates for a saving that can be reached, on images that the dense model has read.

    Args:
        tuning: The images.
        schedules: What is tried.
        target_reduction: The saving.
    """
    return _report(tuning, schedules, best_merging(tuning, schedules, target_reduction), target_reduction)


def hold_on(tuning: FinalTokens, judge: Judge, schedules: Schedules, wish: Wish) -> RateSearch:
    """Find the keep rates that save most while a wish is met, on images that the dense model has read.

    Args:
        tuning: Images on which schedules are compared.
        judge: Others, on which the wish has to be met.
        schedules: What is tried.
        wish: What has to hold.

    Raises:
        ConfigError: If it is met at no saving.
        DataError: If a single image is held out.
    """

    def saved(found: tuple[float, tuple[int, ...]]) -> float:
        """What is saved in truth: of a saving that is out of reach of its layers, as much as they can."""
        return schedules.reduction(schedules.keep_rates(found[1], found[0]))

    merging = best_merging(tuning, schedules, min(FIRST_GUESS, schedules.most))
    most = largest_saving(schedules, judge, merging, wish)
    if most:  # a saving of its own has a schedule of its own, which may hold further
        second = best_merging(tuning, schedules, most)
        most, merging = max((largest_saving(schedules, judge, second, wish), second), (most, merging), key=saved)
    held = judge.at(schedules.keep_rates(merging, most or 0.01))
    if held.images < 2:
        raise DataError("What is to hold was measured on one held-out image, which says nothing of others: give more.")
    if not most:
        raise ConfigError(wish.refusal(held))
    return dataclasses.replace(_report(tuning, schedules, merging, most), held=held)


@contextmanager
def _calibrated(
    accelerator: Accelerator,
    backbone: Backbone,
    schedules: Schedules,
    images: Images,
    strict: bool,
    progress: Progress | None,
    passes: int,
) -> Iterator[Calibration]:
    """Images, and the model with every layer converted in which tokens can be selected; so many passes are told of."""
    model = TosaViT(backbone, schedules.method.at(schedules.layers, 1.0))
    with Calibration(accelerator, model, images, strict, progress or NoProgress()) as run:
        run.progress.start(run.num_batches * (1 + passes), 0)
        yield run


def _final_tokens(run: Calibration, backbone: Backbone) -> FinalTokens:
    return FinalTokens(run, run.model.norm, 0 if has_class_token(backbone) else None)


def best_merging(tuning: FinalTokens, schedules: Schedules, target_reduction: float) -> tuple[int, ...]:
    """The layers that merge by the schedule with about the smallest mean of the roots of the errors of the images.

    Of schedules that are level with the smallest, the one that begins last is taken: what early layers merge wrongly,
    as in fine textures that few images show, is wrong in all layers behind.
    """
    able = schedules.able(target_reduction)
    nearest = min(able.values(), key=lambda rates: tuning.at(rates).root)
    return max(merging for merging, rates in able.items() if tuning.is_level(rates, nearest))


def largest_saving(schedules: Schedules, judge: Judge, merging: Sequence[int], wish: Wish) -> float:
    """A whole percentage of the MACs that can be saved while a wish is met, and not one percent more; 0 if none."""

    def holds(percent: int) -> bool:
        return wish.is_met(judge.at(schedules.keep_rates(merging, percent / 100)))

    return largest(0, int(schedules.most * 100), holds) / 100


def _report(tuning: FinalTokens, schedules: Schedules, merging: Sequence[int], target_reduction: float) -> RateSearch:
    rates, steady = (schedules.keep_rates(layers, target_reduction) for layers in (merging, schedules.choosing))
    found, kept = tuning.at(rates), schedules.config(rates).keep_rates
    return RateSearch(kept, found.error, tuning.at(steady).error, found.images, len(tuning.found))
