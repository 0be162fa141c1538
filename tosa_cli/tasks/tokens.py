"""What the tasks of converted models without a decoder share: images as timm reads them, and reports."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from tosa_cli.data.datasets import is_streamed, name_of, open_dataset
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.data.opening import choose_indices, open_images
from tosa_cli.device import pick_device
from tosa_cli.errors import InputError
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.names import own_folder
from tosa_cli.hub.original import DenseModel, dense_model
from tosa_cli.measure.config import EvalConfig
from tosa_cli.measure.oracle import with_oracle
from tosa_cli.measure.speed import device_name
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, figure
from tosa_cli.settings import option_name
from tosa_cli.tasks.base import Start, Table, Task
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.finetune import finetune, finetune_augmentation
from tosa_cli.train.loop import TrainReport

ABOUT_MAPS = ("data_format", "split_file", "depth_dir", "depth_scale", "flip")


class TokensTask(Task):
    """A task of a converted model.

    Attributes:
        needs_dense: Whether the dense model is always set beside it.
        reads_head: Whether the guesses of the head are compared, so that the dense model needs one.
        max_held_out: Largest number of held-out images; None takes all.
    """

    settings = FinetuneConfig
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
        )
        self.check_images(images.training, images.held_out, model)
        return images.training, images.held_out

    def check_images(self, training: Images, held_out: Images, model: TosaViT) -> None:
        """Check that images fit the model."""

    def learn(
        self,
        accelerator: Accelerator,
        model: TosaViT,
        images: Images,
        config: FinetuneConfig,
        *,
        teacher: Any,
        **run: Any,
    ) -> TrainReport:
        """Finetune backbone and bypasses, the selectors frozen."""
        return finetune(accelerator, model, images, config, teacher=teacher, **run)

    def about_run(self, config: FinetuneConfig) -> dict[str, Any]:
        """What was learned from."""
        return {"objective": config.objective}

    def evaluate(self, model: TosaViT, name: str, config: EvalConfig, listener: Listener) -> dict[str, Any]:
        """Measure a converted model, beside the dense one where that is asked for."""
        _check_no_maps(name, config)
        if config.selector == "oracle":
            model = with_oracle(model)
        data_name = config.dataset or config.data_dir
        opened = open_dataset(config.data_dir, config.dataset, config.split, batch_size=config.batch_size)
        indices, _ = choose_indices(opened, config.max_samples, hold_out=False, name=data_name)
        images = images_to_read(
            opened, model, indices=indices, batch_size=config.batch_size, workers=config.workers, name=data_name
        )
        self.check_evaluated(images, model, listener)
        flops = count_flops(model, name=name)
        dense = None
        if config.compare or self.needs_dense:
            dense = dense_model(model, config.img_size, head=self.reads_head)
            if dense.note:
                listener.say(dense.note)
        own = config.selector == "own"
        report: dict[str, Any] = {
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
        place = pick_device(config.device)
        with listener.progress("Evaluating") as bar:
            bar.start(-(-images.num_images // config.batch_size), 0)
            how = {"device": place, "amp": config.amp, "strict": config.strict, "advance": lambda n: bar.advance(n, "")}
            figures = self.compare(model, dense, images, **how)
        return {**report, **figures, "device": device_name(place)}

    def check_evaluated(self, images: Images, model: TosaViT, listener: Listener) -> None:
        """Check that images to measure on fit the model."""

    def compare(self, model: TosaViT, dense: DenseModel | None, images: Images, **how: Any) -> dict[str, Any]:
        """Measure a model, and the dense one if there is one: what the report says of them."""
        raise NotImplementedError

    def dense_figures(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """The figures of the dense model of a report."""
        raise NotImplementedError

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
