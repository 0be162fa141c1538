"""What `distill` and `finetune` share around the training loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from tosa_cli.api import save
from tosa_cli.cli import console
from tosa_cli.data.datasets import is_streamed, open_dataset, split_indices
from tosa_cli.data.loading import Augmentation, Images, images_to_read
from tosa_cli.errors import DataError, InputError
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.folder import check_output
from tosa_cli.measure.features import measure_features
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import COMMANDS, Stage
from tosa_cli.train.checkpoint import check_resumable, checkpoint_path, remove_checkpoint
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.distill import DistillReport
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.weights import HeldOut, Watch


@dataclass
class Job:
    """A model to train and where it goes.

    Attributes:
        model: The model: a `TosaViT`, or a `Predictor`.
        folder: Folder to write.
        checkpoint: Where the checkpoint of the run lies.
        overwrite: Whether the folder may be replaced: it is the model's own, or the user said so.
    """

    model: Any
    folder: Path
    checkpoint: Path
    overwrite: bool

    @property
    def tracker_folder(self) -> Path:
        """Where trackers write: beside the model, and never into it, as it is what is pushed."""
        folder = self.folder.resolve()
        return folder.with_name(f"{folder.name}-logs")

    def start_trackers(self, accelerator: Accelerator, config: TrainConfig) -> None:
        """Start the trackers that were asked for."""
        if config.log_with:
            settings = {key: value for key, value in config.to_dict().items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("tosa", config=settings)


def load_for_training(name: str, output: Path | None, overwrite: bool, resume: bool, command: str) -> Job:
    """Load a model to train, and check that the result can be written before any work is done.

    Raises:
        InputError: If the model is on the Hub and no output folder was named.
        OutputError: If the output exists or cannot be written.
        CheckpointError: If there is nothing to resume.
    """
    own = Path(name.removeprefix("local-dir:"))
    if output is None and not own.is_dir():
        if not (own.is_absolute() or name.startswith(".")) and "/" in name:
            raise InputError(f"{name} is on the Hub: name the folder to write with -o.")
        raise InputError(f"There is no model folder {own}. Make one with `tosa convert`, or check the path.")
    folder = output or own
    may_replace = overwrite or output is None or (own.is_dir() and own.resolve() == output.resolve())
    return start_job(load(name), folder, may_replace, resume, command)


def start_job(model: Any, folder: Path, may_replace: bool, resume: bool, command: str) -> Job:
    """Check that the result can be written before any work is done.

    Raises:
        OutputError: If the output exists or cannot be written.
        CheckpointError: If there is nothing to resume.
    """
    check_output(folder, may_replace)
    checkpoint = checkpoint_path(folder, command)
    if resume:
        check_resumable(checkpoint)
    elif checkpoint.exists():
        console.warn(f"{checkpoint} of an unfinished run will be replaced; --resume would go on from it.")
    return Job(model, folder, checkpoint, may_replace)


@dataclass(frozen=True)
class OpenedImages:
    """The images of a run, whose folder was scanned once.

    Attributes:
        training: To train on, shuffled and augmented; None where nothing is trained step by step.
        in_order: The same, in order and not augmented, for what is fitted in closed form; None where nothing is.
        held_out: To measure on.
    """

    training: Any
    in_order: Any
    held_out: Images


def open_images(
    model: TosaViT,
    config: TrainConfig,
    *,
    augment: Augmentation | None,
    in_order: bool = False,
    max_held_out: int | None = None,
) -> OpenedImages:
    """Open training images and held-out images.

    Args:
        model: The model that tells how images are read.
        config: Which images.
        augment: Random changes to the training images; None where nothing is trained step by step: then the first
            `max_samples` images of data that can only be read in order are enough.
        in_order: Whether something is fitted in closed form.
        max_held_out: Largest number of held-out images, evenly spread; None takes all.

    Raises:
        DataError: If they are missing or too few.
    """
    common: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers}
    opened = open_dataset(
        config.data_dir,
        config.dataset,
        config.split,
        training=augment is not None,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    separate = bool(config.val_dir or config.val_split)
    name, streamed = config.dataset or config.data_dir, is_streamed(opened)
    if streamed and not separate:
        raise InputError(
            f"{name} can only be read in order, so no images of it can be held out: name held-out images "
            f"with --val-dir or --val-split."
        )
    max_samples = None if streamed and augment is None else config.max_samples
    indices, held_out_indices = choose_indices(opened, max_samples, hold_out=not separate, name=name)
    training = ordered = None
    if augment is not None:
        training = images_to_read(
            opened, model, indices=indices, seed=config.seed, augment=augment, name=name, **common
        )
    if in_order:
        again = opened
        if streamed and augment is not None:  # its order is shuffled
            again = open_dataset(config.data_dir, config.dataset, config.split, batch_size=config.batch_size)
        first = config.max_samples if streamed else None
        ordered = images_to_read(again, model, indices=indices, first=first, name=name, **common)
    held_out_set = opened
    if separate:
        held_out_set = _open_separate(config, opened)
        held_out_indices = None if is_streamed(held_out_set) else list(range(len(held_out_set)))
    elif not held_out_indices:
        raise DataError(f"{name} holds only one image, but training needs one more to measure on.")
    if held_out_indices is not None and max_held_out is not None:
        chosen, _ = split_indices(len(held_out_indices), max_held_out, hold_out=False)
        held_out_indices = [held_out_indices[position] for position in chosen]
    held_out = images_to_read(held_out_set, model, indices=held_out_indices, name=name, held_out=True, **common)
    return OpenedImages(training, ordered, held_out)


def _open_separate(config: TrainConfig, opened: Any) -> Any:
    """Open held-out images that were named.

    Raises:
        DataError: If they are the training images.
    """
    folder, split = config.val_dir or config.data_dir, config.val_split or "validation"
    kind = "" if config.val_dir else config.dataset
    held_out = open_dataset(folder, kind, split, batch_size=config.batch_size)
    same_root = not kind and held_out.reader.root == getattr(opened.reader, "root", None)
    if (same_root and not config.dataset) or (kind and split == config.split):
        raise DataError(
            f"The held-out images would be the training images: {folder} has no split of its own for "
            f"{split}. Name other images with --val-dir, or leave out --val-split to hold out a share."
        )
    return held_out


def choose_indices(
    opened: Any, max_samples: int | None, hold_out: bool, name: str
) -> tuple[list[int] | None, list[int] | None]:
    """Choose training and held-out images as `split_indices` does; None for data that can only be read in order.

    Raises:
        DataError: If some of the images of such data are asked for.
    """
    if not is_streamed(opened):
        return split_indices(len(opened), max_samples, hold_out=hold_out)
    if max_samples is not None:
        raise DataError(f"{name} can only be read in order, so it has to be read whole: leave out --max-samples.")
    return None, None


def features_held_out(
    model: TosaViT, dense: nn.Module, images: Images, accelerator: Accelerator, config: TrainConfig
) -> HeldOut:
    """Measure how close final tokens are to the dense model's on held-out images; the score is the mean cosine."""
    report = measure_features(model, dense, images, device=accelerator.device, amp=config.amp, strict=config.strict)
    return HeldOut(report.samples, sum(report.cosines.values()) / len(report.cosines), report.cosines)


def watched_results(watch: Watch) -> dict[str, Any]:
    """What the held-out images say of the weights at the start and of those handed back."""
    before, after = watch.history[0], watch.best
    results: dict[str, Any] = {"samples": after.samples}
    if watch.keep_best:
        results["measurements"] = len(watch.candidates)
    for name, value in before.figures.items():
        results |= {f"{name}_before": value, f"{name}_after": after.figures[name]}
    return results


def finish(
    job: Job,
    stage: Stage,
    config: TrainConfig,
    trained: TrainReport | DistillReport,
    held_out: Images,
    results: dict[str, Any],
) -> dict[str, Any]:
    """Write the model folder, then remove the checkpoint, and tell what was skipped; returns the report to show."""
    model = job.model.cpu().eval()
    model.provenance = model.provenance.after(stage, config.recorded(), {COMMANDS[stage]: results})
    save(model, job.folder, overwrite=job.overwrite)
    remove_checkpoint(job.checkpoint)
    skipped = [*trained.failed, *held_out.failed]
    tell_skipped(skipped)
    return {
        "model": str(job.folder),
        "images_per_second": trained.images_per_second,
        "seconds": trained.seconds,
        "updates": trained.updates,
        "skipped": skipped,
        "held_out": results,
    }


def tell_speed(trained: TrainReport) -> None:
    """Tell how long a run took, and how many images a second it trained on."""
    measuring = f", {trained.measuring_seconds:.1f} s of it measuring" if trained.measuring_seconds else ""
    console.say(
        f"{console.counted(trained.updates, 'step')} in {trained.seconds:.1f} s{measuring}; "
        f"{trained.images_per_second:.1f} images/s while training."
    )


def tell_images(doing: str, training: Any, held_out: Images) -> None:
    """Say what is done, on how many images, and how many are held out."""
    console.say(
        f"{doing} on {console.counted(training.num_images, 'image')} of {training.name}; "
        f"{console.counted(held_out.num_images, 'image')} {'is' if held_out.num_images == 1 else 'are'} held out."
    )


def tell_skipped(failed: list[str]) -> None:
    """Name the images that could not be read."""
    if failed:
        console.warn(f"Images that could not be read were skipped, {len(failed)} in all:")
        for name in failed[:10]:
            console.say(f"  {name}")
        if len(failed) > 10:
            console.say(f"  and {len(failed) - 10} more.")
