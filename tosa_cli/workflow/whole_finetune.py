"""Finetuning of a whole model on photos, without labels."""

from pathlib import Path

from tosa_cli.data.workers import lost_workers_told
from tosa_cli.errors import ConfigError
from tosa_cli.model.runs.find import own_shape
from tosa_cli.progress import Listener
from tosa_cli.tasks.tokens import finetune_augmentation
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.whole import finetune_whole
from tosa_cli.train.whole_distill import trained_runs
from tosa_cli.workflow.job import UNTRAINED
from tosa_cli.workflow.run_report import RunReport, watched_results
from tosa_cli.workflow.whole_folder import image_part, load_converted
from tosa_cli.workflow.whole_job import WholeJob, run_job


def finetune(
    name: str,
    config: FinetuneConfig,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener,
) -> RunReport:
    """Bring the tokens of a whole model's encoder nearer to the dense model's, and write the model.

    The dense model is the converted one with every token computed, as its weights are when the run begins. A model that
    was finetuned before is not its source any more and is refused.

    Args:
        name: A folder; or the id of a Hub repository, where `output` is given.
        config: The settings.
        output: Folder to write; None takes the model's own.
        overwrite: Replace a folder that exists.
        resume: Go on from the checkpoint of an interrupted run.
        listener: Told what is done.

    Raises:
        TosaError: If model, photos or settings are wrong, or the training fails; subclass and message say which.
    """
    if config.objective != "features":
        raise ConfigError("A whole model learns to be its dense self again, without labels: pass --objective features.")
    return run_job(
        "finetuned",
        lambda job: _finetune(job, name, config, resume),
        name,
        config,
        output=output,
        overwrite=overwrite,
        resume=resume,
        listener=listener,
    )


def _finetune(job: WholeJob, name: str, config: FinetuneConfig, resume: bool) -> RunReport:
    whole = job.model = load_converted(name)
    if whole.provenance.is_finetuned:
        raise ConfigError(
            f"{name} was finetuned already, so its own dense weights are not its source's: finetune the model as it "
            f"was converted, with more --epochs."
        )
    job.check(resume)
    part = image_part(whole.model)
    accelerator = make_accelerator(config, job.tracker_folder)
    images, held_out = job.open_photos(config, own_shape(part)[1:], finetune_augmentation(config))
    job.start_trackers(accelerator, config)
    if trained_runs(part) and not whole.provenance.is_distilled:
        job.listener.warn(UNTRAINED)
    job.tell_images("Finetuning", images, held_out, resume)
    with lost_workers_told(lambda: job.how_to_go_on), job.listener.progress("Finetuning") as bar:
        done, watch = finetune_whole(
            accelerator, part, images, held_out, config, checkpoint=job.checkpoint, resume=resume, progress=bar
        )
    accelerator.end_training()
    results = {**watched_results(watch), "best_step": watch.best.update}
    details = {
        "measuring_seconds": done.measuring_seconds,
        "loss": done.last_loss,
        "history": [{"step": seen.update, **seen.figures} for seen in watch.history],
    }
    return job.finish(accelerator, config, done, held_out, watch, results, details)
