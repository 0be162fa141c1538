"""Measuring a model by its task."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tosa_cli.api import load, save
from tosa_cli.data.description import Data, read_from
from tosa_cli.data.workers import lost_workers_told
from tosa_cli.errors import InputError, MeasureError
from tosa_cli.hub.writing import alone
from tosa_cli.measure.config import EvalConfig
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, Nobody, tell_skipped
from tosa_cli.tasks.base import Table, Task
from tosa_cli.tasks.predictor import PredictorTask
from tosa_cli.tasks.registry import TASKS


@dataclass(frozen=True)
class EvaluateReport:
    """What was measured of a model.

    Attributes:
        task: By what task.
        values: The report as plain JSON values.
    """

    task: Task
    values: Mapping[str, Any]

    @property
    def table(self) -> Table:
        """What is shown of it."""
        return self.task.table(self.values)

    @property
    def conditions(self) -> str:
        """How it was measured, in words."""
        return self.task.conditions(self.values)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dict(self.values)


def evaluate(
    model: TosaViT | Predictor | str | Path,
    data: Data | str | Path | None = None,
    config: EvalConfig | None = None,
    *,
    listener: Listener | None = None,
) -> EvaluateReport:
    """Measure a model: accuracy on labels, cosines of final tokens to the dense model's, or errors of maps.

    Args:
        model: A converted model or a predictor, or its folder or Hub id.
        data: The images, or their folder; None takes what the settings name.
        config: The settings, with the task; by itself it is that of a predictor, or what the model has a head for.
        listener: Told what is done.

    Raises:
        TosaError: If model, images or settings are wrong or do not fit; the subclass and the message say which.
    """
    from tosa_cli.hub.predictor import is_predictor

    listener = listener or Nobody()
    config = read_from(config or EvalConfig(), data)
    named = isinstance(model, (str, Path))
    has_decoder = is_predictor(str(model)) if isinstance(model, (str, Path)) else isinstance(model, Predictor)
    name = str(model) if named else "the model"
    _check_kind(name, config, has_decoder)
    size = None if has_decoder else config.img_size
    loaded = load(model, img_size=size) if isinstance(model, (str, Path)) else model
    if not named and size is not None:
        raise InputError("The image size of a model that is loaded is its own: load it at another with img_size.")
    task = _task_of(loaded, name, config)
    with lost_workers_told():
        values = task.evaluate(loaded, name, config, listener)
    tell_skipped(values["skipped"], listener)
    _check_finite(values, task, name)
    return EvaluateReport(task, values)


def record(report: EvaluateReport, folder: str | Path, listener: Listener | None = None) -> None:
    """Write what was measured into the card of a model's folder.

    Raises:
        InputError: If it was not measured by the model's own selector.
    """
    from tosa_cli.hub.card import why_unpublished

    listener = listener or Nobody()
    with alone(Path(folder)):
        model = load(folder)
        # Names of local files and folders are nobody else's business, and the folder may be pushed.
        values = {**report.values, "model": model.provenance.base_model, "skipped": len(report.values["skipped"])}
        results = {**model.provenance.results, "eval": values}
        model.provenance = dataclasses.replace(model.provenance, results=results)
        save(model, folder, overwrite=True)
    listener.say(f"Wrote the result into {Path(folder) / 'README.md'}.")
    reason = why_unpublished(model, values) if isinstance(model, TosaViT) else None
    if reason and report.task is TASKS["classification"]:
        listener.say(f"It stands in its text and not in the card's metadata, which the Hub shows: {reason}.")


def _check_finite(values: Mapping[str, Any], task: Task, name: str) -> None:
    """Check that there is something to tell.

    Raises:
        MeasureError: If a figure is not a number.
    """
    for figures, called in ((values, name), (values.get("dense") or {}, f"the dense model of {name}")):
        wrong = [key for key in task.columns if figures.get(key) is not None and not math.isfinite(figures[key])]
        if wrong:
            raise MeasureError(
                f"There is no {task.columns[wrong[0]].title} of {called}: values that it is made of are not finite. "
                f"Check its weights and the data, and leave out --amp."
            )


def _check_kind(name: str, config: EvalConfig, has_decoder: bool) -> None:
    """Check that the settings fit a model with a decoder, or one without.

    Raises:
        InputError: If they do not.
    """
    for_maps = isinstance(TASKS.get(config.task), PredictorTask)
    if has_decoder and (config.dataset or config.selector == "oracle" or (config.task != "auto" and not for_maps)):
        raise InputError(
            f"{name} is a model with a decoder: it is measured on --data-dir by its own selector, and --dataset, "
            f"--selector oracle and --task {config.task} do not go with it: leave them out."
        )
    if for_maps and not has_decoder:
        raise InputError(f"{name} has no decoder: train one with `tosa finetune {name} --task {config.task}`.")


def _task_of(model: Any, name: str, config: EvalConfig) -> Task:
    if isinstance(model, Predictor):
        own = model.config.task
        if config.task not in ("auto", own):
            raise InputError(f"{name} predicts {own}, not {config.task}: leave out --task.")
        return TASKS[own]
    if config.task != "auto":
        return TASKS[config.task]
    return TASKS["classification" if model.num_classes else "features"]
