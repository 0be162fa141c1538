"""Final tokens measured at any keep rates: how near they are to the dense model's, wherever the layers are."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.errors import DataError
from tosa_cli.fit.calibration import KeptTokens
from tosa_cli.model.regression import Sums
from tosa_cli.model.stream import Stream, run_all

SURE = 1.645
"""So many standard errors from a mean is the bound, below or above, that holds with 95 % confidence."""

ALIKE = 0.0025
"""Roots of 1 - cosine this far apart are alike: between tokens that is a fifth of a degree."""


@dataclass(frozen=True)
class Nearness:
    """Cosine of final tokens to the dense model's, over images.

    Attributes:
        images: Number of images.
        patch_cosine: Mean over images of the mean over the patch tokens of each.
        patch_error: Standard error of that mean, from the spread of the images.
        class_cosine: Mean over images of the class token's; None for a model without one.
        class_error: Its standard error.
        root: Mean over images of the root of 1 - cosine, of patch and class tokens together: rankings are by it, as
            the mean of the errors themselves is often that of one image.
    """

    images: int
    patch_cosine: float
    patch_error: float
    class_cosine: float | None
    class_error: float | None
    root: float

    @property
    def error(self) -> float:
        """1 - cosine, mean of patch and class tokens."""
        if self.class_cosine is None:
            return 1 - self.patch_cosine
        return 1 - (self.patch_cosine + self.class_cosine) / 2

    @property
    def least(self) -> float:
        """The smaller of the mean cosines of patch and class tokens."""
        return self.patch_cosine if self.class_cosine is None else min(self.patch_cosine, self.class_cosine)

    @property
    def sure(self) -> float:
        """What the means over other such images are above, with 95 % confidence: the smaller of both."""
        bounds = [self.patch_cosine - SURE * self.patch_error]
        if self.class_cosine is not None and self.class_error is not None:
            bounds.append(self.class_cosine - SURE * self.class_error)
        return min(bounds)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "root"} | {"sure": self.sure}


@dataclass(frozen=True)
class MinCosine:
    """The wish that final tokens stay so near to the dense model's: mean cosine of patch and of class tokens."""

    least: float

    def is_met(self, found: Nearness) -> bool:
        """Whether they are as near."""
        return found.least >= self.least

    def refusal(self, found: Nearness) -> str:
        """What is said where this is met at no saving.

        Args:
            found: How near they are at the smallest saving.
        """
        return (
            f"A cosine of {self.least} is not held on {found.images} held-out images even where 1% of the MACs are "
            f"saved: there it is {found.least:.4f}. Ask for less with --min-cosine."
        )


class FinalTokens:
    """The final tokens of a model beside the dense model's on the same images, at one setting after another.

    Args:
        run: The images, and the layers of the model, with every one converted that can select tokens.
        norm: What tokens (B, N, D) behind the last layer go through before they are compared.
        class_token: Place of the class token; None for a model without one.
    """

    def __init__(self, run: KeptTokens, norm: Callable[[Tensor], Tensor], class_token: int | None) -> None:
        self.run = run
        self.norm = norm
        self.class_token = class_token
        self.found: dict[tuple[Any, ...], Nearness] = {}
        self.roots: dict[tuple[Any, ...], dict[int, Tensor]] = {}

    def read(self) -> None:
        """Run the dense model on the images once, and keep what enters its layers and what comes out.

        Raises:
            DataError: If what comes out are no finite numbers.
        """
        self.run.sum_up(self._dense_pass())

    def at(self, keep_rates: Mapping[int, float]) -> Nearness:
        """How near the final tokens are at these keep rates, one a layer of the model; measured once."""
        key = tuple(keep_rates.items())
        if key not in self.found:
            self.run.model.keep_rates.update(keep_rates)
            self.roots[key] = {}
            self.found[key] = self._nearness(self.run.sum_up(self._error_pass(self.roots[key])))
        return self.found[key]

    def is_level(self, keep_rates: Mapping[int, float], others: Mapping[int, float]) -> bool:
        """Whether final tokens are about as near at some keep rates as at others: both have been measured.

        The roots of the errors are compared image by image, and are level where those of the first are larger by no
        more than one standard error of their mean difference, or by so little that it is the same to anyone.

        Args:
            keep_rates: Keep rates, one a layer.
            others: Others.
        """
        first, second = (self.roots[tuple(rates.items())] for rates in (keep_rates, others))
        pairs: Iterator[dict[Any, Sums]] = ({"": moments(first[number] - second[number])} for number in first)
        sums = self.run.sum_up(pairs)[""]
        mean, error = mean_of(sums, self.at(keep_rates).images)
        chance = error if math.isfinite(error) else 0.0  # one image alone says nothing of it
        return mean <= max(chance, ALIKE)

    @torch.no_grad()
    def _dense_pass(self) -> Iterator[dict[Any, Sums]]:
        model = self.run.model
        for number, tokens in self.run.read():
            stream = Stream(tokens, self.run.places)
            run_all(model.dense_layers(stream))
            final = self.norm(stream.tokens)
            if not final.isfinite().all():
                raise DataError(
                    "The final tokens of some images are no finite numbers, so nothing can be measured by them: check "
                    "how images are prepared, and the weights."
                )
            self.run.keep(number, {"tokens": tokens, "final": final})
            yield {}

    @torch.no_grad()
    def _error_pass(self, roots: dict[int, Tensor]) -> Iterator[dict[Any, Sums]]:
        model = self.run.model
        prefix = model.num_prefix_tokens
        for number, kept in self.run.kept():
            stream = Stream(kept["tokens"], self.run.places)
            run_all(model.layers(stream))
            cosine = F.cosine_similarity(kept["final"].float(), self.norm(stream.tokens).float(), dim=-1)
            errors = (1 - cosine).double().clamp_min(0).cpu()
            parts = {"patch": errors[:, prefix:].mean(1)}
            if self.class_token is not None:
                parts["class"] = errors[:, self.class_token]
            roots[number] = torch.stack([*parts.values()]).mean(0).sqrt()
            sums: dict[Any, Sums] = {name: moments(values) for name, values in parts.items()}
            yield {**sums, "root": {"sum": roots[number].sum()}}

    def _nearness(self, sums: Mapping[Any, Sums]) -> Nearness:
        count = self.run.num_images
        patch, patch_error = mean_of(sums["patch"], count)
        first, first_error = mean_of(sums["class"], count) if "class" in sums else (None, None)
        return Nearness(
            images=count,
            patch_cosine=1 - patch,
            patch_error=patch_error,
            class_cosine=None if first is None else 1 - first,
            class_error=first_error,
            root=sums["root"]["sum"].item() / count,
        )


def moments(values: Tensor) -> Sums:
    """What `mean_of` reads: the sum of values, one an image, and that of their squares."""
    return {"sum": values.sum(), "squares": values.square().sum()}


def mean_of(sums: Sums, count: int) -> tuple[float, float]:
    """Mean of so many values by their `moments`, and its standard error; of a single value that is infinite."""
    mean = sums["sum"].item() / count
    if count < 2:
        return mean, math.inf
    variance = max(sums["squares"].item() / count - mean**2, 0.0) * count / (count - 1)
    return mean, math.sqrt(variance / count)
