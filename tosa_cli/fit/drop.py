"""What a model loses of its task on held-out images: labels guessed right, or outputs that are the dense model's."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.errors import DataError
from tosa_cli.fit.calibration import Calibration
from tosa_cli.fit.nearness import SURE, mean_of, moments
from tosa_cli.measure.agreement import WHY_SILENT, chief_figure, compare_batch, is_silent, outputs_of
from tosa_cli.model.regression import Sums
from tosa_cli.model.runs import Run, dense
from tosa_cli.model.stream import Stream, run_all
from tosa_cli.progress import NoProgress, Progress

MOST_KEPT = 2**30
"""So many bytes of the dense model's outputs are kept; what is beyond is computed again each time."""


@dataclass(frozen=True)
class Drop:
    """What a converted model loses of a measure, over images.

    Attributes:
        images: Number of images.
        measure: What is measured.
        dense: The dense model's measure, in percent.
        converted: The converted model's.
        drop: How many points that is less.
        drop_error: Standard error of the drop, from the differences image by image.
        lost: Images that only the dense model gets right; None where they are not right or wrong.
        gained: Images that only the converted model gets right.
        left_out: Further images, of which the dense model's output says nothing, as depth that is the same everywhere.
    """

    images: int
    measure: str
    dense: float
    converted: float
    drop: float
    drop_error: float
    lost: int | None = None
    gained: int | None = None
    left_out: int = 0

    @property
    def sure(self) -> float | None:
        """What the drop on other such images is below, with 95 % confidence; None where these do not say.

        Of images that are right or wrong the bound is that of Bonett and Price (2012), one image more lost and one more
        gained: without a single one lost, others still may be. Of a figure that is the same for every image there is no
        such bound.
        """
        if self.lost is None or self.gained is None:
            return self.drop + SURE * self.drop_error if self.drop_error else None
        count = self.images + 2
        lost, gained = (self.lost + 1) / count, (self.gained + 1) / count
        return 100 * (lost - gained + SURE * math.sqrt((lost + gained - (lost - gained) ** 2) / count))

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {**asdict(self), "sure": self.sure}


@dataclass(frozen=True)
class MaxDrop:
    """The wish that no more than so many points of a measure are lost."""

    points: float

    def is_met(self, found: Drop) -> bool:
        """Whether no more is lost."""
        return found.drop <= self.points

    def refusal(self, found: Drop) -> str:
        """What is said where this is met at no saving.

        Args:
            found: What is lost at the smallest saving.
        """
        return (
            f"A drop of {self.points} points is not held on {found.images} held-out images even where 1% of the MACs "
            f"are saved: there {found.measure} is {found.converted:.2f} %, and {found.dense:.2f} % dense. Allow more "
            f"with --max-drop, or hold out more images."
        )


class DropJudge(ABC):
    """What is lost at one setting after another, each measured once."""

    def __init__(self) -> None:
        self.found: dict[tuple[Any, ...], Drop] = {}

    def at(self, keep_rates: Mapping[int, float]) -> Drop:
        """What is lost at these keep rates, one a layer."""
        key = tuple(keep_rates.items())
        if key not in self.found:
            self.found[key] = self._measure(keep_rates)
        return self.found[key]

    @abstractmethod
    def _measure(self, keep_rates: Mapping[int, float]) -> Drop:
        """Measure it."""


class Guesses(DropJudge):
    """First guesses of a classifier on labelled images: top-1 accuracy.

    Args:
        run: The images, and the model, with every layer converted that can select tokens.
        wish: What is to be met.
    """

    def __init__(self, run: Calibration, wish: MaxDrop) -> None:
        super().__init__()
        self.run = run
        self.wish = wish
        self.right = 0

    def read(self) -> None:
        """Run the dense model on the images once, and keep what enters its layers and what it gets right.

        Raises:
            DataError: If an image has no label of the model's, or the dense model does not get more right than by
                guessing, so that there is nothing to lose.
        """
        self.right = int(self.run.sum_up(self._dense_pass())["dense"]["right"].item())
        count, chance = self.run.num_images, 1 / self.run.model.num_classes
        share = self.right / count
        if share - SURE * math.sqrt(share * (1 - share) / count) <= chance + self.wish.points / 100:
            raise DataError(
                f"The dense model gets {self.right} of {count} held-out images of {self.run.images.name} right, and by "
                f"guessing {chance:.1%} are, so {self.wish.points} points tell too little: check which class each "
                f"label is (--class-map FILE), hold out more images with --max-samples, or allow less."
            )

    def _measure(self, keep_rates: Mapping[int, float]) -> Drop:
        self.run.model.keep_rates.update(keep_rates)
        sums, count = self.run.sum_up(self._pass()), self.run.num_images
        drop, error = mean_of(sums["points"], count)
        accuracy = 100 * self.right / count
        return Drop(
            images=count,
            measure="top-1 accuracy",
            dense=accuracy,
            converted=accuracy - drop,
            drop=drop,
            drop_error=error,
            lost=int(sums["images"]["lost"].item()),
            gained=int(sums["images"]["gained"].item()),
        )

    @torch.no_grad()
    def _dense_pass(self) -> Iterator[dict[Any, Sums]]:
        model = self.run.model
        for number, tokens in self.run.read():
            targets = self.run.targets
            self.run.images.check_targets(targets, model.num_classes)
            stream = Stream(tokens, self.run.places)
            run_all(model.dense_layers(stream))
            right = self._is_right(stream, targets)
            self.run.keep(number, {"tokens": tokens, "targets": targets, "right": right})
            yield {"dense": {"right": right.sum().cpu()}}

    @torch.no_grad()
    def _pass(self) -> Iterator[dict[Any, Sums]]:
        for _, kept in self.run.kept():
            stream = Stream(kept["tokens"], self.run.places)
            run_all(self.run.model.layers(stream))
            before, right = kept["right"].cpu(), self._is_right(stream, kept["targets"]).cpu()
            images = {"lost": (before & ~right).sum(), "gained": (right & ~before).sum()}
            yield {"images": images, "points": moments(100 * (before.double() - right.double()))}

    def _is_right(self, stream: Stream, targets: Tensor) -> Tensor:
        """Whether the first guess of each image (B,) is its label."""
        model = self.run.model
        return model.forward_head(model.norm(stream.tokens)).argmax(1) == targets


class Agreement(DropJudge):
    """Outputs of a whole model beside the dense model's, by the figure that says most of them; no labels are read.

    Args:
        model: The model.
        run: Its run of blocks, which is converted.
        batches: What the model is called with.
        progress: Told about the advance.
    """

    def __init__(self, model: nn.Module, run: Run, batches: Sequence[Any], progress: Progress | None = None) -> None:
        super().__init__()
        self.model, self.run, self.batches = model, run, batches
        self.progress = progress or NoProgress()
        self._dense: dict[int, dict[str, Tensor]] = {}
        self._kept = 0
        self.figure: tuple[str, str] | None = None

    def _measure(self, keep_rates: Mapping[int, float]) -> Drop:
        self.run.keep_rates.update(keep_rates)
        parts, left_out = [], 0
        for number, batch in enumerate(self.batches):
            figures = compare_batch(self._dense_outputs(number, batch), outputs_of(self.model, batch))
            self.figure = self.figure or chief_figure(figures)
            output, figure = self.figure
            silent = is_silent(torch.stack([*figures[output].values()]))
            left_out += int(silent.sum().item())
            parts.append(100 - 100 * figures[output][figure][~silent].double().cpu())
            self.progress.advance(len(silent), "")
        points = torch.cat(parts)
        if not len(points):
            raise DataError(
                f"No held-out image says anything of {output}: {WHY_SILENT}. Take other images, or hold the encoder's "
                f"tokens with --min-cosine."
            )
        drop, error = mean_of(moments(points), len(points))
        is_count = self.figure is not None and self.figure[1] == "top1_agreement"
        return Drop(
            images=len(points),
            measure=f"{figure} of {output}",
            dense=100.0,
            converted=100 - drop,
            drop=drop,
            drop_error=error,
            lost=int((points > 0).sum().item()) if is_count else None,
            gained=0 if is_count else None,
            left_out=left_out,
        )

    def _dense_outputs(self, number: int, batch: Any) -> dict[str, Tensor]:
        """The dense model's outputs of a batch, kept while there is room for them."""
        if number in self._dense:
            return self._dense[number]
        with dense(self.model):
            made = outputs_of(self.model, batch)
        size = sum(value.nbytes for value in made.values())
        if self._kept + size <= MOST_KEPT:
            self._kept += size
            self._dense[number] = made
        return made
