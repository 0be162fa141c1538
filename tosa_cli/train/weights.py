"""The weights that finetuning trains, their running average, and the best of them by held-out images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tosa_cli.fit.nearness import SURE
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.train.processes import MainProcess


def finetuned_parts(model: FinetunableViT) -> nn.ModuleDict:
    """The parts of a model that finetuning trains, as one module: the backbone and the bypasses."""
    return nn.ModuleDict({"backbone": cast(nn.Module, model.backbone), "bypasses": model.bypasses})


class Average:
    """A running average of the weights of a module that trains.

    Args:
        source: The module, on its device.
        decay: Share of the old average that stays at each step.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.source = source
        self._ema = ModelEmaV3(source, decay=decay)

    @property
    def module(self) -> nn.Module:
        """A copy of the module that holds the average."""
        return self._ema.module

    def update(self) -> None:
        """Take the weights of one more step in."""
        self._ema.update(self.source)


@dataclass(frozen=True)
class HeldOut:
    """What a model does on held-out images.

    Attributes:
        samples: Images measured.
        score: The one number, larger is better, by which weights are ranked.
        figures: What was measured, by name.
        update: Optimizer steps before it.
        scores: The score of each image, in their order; empty where only all of them have one.
    """

    samples: int
    score: float
    figures: dict[str, float]
    update: int = 0
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """How the scores of the same images changed, image by image.

    Attributes:
        mean: Mean of the differences.
        error: Standard error of that mean; infinite for a single image.
    """

    mean: float
    error: float

    @classmethod
    def between(cls, before: HeldOut, after: HeldOut) -> "Change":
        """The change of the scores of the images; of the one score of all where they have none of their own."""
        pairs = list(zip(before.scores, after.scores, strict=True)) or [(before.score, after.score)]
        differences = torch.tensor([later - earlier for earlier, later in pairs], dtype=torch.float64)
        if len(pairs) == 1:
            return cls(differences.item(), math.inf if before.scores else 0.0)
        return cls(differences.mean().item(), differences.std().item() / math.sqrt(len(pairs)))

    @property
    def is_worse(self) -> bool:
        """Whether it is a change to the worse with 95 % confidence, or no number."""
        return not self.mean + SURE * self.error >= 0


@dataclass
class Watch:
    """Measures on held-out images while a model trains, and hands back the best weights, the start included.

    Attributes:
        measure: Measures the model; called in the main process alone.
        every: Optimizer steps between measurements; 0 measures at the start and the end.
        keep_best: Hand back the best weights; otherwise the last.
        history: All measurements so far, the first at the start.
        seconds: Time of those since the start or resume.
    """

    measure: Callable[[], HeldOut]
    every: int
    keep_best: bool
    history: list[HeldOut] = field(default_factory=list)
    seconds: float = 0.0
    _num_before: int = field(default=0, init=False, repr=False)
    _keeps_last: bool = field(default=False, init=False, repr=False)

    def attach(self, accelerator: Accelerator, parts: nn.Module, average: Average | None, seed: int) -> None:
        """Say what trains: the parts, whose weights are the start, and their average, which goes before them.

        Args:
            accelerator: From `make_accelerator`.
            parts: The module that trains.
            average: Its average, if one is kept: then it is what is measured and handed back.
            seed: Seed of all that is random while measuring, so that measurements can be compared.
        """
        self._accelerator, self._parts, self._average, self._seed = accelerator, parts, average, seed
        self._main = MainProcess(accelerator)
        self.start_anew()

    def start_anew(self) -> None:
        """Take the weights as they are for the start: what was measured before stays told, but is not handed back."""
        self._num_before = len(self.history)
        self._best = _copy(self._parts) if self.keep_best else {}

    @property
    def candidates(self) -> list[HeldOut]:
        """The measurements since the start, among which is that of the weights handed back."""
        return self.history[self._num_before :]

    @property
    def best(self) -> HeldOut:
        """The best of the candidates, or the last if the last weights are kept; of equal ones the earliest."""
        return max(self.candidates, key=_score) if self.keep_best and not self._keeps_last else self.history[-1]

    def keep_last(self) -> None:
        """Hand back the weights as they were measured last, whatever their score."""
        self._keeps_last = True
        self._best = _copy(self._parts) if self.keep_best else {}

    def is_due(self, update: int) -> bool:
        """Whether to measure after this optimizer step."""
        return self.every > 0 and update % self.every == 0

    def look(self, update: int) -> None:
        """Measure the weights as they are after an optimizer step, once, and keep them if they are the best."""
        if self.candidates and self.candidates[-1].update == update:
            return
        started = time.perf_counter()
        current = None
        if self._average is not None:
            current = _copy(self._parts)
            self._parts.load_state_dict(self._average.module.state_dict())
        found: HeldOut | None = None
        if self._main.is_here:
            modes = [(module, module.training) for module in self._parts.modules()]
            set_seed(self._seed)
            found = self.measure()
            for module, training in modes:
                module.training = training
        measured: HeldOut = self._main.tell(found)
        measured = replace(measured, update=update)
        self.history.append(measured)
        if self.keep_best and self.best is measured and update:
            self._best = _copy(self._parts)
        if current is not None:
            self._parts.load_state_dict(current)
        self._accelerator.log({f"held_out_{name}": value for name, value in measured.figures.items()}, step=update)
        self.seconds += time.perf_counter() - started

    def hand_back(self) -> None:
        """Put the best weights into the model."""
        if self.keep_best:
            self._parts.load_state_dict(self._best)

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The best weights, unless they are those at the start, and the measurements, for a checkpoint."""
        tensors = self._best if self.keep_best and self.history and self.best.update else {}
        return tensors, [vars(measured) for measured in self.history]

    def restore(self, tensors: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Take back what `state` gave."""
        self.history = [HeldOut(**measured) for measured in history]
        if tensors:
            self._best = tensors


def _score(measured: HeldOut) -> float:
    # One that is not a number is the worst.
    return measured.score if measured.score == measured.score else float("-inf")


@torch.no_grad()
def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
