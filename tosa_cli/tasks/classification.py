"""Classification: labels are learned, and the shares of right guesses measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from accelerate import Accelerator
from huggingface_hub import EvalResult
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import accuracy
from torch import Tensor, nn

from tosa_cli.data.labels import check_labels
from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.hub.measured import how_chosen
from tosa_cli.measure.evaluation import Measure, Measured
from tosa_cli.model.class_names import class_names, set_class_names
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.tokens import TokensTask
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.finetune import ChangeBatch, Learned
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.optimizer import finetuned_groups
from tosa_cli.train.weights import finetuned_parts


class FinetuneObjective(nn.Module):
    """Finetuning on the original task with frozen selectors (paper 2.3).

    Args:
        model: The ToSA model, or a peer of it; or a dense model, all of which is trained.
        loss: Loss from class logits (B, num_classes) and targets.
    """

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        if isinstance(model, FinetunableViT):
            model.requires_grad_(False)
            finetuned_parts(model).requires_grad_(True)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width) with class indices (B,) or class shares (B, num_classes)."""
        return self.loss(self.model(images), targets)


@dataclass(frozen=True)
class Accuracy:
    """What one model does on a data set.

    Attributes:
        top1: Share of images whose class is the first guess, in percent.
        top5: Share of images whose class is among the first five guesses, in percent.
    """

    top1: float
    top5: float


class AccuracyMeasure(Measure[Accuracy]):
    """Accuracy of classifiers on labelled images."""

    def __init__(self) -> None:
        self.correct: dict[str, list[int]] = {}

    def add(self, images: Any, targets: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Count the images whose class (B,) is among the first guesses."""
        images.check_targets(targets, next(iter(outputs.values())).shape[-1])
        for name, output in outputs.items():
            top = accuracy(output.float(), targets.to(output.device), topk=(1, min(5, output.shape[-1])))
            counts = self.correct.setdefault(name, [0, 0])
            for k, value in enumerate(top):
                counts[k] += round(value.item() * len(targets) / 100)

    def figures(self, samples: int) -> dict[str, Accuracy]:
        """The shares of each model."""
        return {name: Accuracy(*(100 * count / samples for count in counts)) for name, counts in self.correct.items()}


class Classification(TokensTask):
    """Top-1 and top-5 accuracy on labelled images."""

    name = "classification"
    columns: ClassVar[Mapping[str, Column]] = {"top1": Column("top-1", 2, "%"), "top5": Column("top-5", 2, "%")}
    measured = "Accuracy"
    card_titles = ("top-1", "top-5")
    reads_head = True

    def check_images(self, training: Images, held_out: Images, model: TosaViT) -> None:
        """Check that both have the model's classes."""
        check_labels(training, model.num_classes)
        check_labels(held_out, model.num_classes)
        if training.classes != held_out.classes:
            raise DataError(
                f"The held-out images of {held_out.name} are of other classes than {training.name}: name others with "
                f"--val-dir."
            )

    def training_notes(self, training: Images, model: TosaViT) -> list[str]:
        """How the labels are read, and what becomes of the model's class names."""
        told, old = list(training.labels.notes), class_names(model)
        if old and training.labels.by == "position" and training.classes is not None:
            told.append(
                f"None of the {len(old)} classes of the model is among those of {training.name}, so it learns these in "
                f"their place: {_listed(training.classes)} for {_listed(old)}."
            )
        return told

    def learn(
        self,
        accelerator: Accelerator,
        model: TosaViT,
        images: Images,
        config: FinetuneConfig,
        *,
        teacher: Any = None,
        **run: Any,
    ) -> TrainReport:
        """Finetune on the labels, whose names the model has from then on."""
        report = super().learn(accelerator, model, images, config, teacher=teacher, **run)
        if images.classes is not None:
            set_class_names(model, images.classes)
        return report

    def objective(self, model: FinetunableViT, images: Images, config: FinetuneConfig, teacher: Any) -> Learned:
        """The cross entropy of the labels, smoothed and mixed as the settings say."""
        mixup = _make_mixup(config, model.num_classes)

        def change_batch(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            images.check_targets(targets, model.num_classes)
            return mixup(inputs, targets) if mixup else (inputs, targets)

        loss: nn.Module = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(config.smoothing)
        objective = FinetuneObjective(model, loss).train()
        groups = finetuned_groups(model, config.weight_decay, config.layer_decay)
        return Learned(objective, finetuned_parts(model), groups, change_batch)

    def measure(self, model: TosaViT) -> AccuracyMeasure:
        """The accuracy."""
        return AccuracyMeasure()

    def score(self, figures: Mapping[str, float]) -> float:
        """Top-1."""
        return figures["top1"]

    def next_words(self, config: FinetuneConfig) -> list[str]:
        """The dense model beside it."""
        return ["--compare"]

    def check_evaluated(self, images: Images, model: TosaViT, listener: Listener) -> None:
        """Check that the labels fit the head."""
        check_labels(images, model.num_classes)
        for note in images.labels.notes:
            listener.warn(note)
        names = class_names(model)
        if images.by_name:
            listener.say("Labels were matched with the model's classes by name.")
        elif names and images.labels.by == "position" and images.classes is not None:
            listener.warn(
                f"No class of {images.name} is called as one of the model's, so they were taken in their order: "
                f"{_listed(images.classes)} for {_listed(names)}. --class-map FILE says it otherwise."
            )

    def about_images(self, images: Images) -> dict[str, Any]:
        """How labels were matched with the model's classes."""
        return {"labels": f"by {images.labels.by}"}

    def reported(self, found: Measured[Any], name: str) -> dict[str, Any]:
        """Accuracy and time."""
        return {**super().reported(found, name), "model_seconds": found.seconds[name]}

    def dense_figures(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those that were measured."""
        return report["dense"]

    def change_section(self, command: str, done: Mapping[str, Any], whose: str) -> str:
        """The accuracy before and after."""
        if done.get("top1_after") is None:
            return ""
        rows = [f"| {when} | {done[f'top1_{when}']:.2f} | {done[f'top5_{when}']:.2f} |" for when in ("before", "after")]
        said = f"Accuracy in percent on {done['samples']} held-out images, before and after `tosa {command}`. "
        return f"{(said + how_chosen(done)).rstrip()}\n\n| | top-1 | top-5 |\n|---|---|---|\n" + "\n".join(rows)

    def published(self, measured: Mapping[str, Any]) -> list[EvalResult]:
        """Both shares, for the tables of the Hub."""
        return [
            EvalResult(
                task_type="image-classification",
                dataset_type="image-folder",
                dataset_name=measured["dataset"],
                metric_type="accuracy",
                metric_name=f"top-{k}",
                metric_value=measured[f"top{k}"],
            )
            for k in (1, 5)
            if measured.get(f"top{k}") is not None
        ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _make_mixup(config: FinetuneConfig, num_classes: int) -> ChangeBatch | None:
    if not (config.mixup or config.cutmix):
        return None
    if config.batch_size % 2:
        raise ConfigError(f"Mixup and CutMix need an even batch size, not {config.batch_size}.")
    mixup = Mixup(
        mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=config.smoothing, num_classes=num_classes
    )
    # timm's Mixup makes its targets on the device of the labels, and changes the images in place.
    return lambda images, targets: mixup(images, targets)
