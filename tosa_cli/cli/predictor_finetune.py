"""What `tosa finetune` does for dense tasks: a model with a decoder, images with maps."""

from pathlib import Path
from typing import Any

from tosa_cli.cli import console
from tosa_cli.cli.predictor import NAMES, measure_predictor
from tosa_cli.cli.training import Job, finish, start_job, tell_images, tell_speed, watched_results
from tosa_cli.data.datasets import split_indices
from tosa_cli.data.formats import FORMATS
from tosa_cli.data.pair_images import PairImages, pairs_to_read
from tosa_cli.data.pairs import open_pairs
from tosa_cli.errors import DataError, InputError
from tosa_cli.hub.predictor import is_predictor, load_predictor, make_predictor
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.predictor import finetune_predictor as run
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.weights import HeldOut, Watch


def finetune_predictor(
    name: str, values: dict[str, Any], output: Path | None, overwrite: bool, resume: bool, json: bool
) -> None:
    """Train a decoder on a converted model or a dense source, and the encoder with frozen selectors.

    Args:
        name: A converted model, a dense source as `tosa convert` takes it, or a model with a decoder to go on with.
        values: Settings of `PredictorConfig`.
        output: Folder to write; None is the model's own if it has a decoder, or else its name with the task.
        overwrite: Replace a model folder that exists.
        resume: Go on from the checkpoint of an interrupted run.
        json: Print the report as JSON.
    """
    job, config = _load(name, values, output, overwrite, resume)
    model: Predictor = job.model
    accelerator = make_accelerator(config, job.tracker_folder)
    images, held_out = _training_pairs(model, config)
    job.start_trackers(accelerator, config)
    encoder = model.encoder
    if isinstance(encoder, TosaViT) and list(encoder.selector_parameters()) and not model.provenance.is_distilled:
        console.warn("The selectors were not trained: run `tosa distill` first, or they select by the layer before.")
    tell_images(f"Finetuning for {config.task} with the decoder {model.config.decoder}", images, held_out)

    def measure() -> HeldOut:
        measured, figures = measure_predictor({"tosa": model}, held_out, model.config, accelerator.device, config)
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
        "measuring_seconds": trained.measuring_seconds,
        "loss": trained.last_loss,
        "history": [{"step": seen.update, **seen.figures} for seen in watch.history],
    }
    if json:
        console.print_json(report)
    else:
        before, after = watch.history[0], watch.best
        console.print_table(
            f"{config.task.capitalize()} on {console.counted(after.samples, 'held-out image')}",
            ["", *(NAMES[key] for key in before.figures)],
            [
                [label, *(f"{value:.4f}" for value in seen.figures.values())]
                for label, seen in (("before", before), ("after", after))
            ],
        )
        tell_speed(trained)
    console.say(f"Wrote {job.folder}.")
    console.next_command("tosa", "eval", job.folder, "--data-dir", "IMAGES", "--data-format", config.data_format)


def _load(
    name: str, values: dict[str, Any], output: Path | None, overwrite: bool, resume: bool
) -> tuple[Job, PredictorConfig]:
    """The model to train, and the settings; a model that has a decoder keeps it."""
    own = Path(name.removeprefix("local-dir:"))
    if is_predictor(name):
        if output is None and not own.is_dir():
            raise InputError(f"{name} is on the Hub: name the folder to write with -o.")
        model = load_predictor(name)
        kept = model.config.to_dict()
        for key, value in kept.items():
            if key in values and values[key] != value:
                raise InputError(f"{name} was trained with {key} {value}, not {values[key]}: leave {key} out.")
        config = PredictorConfig.from_dict({**kept, **values})
        if config.size not in (None, model.img_size):
            model.backbone.set_input_size(config.size)
        folder = output or own
        return start_job(model, folder, overwrite or output is None, resume, "finetune"), config
    config = PredictorConfig.from_dict(values)
    folder = output or Path(f"{_stem(name)}-{config.task}")
    model = make_predictor(name, config.task_config, config.size, config.seed)
    return start_job(model, folder, overwrite, resume, "finetune"), config


def _stem(name: str) -> str:
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return str(path if path.name.strip(".") else path.resolve())
    return path.name.removeprefix("hf-hub:").partition("@")[0].partition(".")[0]


def _training_pairs(model: Predictor, config: PredictorConfig) -> tuple[PairImages, PairImages]:
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
            depth_dir=config.val_depth_dir
            or ("" if config.data_format == "folder" else config.val_dir or config.depth_dir),
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
        held_out=True,
    )
    return images, held_out
