"""What the tasks of predictors share: images with maps, a decoder on an encoder, and reports."""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tosa_cli.data.datasets import split_indices
from tosa_cli.data.formats import FORMATS
from tosa_cli.data.images import both_sides
from tosa_cli.data.loading import Images
from tosa_cli.data.pair_images import PairImages, pairs_to_read
from tosa_cli.data.pairs import Pairs, open_pairs
from tosa_cli.device import pick_device
from tosa_cli.errors import DataError, InputError
from tosa_cli.hub.names import own_folder, stem_of
from tosa_cli.hub.predictor import is_predictor, load_predictor, make_predictor
from tosa_cli.measure.config import EvalConfig
from tosa_cli.measure.speed import device_name
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.predictor_flops import count_predictor_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener
from tosa_cli.task import PredictorTask as PredictorTaskName
from tosa_cli.task import TaskConfig
from tosa_cli.tasks.base import Start, Table, Task
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.predictor import finetune_predictor
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.train.weights import HeldOut


class PredictorTask(Task):
    """A task of predictors: something for every pixel."""

    settings = PredictorConfig

    def start(self, model: Any, values: Mapping[str, Any], may_be_remote: bool) -> Start:
        """Load a predictor to go on with, or put a new decoder on a converted model or a dense source."""
        values = {**values, "task": self.name}
        if isinstance(model, Predictor):
            return Start(model, _go_on("The model", model, values), None, is_own=True)
        if not isinstance(model, (str, Path)):
            raise InputError(
                f"A {type(model).__name__} has no decoder: save it, and name its folder to put a decoder on it."
            )
        name = str(model)
        if is_predictor(name):
            own = own_folder(name, may_be_remote)
            loaded = load_predictor(name)
            return Start(loaded, _go_on(name, loaded, values), own, is_own=True)
        config = PredictorConfig.from_dict(values)
        notes: list[str] = []
        made = make_predictor(
            name,
            config.task_config,
            config.size,
            config.seed,
            architecture=config.architecture,
            weights_key=config.weights_key,
            tell=notes.append,
        )
        return Start(made, config, Path(f"{_stem(name)}-{self.name}"), is_own=False, notes=tuple(notes))

    def open(self, model: Predictor, config: PredictorConfig) -> tuple[Images, Images]:
        """Open training images and held-out images with their maps."""
        opened = _pairs_of(config, config.task)
        separate = bool(config.val_dir or config.val_split or config.val_split_file)
        train_indices, held_out_indices = split_indices(len(opened), config.max_samples, hold_out=not separate)
        held_out_pairs = opened
        if separate:
            held_out_pairs = _open_separate(config, opened)
            held_out_indices = list(range(len(held_out_pairs)))
        if not held_out_indices:
            raise DataError(f"{opened.folder} holds only one image, but training needs one more to measure on.")
        chosen, _ = split_indices(len(held_out_indices), config.max_watched, hold_out=False)
        common: dict[str, Any] = {name: getattr(config, name) for name in ("data_format", "batch_size", "workers")}
        images = pairs_to_read(
            opened,
            model,
            model.config,
            img_size=model.img_size,
            indices=train_indices,
            augment=config,
            seed=config.seed,
            **common,
        )
        held_out = pairs_to_read(
            held_out_pairs,
            model,
            model.config,
            img_size=None if FORMATS[config.data_format].full_size else model.img_size,
            indices=[held_out_indices[position] for position in chosen],
            held_out=True,
            **common,
        )
        return images, held_out

    def learn(
        self,
        accelerator: Accelerator,
        model: Predictor,
        images: Images,
        config: PredictorConfig,
        *,
        teacher: Any,
        **run: Any,
    ) -> TrainReport:
        """Finetune the decoder, and the encoder but for its selectors."""
        return finetune_predictor(accelerator, model, images, config, **run)

    @abstractmethod
    def measure(self, models: dict[str, nn.Module], images: PairImages, config: TaskConfig, **how: Any) -> Any:
        """Measure models on images with maps."""

    @abstractmethod
    def score(self, figures: Mapping[str, float]) -> float:
        """The one number, larger is better, by which weights are ranked."""

    def held_out(
        self, model: Predictor, teacher: Any, images: Any, device: torch.device, config: PredictorConfig
    ) -> HeldOut:
        """The figures of the maps."""
        report = self.measure(
            {"tosa": model}, images, model.config, device=device, amp=config.amp, strict=config.strict
        )
        figures = dataclasses.asdict(report.models["tosa"])
        return HeldOut(report.samples, self.score(figures), figures)

    def doing(self, config: PredictorConfig) -> str:
        """What is learned, and with which decoder."""
        return f"Finetuning for {self.name} with the decoder {config.decoder}"

    def about_results(self, config: PredictorConfig) -> dict[str, Any]:
        """The task."""
        return {"task": self.name}

    def next_words(self, config: PredictorConfig) -> list[str]:
        """The same form of data."""
        return ["--data-format", config.data_format]

    def measured_config(self, config: TaskConfig, data_format: str) -> TaskConfig:
        """What counts of the maps of a data format."""
        return config

    def about_evaluation(self, config: TaskConfig, data_format: str) -> dict[str, Any]:
        """What a report says of what counted."""
        return {}

    def evaluate(self, model: Predictor, name: str, config: EvalConfig, listener: Listener) -> dict[str, Any]:
        """Measure a predictor on images with maps.

        Images of NYU Depth v2 and KITTI are read whole and keep their size unless one was named, others are brought to
        the size that the model was trained on; the true map always keeps its own.
        """
        if config.compare and not isinstance(model.encoder, TosaViT):
            raise InputError(f"The encoder of {name} computes every token already: leave out --compare.")
        pairs = _pairs_of(config, model.config.task)
        asked_size, counted = both_sides(config.img_size), self.measured_config(model.config, config.data_format)
        images = pairs_to_read(
            pairs,
            model,
            counted,
            data_format=config.data_format,
            img_size=asked_size or (None if FORMATS[config.data_format].full_size else model.img_size),
            batch_size=config.batch_size,
            workers=config.workers,
            indices=split_indices(len(pairs), config.max_samples, hold_out=False)[0],
        )
        first = images.samples[0].image
        size = asked_size or (model.img_size if first is None else (first.shape[-2], first.shape[-1]))
        place = pick_device(config.device)
        models: dict[str, nn.Module] = {"tosa": model}
        if config.compare:
            models["dense"] = model.with_dense_encoder()
        with listener.progress("Evaluating") as bar:
            bar.start(-(-images.num_images // config.batch_size), 0)
            found = self.measure(
                models,
                images,
                counted,
                flip=config.flip,
                device=place,
                amp=config.amp,
                strict=config.strict,
                advance=lambda num_images: bar.advance(num_images, ""),
            )
        figures = {key: dataclasses.asdict(value) for key, value in found.models.items()}
        report: dict[str, Any] = {
            "task": self.name,
            "decoder": model.config.decoder,
            "model": name,
            "dataset": images.name,
            "dataset_samples": len(pairs),
            "samples": found.samples,
            "skipped": found.skipped,
            **figures["tosa"],
            "images_per_second": found.images_per_second["tosa"],
            "data_seconds": found.data_seconds,
            **count_predictor_flops(model, size).figures,
            "flip": config.flip,
            "batch_size": config.batch_size,
            "img_size": list(size),
            "dtype": "float32" if config.amp == "no" else config.amp,
            "device": device_name(place),
            **self.about_evaluation(counted, config.data_format),
        }
        if config.compare:
            report["dense"] = {**figures["dense"], "images_per_second": found.images_per_second["dense"]}
        return report

    def table(self, report: Mapping[str, Any]) -> Table:
        """The figures with GMACs and images a second; the model with every token first."""
        label = "tosa" if _saves(report) else "dense"
        models = [(label, report, report["encoder_gmacs"], report["gmacs"])]
        if "dense" in report:
            models.insert(0, ("every token", report["dense"], report["dense_encoder_gmacs"], report["dense_gmacs"]))
        rows = [
            [
                label,
                *(column.show(figures[key]) for key, column in self.columns.items()),
                f"{encoder:.3f}",
                f"{whole:.3f}",
                f"{figures['images_per_second']:.1f}",
            ]
            for label, figures, encoder, whole in models
        ]
        names = ["", *(column.with_unit for column in self.columns.values()), "encoder GMACs", "GMACs", "images/s"]
        return Table(f"{report['samples']} images of {report['dataset']}", names, rows)

    def counted(self, report: Mapping[str, Any]) -> str:
        """What of the maps was measured, as a sentence with a space behind it; empty if all was."""
        return ""

    def conditions(self, report: Mapping[str, Any]) -> str:
        """What is saved, and how it was measured."""
        (height, width), saved = report["img_size"], ""
        if _saves(report):
            saved = f"{report['encoder_reduction']:.1%} fewer MACs in the encoder, {report['reduction']:.1%} in all. "
        return (
            f"{saved}{self.counted(report)}{report['device']}, {report['dtype']}, {height}x{width} pixels, batch size "
            f"{report['batch_size']}{', averaged with the mirrored image' if report['flip'] else ''}."
        )


def _saves(report: Mapping[str, Any]) -> bool:
    return report["encoder_gmacs"] != report["dense_encoder_gmacs"]


def _go_on(name: str, model: Predictor, values: Mapping[str, Any]) -> PredictorConfig:
    """The settings to go on with a predictor, which keeps its task and its decoder.

    Raises:
        InputError: If another is named.
    """
    kept = model.config.to_dict()
    for key, value in kept.items():
        if key in values and values[key] != value:
            raise InputError(f"{name} was trained with {key} {value}, not {values[key]}: leave {key} out.")
    config = PredictorConfig.from_dict({**kept, **values})
    if config.size not in (None, model.img_size):
        model.set_input_size(config.size)
    return config


def _stem(name: str) -> str:
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return str(path if path.name.strip(".") else path.resolve())
    return stem_of(name).partition(".")[0]


def _pairs_of(settings: PredictorConfig | EvalConfig, task: PredictorTaskName) -> Pairs:
    """Open the images with maps that settings name."""
    names = ("data_format", "split", "split_file", "depth_dir", "depth_scale")
    return open_pairs(settings.data_dir, task=task, **{name: getattr(settings, name) for name in names})


def _open_separate(config: PredictorConfig, opened: Pairs) -> Pairs:
    """Open held-out images that were named.

    Raises:
        DataError: If they are the training images.
    """
    folder_of_maps = "" if config.data_format == "folder" else config.val_dir or config.depth_dir
    held_out = open_pairs(
        config.val_dir or config.data_dir,
        task=config.task,
        data_format=config.data_format,
        split=config.val_split or "validation",
        split_file=config.val_split_file,
        depth_dir=config.val_depth_dir or folder_of_maps,
        depth_scale=config.depth_scale,
    )
    if [held_out.filename(0), len(held_out)] == [opened.filename(0), len(opened)]:
        raise DataError(
            f"The held-out images would be the training images of {opened.folder}. Name others with --val-dir, "
            f"--val-split or --val-split-file, or none of these to hold out a share."
        )
    return held_out
