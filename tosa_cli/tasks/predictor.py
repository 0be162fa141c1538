"""What the tasks of predictors share: images with maps, a decoder on an encoder, and reports."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from tosa_cli.data.datasets import split_indices
from tosa_cli.data.formats import FORMATS
from tosa_cli.data.images import both_sides
from tosa_cli.data.loading import Images
from tosa_cli.data.pair_images import pairs_to_read
from tosa_cli.errors import InputError
from tosa_cli.hub.image_settings import check_pixels
from tosa_cli.hub.names import own_folder, stem_of
from tosa_cli.hub.predictor import is_predictor, load_predictor, make_predictor
from tosa_cli.measure.config import EvalConfig
from tosa_cli.measure.evaluation import Figures, Measure, Measured
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.predictor_flops import count_predictor_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener
from tosa_cli.source_config import PixelSettings
from tosa_cli.task import TaskConfig
from tosa_cli.tasks.base import Start, Table, Task, Trial
from tosa_cli.tasks.predictor_data import open_for_training, pairs_of
from tosa_cli.train.finetune import Learned
from tosa_cli.train.predictor import PredictorObjective, predictor_groups, predictor_parts
from tosa_cli.train.predictor_config import PredictorConfig


class MapMeasure(Measure[Figures]):
    """A measure of maps.

    Args:
        flip: Average each map with that of the mirrored image.
    """

    def __init__(self, flip: bool) -> None:
        self.flip = flip

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The model, averaged if that was asked for."""
        return flip_averaged(model) if self.flip else model


def flip_averaged(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A forward pass from images (B, C, height, width) to maps that is averaged with that of the mirrored images."""

    def run(images: Tensor) -> Tensor:
        return (forward(images) + forward(images.flip(-1)).flip(-1)) / 2

    return run


class PredictorTask(Task):
    """A task of predictors: something for every pixel.

    Attributes:
        pipeline: What the Hub calls the task.
    """

    settings = PredictorConfig
    pipeline: ClassVar[str]

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
            pixels=PixelSettings(mean=config.mean, std=config.std),
            tell=notes.append,
        )
        return Start(made, config, Path(f"{_stem(name)}-{self.name}"), is_own=False, notes=tuple(notes))

    def open(self, model: Predictor, config: PredictorConfig) -> tuple[Images, Images]:
        """Open training images and held-out images with their maps."""
        return open_for_training(model, config)

    def objective(self, model: Predictor, images: Images, config: PredictorConfig, teacher: Any) -> Learned:
        """The loss of the maps: the decoder trains, and the encoder but for its selectors."""
        frozen = config.freeze_encoder
        objective = PredictorObjective(model, self.loss, frozen).train()
        groups = predictor_groups(model, config)
        return Learned(objective, predictor_parts(model, frozen), groups, recompute=not frozen)

    @abstractmethod
    def loss(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """The loss of what a model predicts (B, channels, height, width), from maps (B, height, width)."""

    @abstractmethod
    def measure_maps(self, config: TaskConfig, flip: bool) -> Measure[Any]:
        """What is measured of the maps of models.

        Args:
            config: What counts.
            flip: Average each map with that of the mirrored image.
        """

    def measure(self, model: Predictor) -> Measure[Any]:
        """What is measured of a model's maps on its own terms."""
        return self.measure_maps(model.config, flip=False)

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

    def read_as_trained(self, model: Predictor, name: str, config: EvalConfig, listener: Listener) -> EvalConfig:
        """The settings of an evaluation, with what maps were read by in training where they do not say it."""
        return config

    def trial(self, model: Predictor, name: str, config: EvalConfig, listener: Listener) -> Trial:
        """Open images with maps.

        Images of NYU Depth v2 and KITTI are read whole and keep their size unless one was named, others are brought to
        the size that the model was trained on; the true map always keeps its own.
        """
        if config.compare and not isinstance(model.encoder, TosaViT):
            raise InputError(f"The encoder of {name} computes every token already: leave out --compare.")
        config = self.read_as_trained(model, name, config, listener)
        pairs = pairs_of(config, model.config.task)
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
        models: dict[str, nn.Module] = {"tosa": model}
        if config.compare:
            models["dense"] = model.with_dense_encoder()
        about = {
            "task": self.name,
            "decoder": model.config.decoder,
            "model": name,
            "dataset": images.name,
            "dataset_samples": len(pairs),
        }
        conditions = {
            **count_predictor_flops(model, size).figures,
            "flip": config.flip,
            "batch_size": config.batch_size,
            "img_size": list(size),
            "dtype": "float32" if config.amp == "no" else config.amp,
        }
        return Trial(
            models,
            images,
            self.measure_maps(counted, config.flip),
            about,
            conditions,
            beside={} if config.compare else None,
            counted=self.about_evaluation(counted, config.data_format),
        )

    def report(self, trial: Trial, found: Measured[Any], device: str) -> dict[str, Any]:
        """The figures of the model, and those of the same one with every token computed."""
        dense = {} if trial.beside is None else {"dense": self.reported(found, "dense")}
        return {
            **trial.about,
            "samples": found.samples,
            "skipped": found.skipped,
            **self.reported(found, "tosa"),
            "data_seconds": found.data_seconds,
            **trial.conditions,
            "device": device,
            **trial.counted,
            **dense,
        }

    @abstractmethod
    def predicts(self, config: TaskConfig) -> str:
        """What a model predicts, in the words of its card."""

    def counted_on_card(self, measured: Mapping[str, Any]) -> str:
        """What of the maps `tosa eval` measured, as a sentence of a card; empty if all was."""
        return ""

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
        ConfigError: If its images are put through something else.
    """
    kept = model.config.to_dict()
    for key, value in kept.items():
        if key in values and values[key] != value:
            raise InputError(f"{name} was trained with {key} {value}, not {values[key]}: leave {key} out.")
    config = PredictorConfig.from_dict({**kept, **values})
    check_pixels(model, PixelSettings(mean=config.mean, std=config.std), name)
    if config.size not in (None, model.img_size):
        model.set_input_size(config.size)
    return config


def _stem(name: str) -> str:
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return str(path if path.name.strip(".") else path.resolve())
    return stem_of(name).partition(".")[0]
