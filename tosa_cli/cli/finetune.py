"""`tosa finetune`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tosa_cli.cli import console, whole
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
from tosa_cli.progress import counted
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig

if TYPE_CHECKING:
    from tosa_cli.tasks.base import Task
    from tosa_cli.train.weights import Watch
    from tosa_cli.workflow.run_report import RunReport


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

    The folders at the top are the classes: by name where the model has names for its own, otherwise in natural order.
    With --objective features no labels are read: the final tokens learn to be those of the dense model, and the best
    weights by held-out images are kept, the start included. With --task depth or segmentation a decoder is put on the
    model, or on a dense source, and both learn from images with depth maps or masks (paper 3.3); the result is a folder
    of its own. Otherwise, without -o, the model folder is brought to its next stage, the old weights in place until the
    new ones are whole. A whole model of transformers learns by --objective features alone, from its encoder's tokens.
    """
    values = settings_from("finetune", preset_recipe(preset, recipe), {**settings, "task": task})
    name = resolve_model(model)

    if whole.is_whole(name):
        whole.finetune(name, values, output, overwrite, resume, json)
        return

    from tosa_cli.workflow.finetune import finetune as run

    report = run(name, config=values, output=output, overwrite=overwrite, resume=resume, listener=console)
    if json:
        console.print_json(report.to_dict())
    elif report.watch is not None and report.task is not None:
        _show(report, report.watch, report.task)
    if report.watch is not None:
        tell_best(report.watch)
    console.say(f"Wrote {report.folder}.")
    words = report.task.next_words(report.config) if report.task is not None else []
    console.next_command("tosa", "eval", report.folder, "--data-dir", "IMAGES", *words)


def _show(report: "RunReport", watch: "Watch", task: "Task") -> None:
    before, after = watch.history[0], watch.best
    unit = ", in percent" if any(column.unit == "%" for column in task.columns.values()) else ""
    console.print_table(
        f"{task.measured} on {counted(after.samples, 'held-out image')}{unit}",
        ["", *(task.columns[name].title for name in before.figures)],
        [
            [label, *(task.columns[name].show(value) for name, value in seen.figures.items())]
            for label, seen in (("before", before), ("after", after))
        ],
    )
    speed, seconds = report.images_per_second, report.details["measuring_seconds"]
    measuring = f", {seconds:.1f} s of it measuring" if seconds else ""
    pace = "" if speed is None else f" in {report.seconds:.1f} s{measuring}; {speed:.1f} images/s while training"
    console.say(f"{report.steps}{pace}.")


def tell_best(watch: "Watch") -> None:
    """Tell which weights were kept, if the best ones were."""
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
