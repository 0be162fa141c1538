"""What `distill` and `finetune` share around the training loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tosa_cli.cli import console
from tosa_cli.config import Stage
from tosa_cli.errors import InputError
from tosa_cli.hub.checkpoint import is_model_folder, load, save
from tosa_cli.hub.folder import check_output
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.checkpoint import checkpoint_path
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.data import Augmentation, Images, images_to_read, open_dataset, split_indices
from tosa_cli.train.loop import TrainReport


@dataclass
class Job:
    """A model to train and where it goes.

    Attributes:
        model: The model.
        folder: Folder to write.
        checkpoint: Where the checkpoint of the run lies.
        overwrite: Whether the folder may be replaced: it is the model's own, or the user said so.
    """

    model: TosaViT
    folder: Path
    checkpoint: Path
    overwrite: bool

    def start_trackers(self, accelerator: Accelerator, config: TrainConfig) -> None:
        """Start the trackers that were asked for."""
        if config.log_with:
            settings = {key: value for key, value in config.to_dict().items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("tosa", config=settings)


def load_for_training(name: str, output: Path | None, overwrite: bool, command: str) -> Job:
    """Load a model to train, and check that the result can be written before any work is done.

    Raises:
        InputError: If the model is on the Hub and no output folder was named.
        OutputError: If the output exists or cannot be written.
    """
    own = Path(name.removeprefix("local-dir:"))
    if output is None and not own.is_dir():
        if not (own.is_absolute() or name.startswith(".")) and "/" in name:
            raise InputError(f"{name} is on the Hub: name the folder to write with -o.")
        raise InputError(f"There is no model folder {own}. Make one with `tosa convert`, or check the path.")
    folder = output or own
    may_replace = overwrite or output is None or (own.is_dir() and own.resolve() == output.resolve())
    model = load(name)
    if may_replace and folder.is_dir() and any(folder.iterdir()) and not is_model_folder(folder):
        may_replace = False
    check_output(folder, may_replace)
    return Job(model, folder, checkpoint_path(folder, command), may_replace)


def training_images(model: TosaViT, config: TrainConfig, augment: Augmentation) -> tuple[Images, Images]:
    """Open training images and held-out images.

    Raises:
        DataError: If they are missing or too few.
    """
    opened = open_dataset(
        config.data_dir, config.dataset, config.split, training=True, batch_size=config.batch_size, seed=config.seed
    )
    separate = bool(config.val_dir or config.val_split)
    streamed = not hasattr(opened, "__getitem__")
    if streamed and not separate:
        raise InputError(
            f"{config.dataset} can only be read in order, so no images of it can be held out: name "
            f"held-out images with --val-dir or --val-split."
        )
    train_indices: list[int] | None = None
    held_out_indices: list[int] | None = None
    if not streamed:
        train_indices, held_out_indices = split_indices(len(opened), config.max_samples, hold_out=not separate)
    name = config.dataset or config.data_dir
    images = images_to_read(
        opened,
        model,
        indices=train_indices,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        augment=augment,
        name=name,
    )
    if separate:
        folder, split = config.val_dir or config.data_dir, config.val_split or config.split
        kind = "" if config.val_dir else config.dataset
        held_out_set = open_dataset(folder, kind, split, batch_size=config.batch_size)
        if hasattr(held_out_set, "__getitem__"):
            held_out_indices, _ = split_indices(len(held_out_set), None, hold_out=False)
    else:
        held_out_set = open_dataset(config.data_dir, config.dataset, config.split)
        if not held_out_indices:
            raise InputError(f"{name} holds only one image: training needs one more to measure on.")
    held_out = images_to_read(
        held_out_set, model, indices=held_out_indices, batch_size=config.batch_size, workers=config.workers, name=name
    )
    return images, held_out


def finish(job: Job, stage: Stage, config: TrainConfig, results: dict[str, Any], trained: TrainReport) -> None:
    """Write the model folder, then remove the checkpoint; tell what could not be read."""
    command = {"distilled": "distill", "finetuned": "finetune"}[stage]
    model = job.model.cpu().eval()
    kept = {} if stage == "finetuned" else dict(model.provenance.results)
    model.provenance = model.provenance.after(stage, config.to_dict(), {**kept, command: results})
    save(model, job.folder, overwrite=job.overwrite)
    job.checkpoint.unlink(missing_ok=True)
    tell_skipped(trained.failed)


def tell_skipped(failed: list[str]) -> None:
    """Name the images that could not be read."""
    if failed:
        console.warn(f"{len(failed)} images could not be read and were skipped:")
        for name in failed[:10]:
            console.say(f"  {name}")
        if len(failed) > 10:
            console.say(f"  and {len(failed) - 10} more.")
