"""Finetuning a model for a task, its selectors frozen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tosa_cli.data.description import Data
from tosa_cli.data.workers import lost_workers_told
from tosa_cli.errors import ConfigError
from tosa_cli.hub.predictor import task_of
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, Nobody
from tosa_cli.settings import option_name
from tosa_cli.tasks.base import Task
from tosa_cli.tasks.registry import TASKS
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.weights import HeldOut, Watch
from tosa_cli.workflow.job import UNTRAINED, Job, is_same, one_run
from tosa_cli.workflow.run_report import RunReport, watched_results


def finetune(
    model: TosaViT | Predictor | str | Path,
    data: Data | str | Path | None = None,
    config: FinetuneConfig | PredictorConfig | Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> RunReport:
    """Finetune a model: on labels, on the dense model's features, or for depth or segmentation.

    Args:
        model: A converted model or a predictor, which is trained in place; or a folder or Hub id of one. For depth and
            segmentation also a dense source, as `convert` takes it, by its name.
        data: The images, or their folder; None takes what the settings name.
        config: The settings; or those that are named, with the task or the objective, where what a predictor was
            trained with completes them. None finetunes on labels.
        output: Folder to write. None brings a folder that was named to its next stage, or for a new decoder is its name
            with the task; of a model it writes nothing.
        overwrite: Replace a model folder that exists.
        resume: Go on from the checkpoint of an interrupted run.
        listener: Told what is done.

    Returns:
        What was done; the model is in it.

    Raises:
        TosaError: If model, images or settings are wrong, or the training fails; subclass and message say which.
    """
    listener = listener or Nobody()
    values = {**_named(config), **_named(Data(data_dir=str(data)) if isinstance(data, (str, Path)) else data)}
    task = choose_task(model, values)
    start = task.start(model, values, may_be_remote=output is not None)
    for note in start.notes:
        listener.say(note)
    folder = Path(output) if output is not None else start.folder
    own = start.is_own and (output is None or is_same(start.folder, folder))
    job = Job(start.model, "finetuned", folder, overwrite or own, listener)
    with one_run(folder):
        return (job.finished(start.config) if resume else None) or _finetune(job, task, start.config, resume)


def _finetune(job: Job, task: Task, settings: Any, resume: bool) -> RunReport:
    listener = job.listener
    job.check(resume)
    teacher = task.teacher(job.model)
    accelerator = make_accelerator(settings, job.tracker_folder)
    images, held_out = task.open(job.model, settings)
    job.start_trackers(accelerator, settings)
    encoder = job.model.encoder if isinstance(job.model, Predictor) else job.model
    if isinstance(encoder, TosaViT) and list(encoder.selector_parameters()) and not job.model.provenance.is_distilled:
        listener.warn(UNTRAINED)
    job.tell_images(task.doing(settings), images, held_out, resume)
    job.tell_left_out(accelerator, settings, images)
    for note in task.training_notes(images, job.model):
        listener.warn(note)

    def measure() -> HeldOut:
        return task.held_out(job.model, teacher, held_out, accelerator.device, settings)

    watch = Watch(measure, settings.eval_every, keep_best=task.keeps_best or settings.eval_every > 0)
    with lost_workers_told(lambda: job.how_to_go_on), listener.progress("Finetuning") as progress:
        trained = task.learn(
            accelerator,
            job.model,
            images,
            settings,
            teacher=teacher,
            checkpoint=job.checkpoint,
            watch=watch,
            resume=resume,
            progress=progress,
        )
    accelerator.end_training()
    results = {**task.about_results(settings), **watched_results(watch)}
    if watch.keep_best:
        results["best_step"] = watch.best.update
    details = {
        **task.about_run(settings),
        "measuring_seconds": trained.measuring_seconds,
        "loss": trained.last_loss,
        "history": [{"step": seen.update, **seen.figures} for seen in watch.history],
    }
    return job.finish(accelerator, settings, trained, held_out, watch, results, details, task)


def choose_task(model: TosaViT | Predictor | str | Path, values: dict[str, Any]) -> Task:
    """The task that is learned, which is taken out of the settings; by itself it is that of a predictor, or labels.

    Raises:
        ConfigError: If a setting belongs to another task.
    """
    name = values.pop("task", None)
    if name is None and isinstance(model, Predictor):
        name = model.config.task
    if name is None and isinstance(model, (str, Path)):
        name = task_of(str(model))
    if name is None or name == "classification":
        name = "features" if values.get("objective") == "features" else "classification"
    if name not in TASKS:
        raise ConfigError(f"--task must be one of: classification, depth, segmentation; not {name!r}.")
    task = TASKS[name]
    for key in values:
        if key in task.settings.field_names():
            continue
        for other in TASKS.values():
            if key in other.settings.field_names():
                of_labels = other.settings is FinetuneConfig
                valid = "the task classification" if of_labels else "--task depth or --task segmentation"
                asked = name if of_labels else "classification"
                raise ConfigError(
                    f"{option_name(key)} ({values[key]}) goes with {valid}, not with the task {asked}: leave it out."
                )
    return task


def _named(settings: Any) -> dict[str, Any]:
    """The settings that are named: all of a mapping, and of an object those that are not the default."""
    if settings is None or isinstance(settings, Mapping):
        return dict(settings or {})
    named = settings.named()
    return {**named, "task": settings.task} if isinstance(settings, PredictorConfig) else named
