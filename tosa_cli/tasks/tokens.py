"""What the tasks of converted models without a decoder share: images as timm reads them, and reports."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from huggingface_hub import EvalResult
from torch import nn

from tosa_cli.data.class_map import read_class_map
from tosa_cli.data.datasets import is_streamed, name_of, open_dataset
from tosa_cli.data.loading import Augmentation, Images, images_to_read
from tosa_cli.data.opening import choose_indices, open_images
from tosa_cli.errors import InputError
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.measured import describe_conditions
from tosa_cli.hub.names import own_folder
from tosa_cli.hub.original import dense_model
from tosa_cli.measure.config import EvalConfig
from tosa_cli.measure.evaluation import Measured
from tosa_cli.measure.oracle import with_oracle
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, figure
from tosa_cli.settings import option_name
from tosa_cli.tasks.base import Start, Table, Task, Trial
from tosa_cli.train.config import FinetuneConfig

ABOUT_MAPS = ("data_format", "split_file", "depth_dir", "depth_scale", "ignore_index", "flip")


class TokensTask(Task):
    """A task of a converted model.

    Attributes:
        card_titles: What the card calls its figures.
        needs_dense: Whether the dense model is always set beside it.
        reads_head: Whether the guesses of the head are compared, so that the dense model needs one.
        max_held_out: Largest number of held-out images; None takes all.
    """

    settings = FinetuneConfig
    card_titles: ClassVar[Sequence[str]]
    needs_dense = False
    reads_head = False
    max_held_out: int | None = None

    def start(self, model: Any, values: Mapping[str, Any], may_be_remote: bool) -> Start:
        """Load the model: without another folder named its own is brought to its next stage."""
        config = FinetuneConfig.from_dict(values)
        folder = own_folder(model, may_be_remote)
        return Start(model if folder is None else load(model), config, folder, is_own=True)

    def open(self, model: TosaViT, config: FinetuneConfig) -> tuple[Images, Images]:
        """Open training images and held-out images; the folder is scanned once."""
        images = open_images(
            model,
            config,
            batch_size=config.batch_size,
            workers=config.workers,
            seed=config.seed,
            augment=finetune_augmentation(config),
            max_held_out=self.max_held_out,
            class_map=read_class_map(config.class_map),
        )
        self.check_images(images.training, images.held_out, model)
        return images.training, images.held_out

    def check_images(self, training: Images, held_out: Images, model: TosaViT) -> None:
        """Check that images fit the model."""

    def about_run(self, config: FinetuneConfig) -> dict[str, Any]:
        """What was learned from."""
        return {"objective": config.objective}

    def trial(self, model: TosaViT, name: str, config: EvalConfig, listener: Listener) -> Trial:
        """Open images, and set the dense model beside the converted one where that is asked for."""
        _check_no_maps(name, config)
        if config.selector == "oracle":
            model = with_oracle(model)
        data_name = config.dataset or config.data_dir
        opened = open_dataset(
            config.data_dir,
            config.dataset,
            config.split,
            batch_size=config.batch_size,
            image_column=config.image_column,
            label_column=config.label_column,
        )
        indices, _ = choose_indices(opened, config.max_samples, hold_out=False, name=data_name)
        images = images_to_read(
            opened,
            model,
            indices=indices,
            batch_size=config.batch_size,
            workers=config.workers,
            name=data_name,
            class_map=read_class_map(config.class_map),
        )
        self.check_evaluated(images, model, listener)
        flops = count_flops(model, name=name)
        models: dict[str, nn.Module] = {"tosa": model}
        beside = None
        if config.compare or self.needs_dense:
            dense = dense_model(model, config.img_size, head=self.reads_head)
            if dense.note:
                listener.say(dense.note)
            models["dense"] = dense.model
            beside = {"weights": dense.weights}
        own = config.selector == "own"
        about = {
            "task": self.name,
            "selector": model.config.selector if own else config.selector,
            "model": name,
            "dataset": name_of(data_name),
            "dataset_samples": None if is_streamed(opened) else len(opened),
            # The oracle runs every layer whole.
            "gmacs": flops.gmacs if own else None,
            "dense_gmacs": flops.dense_gmacs,
            "reduction": flops.reduction if own else None,
            "batch_size": config.batch_size,
            "img_size": list(flops.img_size),
            "dtype": "float32" if config.amp == "no" else config.amp,
        }
        return Trial(models, images, self.measure(model), about, self.about_images(images), beside)

    def check_evaluated(self, images: Images, model: TosaViT, listener: Listener) -> None:
        """Check that images to measure on fit the model."""

    def about_images(self, images: Images) -> dict[str, Any]:
        """What a report says of the images."""
        return {}

    def report(self, trial: Trial, found: Measured[Any], device: str) -> dict[str, Any]:
        """The figures of the model, and those of the dense one."""
        dense = {} if trial.beside is None else {"dense": {**trial.beside, **self.reported(found, "dense")}}
        return {
            **trial.about,
            "samples": found.samples,
            "skipped": found.skipped,
            **trial.conditions,
            **self.reported(found, "tosa"),
            "data_seconds": found.data_seconds,
            **dense,
            "device": device,
        }

    @abstractmethod
    def dense_figures(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """The figures of the dense model of a report."""

    def table(self, report: Mapping[str, Any]) -> Table:
        """The figures with GMACs and images a second; the dense model first."""
        models = []
        if "dense" in report:
            label = "dense" if report["dense"]["weights"] == "source" else "every token"
            speed = report["dense"]["images_per_second"]
            models.append((label, self.dense_figures(report), report["dense_gmacs"], speed))
        label = "oracle" if report["selector"] == "oracle" else "tosa"
        models.append((label, report, report["gmacs"], report["images_per_second"]))
        rows = [
            [
                label,
                *(column.show(figures[key]) for key, column in self.columns.items()),
                figure(gmacs, 3),
                f"{speed:.1f}",
            ]
            for label, figures, gmacs, speed in models
        ]
        names = ["", *(column.with_unit for column in self.columns.values()), "GMACs", "images/s"]
        return Table(f"{report['samples']} images of {report['dataset']}", names, rows)

    def conditions(self, report: Mapping[str, Any]) -> str:
        """What is saved, and how it was measured."""
        saved = "" if report["reduction"] is None else f"{report['reduction']:.1%} fewer MACs. "
        return (
            f"{saved}{report['device']}, {report['dtype']}, batch size {report['batch_size']}; images/s is the model "
            f"alone, loading took {report['data_seconds']:.1f} s more."
        )

    @abstractmethod
    def change_section(self, command: str, done: Mapping[str, Any], whose: str) -> str:
        """What a card says of the figures before and after a command; empty if the task's were not measured.

        Args:
            command: Of `tosa`.
            done: What the model's folder keeps of it.
            whose: Whose final tokens the model was compared with.
        """

    def measured_section(self, measured: Mapping[str, Any]) -> str:
        """What a card says of what `tosa eval` measured."""
        names = ["model", *self.card_titles, "GMACs", "images/s"]
        lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        rows = [("this model", self._cells(measured), measured["gmacs"], measured["images_per_second"])]
        dense = measured.get("dense")
        if dense:
            row = (dense_row(measured), self.dense_cells(measured), measured["dense_gmacs"], dense["images_per_second"])
            rows.insert(0, row)
        lines += [f"| {name} | {' | '.join(cells)} | {gmacs:.3f} | {speed:.1f} |" for name, cells, gmacs, speed in rows]
        return f"{describe_conditions(measured)}{self.measured_words(measured)}\n\n" + "\n".join(lines)

    def measured_words(self, measured: Mapping[str, Any]) -> str:
        """What else a card says of the table, as a sentence with a space before it."""
        return ""

    def dense_cells(self, measured: Mapping[str, Any]) -> list[str]:
        """The figures of the dense model as a card shows them."""
        return self._cells(measured["dense"])

    def _cells(self, figures: Mapping[str, Any]) -> list[str]:
        return [column.show(figures.get(key)) for key, column in self.columns.items()]

    def published(self, measured: Mapping[str, Any]) -> list[EvalResult]:
        """What the Hub's tables are told of what `tosa eval` measured."""
        return []


def dense_row(measured: Mapping[str, Any]) -> str:
    """What a card calls the dense model beside the converted one."""
    return "every token computed" if (measured.get("dense") or {}).get("weights") == "own" else "source"


def finetune_augmentation(config: FinetuneConfig) -> Augmentation:
    """timm's augmentation by the settings."""
    return Augmentation(config.crop_scale, config.hflip, config.color_jitter, config.auto_augment, config.reprob)


def _check_no_maps(name: str, config: EvalConfig) -> None:
    """Check that nothing is said of maps where none are read.

    Raises:
        InputError: If a setting about maps was given.
    """
    options = [option_name(key) for key in ABOUT_MAPS if key in config.named()]
    if options:
        raise InputError(
            f"{name} has no decoder, so no maps are read: leave out {' and '.join(options)}, or train a decoder with "
            f"`tosa finetune {name} --task depth`."
        )
