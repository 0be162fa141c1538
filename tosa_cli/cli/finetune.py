"""`tosa finetune`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tosa_cli.cli import console
from tosa_cli.cli.distill import ResumeOption
from tosa_cli.cli.options import (
    JsonOption,
    ModelArgument,
    OutputOption,
    OverwriteOption,
    PresetOption,
    RecipeOption,
    preset_recipe,
    resolve_model,
    settings_from,
    with_settings,
)
from tosa_cli.errors import ConfigError, DataError, InputError
from tosa_cli.settings import option_name
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from tosa_cli.data.loading import Images
    from tosa_cli.model.tosa_vit import TosaViT
    from tosa_cli.train.weights import HeldOut, Watch

MAX_WATCHED = 200
"""Held-out images for features: they are measured often, and so many tell the cosines to the third decimal."""

NAMES = {"top1": "top-1", "top5": "top-5", "patch_cosine": "patch cosine", "class_cosine": "class cosine"}


@with_settings(FinetuneConfig, PredictorConfig)
def finetune(
    settings: dict[str, Any],
    model: ModelArgument = None,
    task: Annotated[
        Literal["classification", "depth", "segmentation"] | None,
        typer.Option(
            help="What is learned. depth and segmentation put a decoder on the model, or on a dense source, and train "
            "both. Default: classification, or the task of a model that has a decoder.",
            show_default=False,
        ),
    ] = None,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    json: JsonOption = False,
) -> None:
    """Finetune the model, its selectors frozen (paper 2.3): on labels, or on any images with --objective features.

    Class folders are the labels, in alphabetical order, as in ImageNet. With --objective features no labels are read:
    the final tokens learn to be those of the dense model, and the best weights by held-out images are kept, the start
    included. With --task depth or segmentation a decoder is put on the model, or on a dense source, and both learn from
    images with depth maps or masks (paper 3.3); the result is a folder of its own. Otherwise, without -o, the model
    folder is brought to its next stage, the old weights in place until the new ones are whole.
    """
    values = settings_from("finetune", preset_recipe(preset, recipe), {**settings, "task": task})
    name = resolve_model(model)

    from tosa_cli.hub.predictor import task_of

    chosen = values.pop("task", None) or task_of(name) or "classification"
    check_settings(values, chosen)
    if chosen != "classification":
        from tosa_cli.cli.predictor_finetune import finetune_predictor

        finetune_predictor(name, {**values, "task": chosen}, output, overwrite, resume, json)
        return
    config = FinetuneConfig.from_dict(values)

    from tosa_cli.cli.training import finish, load_for_training, open_images, tell_images, tell_speed
    from tosa_cli.train.finetune import finetune as run
    from tosa_cli.train.finetune import finetune_augmentation
    from tosa_cli.train.processes import make_accelerator
    from tosa_cli.train.weights import Watch

    job = load_for_training(name, output, overwrite, resume, "finetune")
    features = config.objective == "features"
    teacher = _teacher(job.model) if features else None
    accelerator = make_accelerator(config, job.tracker_folder)
    images = open_images(
        job.model, config, augment=finetune_augmentation(config), max_held_out=MAX_WATCHED if features else None
    )
    train_images, held_out = images.training, images.held_out
    if not features:
        _check_classes(train_images, held_out, job.model.num_classes)
    job.start_trackers(accelerator, config)
    if list(job.model.selector_parameters()) and not job.model.provenance.is_distilled:
        console.warn("The selectors were not trained: run `tosa distill` first, or they select by the layer before.")
    tell_images("Finetuning", train_images, held_out)

    def measure() -> "HeldOut":
        return _measure(job.model, teacher, held_out, accelerator, config)

    watch = Watch(measure, config.eval_every, keep_best=features or config.eval_every > 0)
    with console.progress("Finetuning") as progress:
        trained = run(
            accelerator,
            job.model,
            train_images,
            config,
            checkpoint=job.checkpoint,
            teacher=teacher,
            watch=watch,
            resume=resume,
            progress=progress,
        )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    report = {
        **finish(job, "finetuned", config, trained, held_out, _results(watch)),
        "objective": config.objective,
        "measuring_seconds": trained.measuring_seconds,
        "loss": trained.last_loss,
        "history": [{"step": seen.update, **seen.figures} for seen in watch.history],
    }
    if json:
        console.print_json(report)
    else:
        _show(watch, features)
        tell_speed(trained)
    _tell_best(watch)
    console.say(f"Wrote {job.folder}.")
    measured = ["--task", "features"] if features else ["--compare"]
    console.next_command("tosa", "eval", job.folder, "--data-dir", "IMAGES", *measured)


def check_settings(values: dict[str, Any], task: str) -> None:
    """Check that no setting belongs to another task.

    Raises:
        ConfigError: Naming the first one that does.
    """
    dense = task != "classification"
    fields, others = (PredictorConfig, FinetuneConfig) if dense else (FinetuneConfig, PredictorConfig)
    for key in values:
        if key not in fields.field_names() and key in others.field_names():
            valid = "the task classification" if dense else "--task depth or --task segmentation"
            raise ConfigError(
                f"{option_name(key)} ({values[key]}) goes with {valid}, not with the task {task}: leave it out."
            )


def _teacher(model: "TosaViT") -> "nn.Module":
    """A copy of the dense model that a converted one came from.

    Raises:
        InputError: If it is needed from its source, which cannot be loaded any more.
    """
    import copy

    from tosa_cli.hub.original import dense_model

    try:
        dense = dense_model(model)
    except InputError as error:
        raise InputError(
            f"The objective features learns from the dense source {model.provenance.source or 'model'}, which cannot "
            f"be loaded: bring it back, or finetune a model that was not finetuned before. {error.__cause__ or error}"
        ) from error
    if dense.lost:
        raise InputError(
            f"The objective features learns from the dense source, whose weights are lost. {dense.lost} Finetune with "
            f"labels, or take a model that was not finetuned before."
        )
    return copy.deepcopy(dense.model).eval()


def _check_classes(train_images: "Images", held_out: "Images", num_classes: int) -> None:
    from tosa_cli.data.labels import check_labels

    check_labels(train_images, num_classes)
    check_labels(held_out, num_classes)
    if train_images.classes != held_out.classes:
        raise DataError(f"The held-out images of {held_out.name} are of other classes than {train_images.name}.")


def _measure(
    model: "TosaViT", teacher: "nn.Module | None", images: "Images", accelerator: "Accelerator", config: FinetuneConfig
) -> "HeldOut":
    """Measure a model on held-out images: by its final tokens where there is a teacher, by its guesses otherwise."""
    from tosa_cli.cli.training import features_held_out
    from tosa_cli.measure.accuracy import measure_accuracy
    from tosa_cli.train.weights import HeldOut

    if teacher is not None:
        return features_held_out(model, teacher, images, accelerator, config)
    report = measure_accuracy({"tosa": model}, images, device=accelerator.device, amp=config.amp, strict=config.strict)
    found = report.models["tosa"]
    return HeldOut(report.samples, found.top1, {"top1": found.top1, "top5": found.top5})


def _results(watch: "Watch") -> dict[str, Any]:
    from tosa_cli.cli.training import watched_results

    best_step = {"best_step": watch.best.update} if watch.keep_best else {}
    return {**watched_results(watch), **best_step}


def _show(watch: "Watch", features: bool) -> None:
    before, after = watch.history[0], watch.best
    decimals = 4 if features else 2
    measured = "Final tokens beside the dense model's" if features else "Accuracy"
    console.print_table(
        f"{measured} on {console.counted(after.samples, 'held-out image')}{'' if features else ', in percent'}",
        ["", *(NAMES[name] for name in before.figures)],
        [
            [label, *(f"{value:.{decimals}f}" for value in seen.figures.values())]
            for label, seen in (("before", before), ("after", after))
        ],
    )


def _tell_best(watch: "Watch") -> None:
    if not watch.keep_best:
        return
    if watch.best.update == 0:
        console.warn(
            "No step was better than the start on the held-out images: the weights written are exactly those before. "
            "Try a smaller --lr, or more images."
        )
    else:
        console.say(
            f"Kept the weights after step {watch.best.update}, the best of {len(watch.candidates)} measurements on the "
            f"held-out images."
        )
