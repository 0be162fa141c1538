"""What `tosa finetune` and `tosa eval` do for dense tasks: a model with a decoder, images with maps."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tosa_cli.api import save
from tosa_cli.cli import console
from tosa_cli.cli.training import Job, finish, start_job, tell_skipped, watched_results
from tosa_cli.errors import DataError, InputError
from tosa_cli.hub.checkpoint import with_results
from tosa_cli.hub.dense import is_dense, load_dense, make_dense
from tosa_cli.measure.dense_flops import count_dense_flops
from tosa_cli.measure.depth import measure_depth
from tosa_cli.measure.segmentation import measure_segmentation
from tosa_cli.measure.speed import device_name
from tosa_cli.model.dense import DensePredictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.task import TaskConfig
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.data import split_indices
from tosa_cli.train.dense import finetune_dense as run
from tosa_cli.train.dense_config import FORMATS, DenseConfig
from tosa_cli.train.dense_data import PairImages, pairs_to_read
from tosa_cli.train.loop import make_accelerator
from tosa_cli.train.pairs import open_pairs
from tosa_cli.train.weights import HeldOut, Watch

if TYPE_CHECKING:
    import torch
    from torch import nn

NAMES = {
    "abs_rel": "Abs Rel",
    "sq_rel": "Sq Rel",
    "rmse": "RMSE",
    "rmse_log": "RMSE log",
    "log10": "log10",
    "d1": "δ<1.25",
    "d2": "δ<1.25²",
    "d3": "δ<1.25³",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}


def finetune_dense(
    name: str, values: dict[str, Any], output: Path | None, overwrite: bool, resume: bool, json: bool
) -> None:
    """Train a decoder on a converted model or a dense source, and the encoder with frozen selectors.

    Args:
        name: A converted model, a dense source as `tosa convert` takes it, or a model with a decoder to go on with.
        values: Settings of `DenseConfig`.
        output: Folder to write; None is the model's own if it has a decoder, or else its name with the task.
        overwrite: Replace a model folder that exists.
        resume: Go on from the checkpoint of an interrupted run.
        json: Print the report as JSON.
    """
    job, config = _load(name, values, output, overwrite, resume)
    model: DensePredictor = job.model
    accelerator = make_accelerator(config, job.tracker_folder)
    images, held_out = _training_pairs(model, config)
    job.start_trackers(accelerator, config)
    console.say(
        f"Finetuning for {config.task} with the decoder {model.config.decoder} on {images.num_images} images of "
        f"{images.name}; {held_out.num_images} images are held out."
    )

    def measure() -> HeldOut:
        measured, figures = _measure({"tosa": model}, held_out, model.config, accelerator.device, config)
        own = figures["tosa"]
        score = -own["abs_rel"] if config.task == "depth" else own["miou"]
        return HeldOut(measured.samples, score, own)

    watch = Watch(measure, config.eval_every, keep_best=config.eval_every > 0)
    with console.progress("Finetuning") as progress:
        trained = run(
            accelerator,
            model,
            images,
            config,
            checkpoint=job.checkpoint,
            watch=watch,
            resume=resume,
            progress=progress,
        )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    results = {"task": config.task, **watched_results(watch)}
    if watch.keep_best:
        results["best_step"] = watch.best.update
    report = {
        **finish(job, "finetuned", config, trained, held_out, results),
        "loss": trained.last_loss,
        "history": [{"step": seen.update, **seen.figures} for seen in watch.history],
    }
    if json:
        console.print_json(report)
    else:
        before, after = watch.history[0], watch.best
        console.print_table(
            f"{config.task.capitalize()} on {after.samples} held-out images",
            ["", *(NAMES[key] for key in before.figures)],
            [
                [label, *(f"{value:.4f}" for value in seen.figures.values())]
                for label, seen in (("before", before), ("after", after))
            ],
        )
        console.say(f"{trained.updates} steps in {trained.seconds:.1f} s, {trained.images_per_second:.1f} images/s.")
    console.say(f"Wrote {job.folder}.")
    console.next_command(f"tosa eval {job.folder} --data-dir IMAGES --data-format {config.data_format}")


def _load(
    name: str, values: dict[str, Any], output: Path | None, overwrite: bool, resume: bool
) -> tuple[Job, DenseConfig]:
    """The model to train, and the settings; a model that has a decoder keeps it."""
    own = Path(name.removeprefix("local-dir:"))
    if is_dense(name):
        if output is None and not own.is_dir():
            raise InputError(f"{name} is on the Hub: name the folder to write with -o.")
        model = load_dense(name)
        kept = model.config.to_dict()
        for key, value in kept.items():
            if key in values and values[key] != value:
                raise InputError(f"{name} was trained with {key} {value}, not {values[key]}: leave {key} out.")
        config = DenseConfig.from_dict({**kept, **values})
        if config.size not in (None, model.img_size):
            model.backbone.set_input_size(config.size)
        folder = output or own
        return start_job(model, folder, overwrite or output is None, resume, "finetune"), config
    config = DenseConfig.from_dict(values)
    folder = output or Path(f"{_stem(name)}-{config.task}")
    return start_job(make_dense(name, config.task_config, config.size), folder, overwrite, resume, "finetune"), config


def _stem(name: str) -> str:
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return str(path)
    return path.name.removeprefix("hf-hub:").partition("@")[0].partition(".")[0]


def _training_pairs(model: DensePredictor, config: DenseConfig) -> tuple[PairImages, PairImages]:
    """Open training images and held-out images with their maps.

    Raises:
        DataError: If they are missing, wrong or too few.
    """
    opened = open_pairs(
        config.data_dir,
        task=config.task,
        data_format=config.data_format,
        split=config.split,
        split_file=config.split_file,
        depth_dir=config.depth_dir,
        depth_scale=config.depth_scale,
    )
    separate = bool(config.val_dir or config.val_split or config.val_split_file)
    train_indices, held_out_indices = split_indices(len(opened), config.max_samples, hold_out=not separate)
    held_out_pairs = opened
    if separate:
        held_out_pairs = open_pairs(
            config.val_dir or config.data_dir,
            task=config.task,
            data_format=config.data_format,
            split=config.val_split or "validation",
            split_file=config.val_split_file,
            depth_dir=config.val_depth_dir or config.val_dir or config.depth_dir,
            depth_scale=config.depth_scale,
        )
        if [held_out_pairs.filename(0), len(held_out_pairs)] == [opened.filename(0), len(opened)]:
            raise DataError(
                f"The held-out images would be the training images of {opened.folder}. Name others with --val-dir, "
                f"--val-split or --val-split-file, or none of these to hold out a share."
            )
        held_out_indices = list(range(len(held_out_pairs)))
    if not held_out_indices:
        raise DataError(f"{opened.folder} holds only one image, but training needs one more to measure on.")
    chosen, _ = split_indices(len(held_out_indices), config.max_watched, hold_out=False)
    images = pairs_to_read(
        opened,
        model,
        model.config,
        data_format=config.data_format,
        img_size=model.img_size,
        batch_size=config.batch_size,
        workers=config.workers,
        indices=train_indices,
        augment=config,
        seed=config.seed,
    )
    held_out = pairs_to_read(
        held_out_pairs,
        model,
        model.config,
        data_format=config.data_format,
        img_size=None if FORMATS[config.data_format].full_size else model.img_size,
        batch_size=config.batch_size,
        workers=config.workers,
        indices=[held_out_indices[position] for position in chosen],
    )
    return images, held_out


@dataclass(frozen=True)
class DenseEvaluation:
    """What `tosa eval` was asked for a model with a decoder; the names are those of its options."""

    model: str
    task: str
    data_dir: str
    data_format: Literal["folder", "nyu", "kitti"]
    split: str
    split_file: str
    depth_dir: str
    depth_scale: float
    max_samples: int | None
    batch_size: int
    workers: int
    img_size: tuple[int, int] | None
    device: Literal["auto", "cpu", "cuda"]
    amp: Literal["no", "bf16", "fp16"]
    flip: bool
    compare: bool
    strict: bool
    update_card: bool
    json: bool


def evaluate_dense(asked: DenseEvaluation) -> None:
    """Measure a model with a decoder on images with maps.

    Images of NYU Depth v2 and KITTI are read whole and keep their size unless one was named, others are brought to the
    size that the model was trained on; the true map always keeps its own.
    """
    model = load_dense(asked.model)
    config, defaults = model.config, FORMATS[asked.data_format]
    if asked.task not in ("auto", config.task):
        raise InputError(f"{asked.model} predicts {config.task}, not {asked.task}: leave out --task.")
    if asked.compare and not isinstance(model.encoder, TosaViT):
        raise InputError(f"The encoder of {asked.model} computes every token already: leave out --compare.")
    pairs = open_pairs(
        asked.data_dir,
        task=config.task,
        data_format=asked.data_format,
        split=asked.split,
        split_file=asked.split_file,
        depth_dir=asked.depth_dir,
        depth_scale=asked.depth_scale,
    )
    indices, _ = split_indices(len(pairs), asked.max_samples, hold_out=False)
    # What counts is the range of the data set, whatever the model was trained for.
    measured_task = (
        config if asked.data_format == "folder" else dataclasses.replace(config, max_depth=defaults.max_depth)
    )
    images = pairs_to_read(
        pairs,
        model,
        measured_task,
        data_format=asked.data_format,
        img_size=asked.img_size or (None if defaults.full_size else model.img_size),
        batch_size=asked.batch_size,
        workers=asked.workers,
        indices=indices,
    )
    first = images.samples[0].image
    size = asked.img_size or (model.img_size if first is None else (first.shape[-2], first.shape[-1]))
    flops = count_dense_flops(model, size)
    place = make_accelerator(TrainConfig(device=asked.device)).device
    models: dict[str, nn.Module] = {"tosa": model}
    if asked.compare:
        models["dense"] = model.with_dense_encoder()
    settings = TrainConfig(amp=asked.amp, strict=asked.strict)
    with console.progress("Evaluating") as bar:
        bar.start(-(-images.num_images // asked.batch_size), 0)
        found, figures = _measure(models, images, measured_task, place, settings, asked.flip, bar.advance)
    tell_skipped(found.skipped)
    report: dict[str, Any] = {
        "task": config.task,
        "decoder": config.decoder,
        "model": asked.model,
        "dataset": images.name,
        "samples": found.samples,
        "skipped": found.skipped,
        **figures["tosa"],
        "images_per_second": found.images_per_second["tosa"],
        "data_seconds": found.data_seconds,
        **flops.figures,
        "flip": asked.flip,
        "batch_size": asked.batch_size,
        "img_size": list(size),
        "dtype": "float32" if asked.amp == "no" else asked.amp,
        "device": device_name(place),
    }
    if config.task == "depth":
        report |= {
            "crop": defaults.crop,
            "min_depth": measured_task.min_depth,
            "max_depth": measured_task.max_depth,
        }
    if asked.compare:
        report["dense"] = {**figures["dense"], "images_per_second": found.images_per_second["dense"]}
    if asked.json:
        console.print_json(report)
    else:
        _show(report, list(figures["tosa"]))
    if asked.update_card:
        _update_card(asked.model, report)


def _measure(
    models: "dict[str, nn.Module]",
    images: PairImages,
    config: TaskConfig,
    device: "torch.device",
    settings: TrainConfig,
    flip: bool = False,
    advance: Any = lambda num_images: None,
) -> tuple[Any, dict[str, dict[str, float]]]:
    """Measure models by their task: the report, and the figures of each by name."""
    common: dict[str, Any] = {
        "flip": flip,
        "device": device,
        "amp": settings.amp,
        "strict": settings.strict,
        "advance": advance,
    }
    report: Any
    if config.task == "depth":
        report = measure_depth(models, images, min_depth=config.min_depth, max_depth=config.max_depth, **common)
    else:
        report = measure_segmentation(models, images, num_labels=config.num_labels, **common)
    return report, {name: dataclasses.asdict(figures) for name, figures in report.models.items()}


def _show(report: dict[str, Any], keys: list[str]) -> None:
    rows = [("tosa", report, report["encoder_gmacs"], report["gmacs"])]
    if "dense" in report:
        rows.insert(0, ("every token", report["dense"], report["dense_encoder_gmacs"], report["dense_gmacs"]))
    console.print_table(
        f"{report['samples']} images of {report['dataset']}",
        ["", *(NAMES[key] for key in keys), "encoder GMACs", "GMACs", "images/s"],
        [
            [
                label,
                *(f"{figures[key]:.4f}" for key in keys),
                f"{encoder:.3f}",
                f"{whole:.3f}",
                f"{figures['images_per_second']:.1f}",
            ]
            for label, figures, encoder, whole in rows
        ],
    )
    counted = ""
    if report["task"] == "depth":
        crop = f"the {report['crop'].capitalize()} crop, " if report["crop"] != "none" else ""
        counted = f" Measured: {crop}{report['min_depth']:g} to {report['max_depth']:g} m, mean over the images."
    height, width = report["img_size"]
    console.say(
        f"{report['encoder_reduction']:.1%} fewer MACs in the encoder, {report['reduction']:.1%} in all.{counted} "
        f"{report['device']}, {report['dtype']}, {height}x{width} pixels, batch size {report['batch_size']}"
        f"{', averaged with the mirrored image' if report['flip'] else ''}."
    )


def _update_card(name: str, report: dict[str, Any]) -> None:
    folder = Path(name.removeprefix("local-dir:"))
    model = load_dense(name)
    # Names of local files and folders are nobody else's business, and the folder may be pushed.
    shown = {**report, "model": model.provenance.base_model, "skipped": len(report["skipped"])}
    with_results(model, "eval", shown)  # type: ignore[arg-type]
    save(model, folder, overwrite=True)
    console.say(f"Wrote the result into {folder / 'README.md'}.")
