"""What a task is: its data, what is learned and measured, what ranks weights, and what is shown of it."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import nn

from tosa_cli.data.loading import Images
from tosa_cli.device import pick_device
from tosa_cli.measure.config import EvalConfig
from tosa_cli.measure.evaluation import Measure, Measured, measure_models
from tosa_cli.measure.speed import device_name
from tosa_cli.progress import Listener, figure
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.finetune import Learned, finetune
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.weights import HeldOut


@dataclass(frozen=True)
class Column:
    """How a figure is shown.

    Attributes:
        title: Its name.
        decimals: Its decimals.
        unit: Its unit, if it has one.
    """

    title: str
    decimals: int = 4
    unit: str = ""

    @property
    def with_unit(self) -> str:
        """Name and unit."""
        return f"{self.title} {self.unit}".rstrip()

    def show(self, value: float | None) -> str:
        """A value as text."""
        return figure(value, self.decimals)


@dataclass(frozen=True)
class Start:
    """A model as finetuning starts from it.

    Attributes:
        model: The model.
        config: The settings, completed by what the model already has.
        folder: The folder that is written unless another is named; None if there is none.
        is_own: Whether that folder is the model's own, so that it may be replaced.
        notes: What the user should know about how the model was read, each a sentence.
    """

    model: Any
    config: Any
    folder: Path | None
    is_own: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """Models ready to be measured.

    Attributes:
        models: The model, `tosa`; and `dense`, the one beside it, if there is one.
        images: What they are measured on.
        measure: What is measured.
        about: What the report says before the figures.
        conditions: What it says beside them.
        beside: What it says of the model beside; None without one.
        counted: What it says of what counted of the images.
    """

    models: Mapping[str, nn.Module]
    images: Images
    measure: Measure[Any]
    about: Mapping[str, Any]
    conditions: Mapping[str, Any]
    beside: Mapping[str, Any] | None
    counted: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table to show: its title, its columns and its rows as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Task(ABC):
    """A task, which the verbs `finetune` and `evaluate` ask.

    Attributes:
        name: Its name, as in `--task`.
        settings: The settings of finetuning for it.
        columns: The figures that it is measured by, and how they are shown.
        measured: What is measured on held-out images, in words.
        keeps_best: Whether the best weights are kept even where none are measured on the way.
    """

    name: ClassVar[str]
    settings: ClassVar[type[TrainConfig]]
    columns: ClassVar[Mapping[str, Column]]
    measured: ClassVar[str]
    keeps_best: ClassVar[bool] = False

    @abstractmethod
    def start(self, model: Any, values: Mapping[str, Any], may_be_remote: bool) -> Start:
        """Find the model to finetune, and complete the settings.

        Args:
            model: A folder, a Hub id, or the model itself.
            values: The settings that were named.
            may_be_remote: Whether it may be on the Hub, as another folder to write was named.

        Raises:
            ConfigError: If a setting is wrong.
            InputError: If the model does not fit.
        """

    def teacher(self, model: Any) -> Any:
        """The model that is learned from, if the task has one."""
        return None

    @abstractmethod
    def open(self, model: Any, config: Any) -> tuple[Images, Images]:
        """Open training images and held-out images.

        Raises:
            DataError: If they are missing, wrong or too few.
        """

    def training_notes(self, training: Any, model: Any) -> list[str]:
        """What may be wrong with images to train on, each a sentence."""
        return []

    @abstractmethod
    def objective(self, model: Any, images: Images, config: Any, teacher: Any) -> Learned:
        """What finetuning learns: the loss, and what of the model trains.

        Raises:
            ConfigError: If the settings do not fit the model.
        """

    def learn(
        self, accelerator: Accelerator, model: Any, images: Images, config: Any, *, teacher: Any = None, **run: Any
    ) -> TrainReport:
        """Finetune a model in place; the arguments not named here are those of `train.finetune`."""
        return finetune(
            accelerator, model, images, config, lambda: self.objective(model, images, config, teacher), **run
        )

    @abstractmethod
    def measure(self, model: Any) -> Measure[Any]:
        """What is measured of a model."""

    @abstractmethod
    def score(self, figures: Mapping[str, float]) -> float:
        """The one number of a model's figures, larger is better, by which weights are ranked."""

    def held_out(self, model: Any, teacher: Any, images: Any, device: torch.device, config: Any) -> HeldOut:
        """Measure a model on held-out images, beside its teacher if there is one; the score ranks its weights."""
        models = {"tosa": model} if teacher is None else {"tosa": model, "dense": teacher}
        measure = self.measure(model)
        found = measure_models(models, images, measure, device=device, amp=config.amp, strict=config.strict)
        figures = {key: value for key, value in vars(found.models["tosa"]).items() if value is not None}
        return HeldOut(found.samples, self.score(figures), figures, scores=measure.scores())

    def doing(self, config: Any) -> str:
        """What finetuning does, in words."""
        return "Finetuning"

    def about_results(self, config: Any) -> dict[str, Any]:
        """What is recorded with the figures on held-out images."""
        return {}

    def about_run(self, config: Any) -> dict[str, Any]:
        """What is reported of a run beside its figures."""
        return {}

    @abstractmethod
    def next_words(self, config: Any) -> list[str]:
        """What follows `tosa eval MODEL --data-dir IMAGES` after finetuning."""

    @abstractmethod
    def trial(self, model: Any, name: str, config: EvalConfig, listener: Listener) -> Trial:
        """Open the images that a model is measured on, and set beside it what it is compared with.

        Raises:
            InputError: If the settings do not fit the model.
            DataError: If images are missing or wrong.
        """

    @abstractmethod
    def report(self, trial: Trial, found: Measured[Any], device: str) -> dict[str, Any]:
        """What was found, measured on a device of that name, as plain JSON values."""

    def evaluate(self, model: Any, name: str, config: EvalConfig, listener: Listener) -> dict[str, Any]:
        """Measure a model: the report as plain JSON values.

        Args:
            model: The model.
            name: What to call it.
            config: On what it is measured, and how.
            listener: Told what is done.

        Raises:
            InputError: If the settings do not fit the model.
            DataError: If images are missing or wrong.
        """
        trial = self.trial(model, name, config, listener)
        place = pick_device(config.device)
        with listener.progress("Evaluating") as bar:
            bar.start(-(-trial.images.num_images // config.batch_size), 0)
            found = measure_models(
                trial.models,
                trial.images,
                trial.measure,
                device=place,
                amp=config.amp,
                strict=config.strict,
                advance=lambda num_images: bar.advance(num_images, ""),
            )
        for note in self.measured_notes(trial.measure, found.samples):
            listener.warn(note)
        return self.report(trial, found, device_name(place))

    def measured_notes(self, measure: Any, samples: int) -> list[str]:
        """What may be wrong with so many images that were measured on, each a sentence."""
        return []

    def reported(self, found: Measured[Any], name: str) -> dict[str, Any]:
        """What a report says of one model: its figures, if it has any, and its speed."""
        figures = dataclasses.asdict(found.models[name]) if name in found.models else {}
        return {**figures, "images_per_second": found.images_per_second[name]}

    @abstractmethod
    def table(self, report: Mapping[str, Any]) -> Table:
        """What is shown of a report."""

    @abstractmethod
    def conditions(self, report: Mapping[str, Any]) -> str:
        """What is said below the table."""
