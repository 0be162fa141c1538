"""Distilling a model: its selectors train, its bypasses are fitted, and a fit that does not help is not kept."""

import math
from pathlib import Path
from typing import Any

from tosa_cli.data.description import Data, read_from
from tosa_cli.data.opening import open_images
from tosa_cli.data.workers import lost_workers_told
from tosa_cli.errors import TrainingError
from tosa_cli.hub.names import own_folder
from tosa_cli.measure.selectors import SelectorReport, measure_selectors
from tosa_cli.methods import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, Nobody
from tosa_cli.tasks.registry import TASKS
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.distill import DistillReport, check_trainable, distill_augmentation
from tosa_cli.train.distill import distill as train_and_fit
from tosa_cli.train.processes import MainProcess, make_accelerator
from tosa_cli.train.weights import HeldOut, Watch
from tosa_cli.workflow.job import Job, is_same, one_run
from tosa_cli.workflow.run_report import RunReport, watched_results


def distill(
    model: TosaViT | str | Path,
    data: Data | str | Path | None = None,
    config: DistillConfig | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> RunReport:
    """Train the selectors of a model and fit its bypasses on any images; no labels are read.

    The fit is dropped if it takes the final tokens of held-out images away from the dense model's, by the differences
    image by image.

    Args:
        model: A converted model, which is trained in place, or its folder or Hub id.
        data: The images, or their folder; None takes what the settings name.
        config: The settings; None takes the defaults.
        output: Folder to write. None brings a folder that was named to its next stage, and of a model writes nothing.
        overwrite: Replace a model folder that exists.
        resume: Go on from the checkpoint of an interrupted run.
        listener: Told what is done.

    Returns:
        What was done; the model is in it.

    Raises:
        TosaError: If model, images or settings are wrong, or the training fails; subclass and message say which.
    """
    from tosa_cli.hub.checkpoint import load

    listener = listener or Nobody()
    config = read_from(config or DistillConfig(), data)
    own = own_folder(model, may_be_remote=output is not None)
    folder = Path(output) if output is not None else own
    may_replace = overwrite or output is None or is_same(own, folder)
    with one_run(folder):
        loaded: TosaViT = load(model) if isinstance(model, (str, Path)) else model
        job = Job(loaded, "distilled", folder, may_replace, listener)
        return (job.finished(config) if resume else None) or _distill(job, config, resume)


def _distill(job: Job, config: DistillConfig, resume: bool) -> RunReport:
    loaded: TosaViT = job.model
    job.check(resume)
    check_trainable(loaded)
    accelerator = make_accelerator(config, job.tracker_folder)
    main = MainProcess(accelerator)
    trains, is_fitted = SELECTORS[loaded.config.selector].is_trained, loaded.config.is_fitted
    images = open_images(
        loaded,
        config,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        augment=distill_augmentation(config) if trains else None,
        in_order=is_fitted,
    )
    held_out = images.held_out
    job.start_trackers(accelerator, config)
    job.tell_images("Distilling", images.training or images.in_order, held_out, resume)
    if images.training is not None:
        job.tell_left_out(accelerator, config, images.training)

    def features() -> HeldOut:
        return TASKS["features"].held_out(loaded, loaded.backbone, held_out, accelerator.device, config)

    def selectors() -> SelectorReport | None:
        if not trains:
            return None
        found = None
        if main.is_here:
            batches = (batch.images for batch in held_out.batches(config.strict))
            found = measure_selectors(loaded, batches, accelerator.device)
        return main.tell(found)

    watch = Watch(features, every=0, keep_best=True) if is_fitted else None
    with lost_workers_told(lambda: job.how_to_go_on):
        before = selectors()
        with job.listener.progress("Distilling") as progress:
            done = train_and_fit(
                accelerator,
                loaded,
                images.training,
                images.in_order,
                config,
                checkpoint=job.checkpoint,
                watch=watch,
                resume=resume,
                progress=progress,
            )
        after = selectors()
    accelerator.end_training()
    return job.finish(accelerator, config, done, held_out, watch, results_of(done, before, after, watch), {})


def results_of(
    done: DistillReport, before: SelectorReport | None, after: SelectorReport | None, watch: Watch | None
) -> dict[str, Any]:
    """What a model's folder keeps of a distillation.

    Args:
        done: What was done.
        before: The selectors before, on held-out images; None where none are trained.
        after: The same after.
        watch: The measurements of a fit on them; None where nothing was fitted.

    Raises:
        TrainingError: If what the selectors predict is not finite.
    """
    results: dict[str, Any] = {}
    if before is not None and after is not None:
        if not after.is_finite:  # of weights that are finite still
            raise TrainingError(
                "What the trained selectors predict is no finite numbers, and nothing was written. Try a smaller --lr."
            )
        results |= {"samples": after.samples, "layers": _selector_rows(before, after)}
    if watch is not None:
        results |= {**watched_results(watch), "fit_kept": done.fit_kept}
        if done.change is not None and math.isfinite(done.change.mean) and math.isfinite(done.change.error):
            results |= {"fit_change": done.change.mean, "fit_change_error": done.change.error}
    if done.calibration is not None and done.fit_kept:
        results["bypass_errors"] = done.calibration.errors
    return results


def _selector_rows(before: SelectorReport, after: SelectorReport) -> list[dict[str, Any]]:
    return [
        {
            "layer": a.layer,
            "kl_before": b.kl,
            "kl_after": a.kl,
            "kl_previous": a.kl_previous,
            "found": a.found,
            "found_previous": a.found_previous,
            "found_random": a.found_random,
            "is_level": a.is_level,
        }
        for b, a in zip(before.layers, after.layers, strict=True)
    ]
