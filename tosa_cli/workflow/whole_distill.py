"""Distilling a whole model on photos: its selectors train, its bypasses are fitted; its own weights stay."""

from pathlib import Path

from tosa_cli.data.processed import ProcessedPhotos
from tosa_cli.data.workers import lost_workers_told
from tosa_cli.measure.selectors import SelectorReport
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.find import own_shape
from tosa_cli.model.runs.insert import dense_copy
from tosa_cli.progress import Listener
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.distill import check_trainable, distill_augmentation
from tosa_cli.train.processes import MainProcess, make_accelerator
from tosa_cli.train.weights import Watch
from tosa_cli.train.whole import TokensObjective, held_out_tokens
from tosa_cli.train.whole_distill import distill_whole, measure_runs, trained_runs
from tosa_cli.workflow.distill import results_of
from tosa_cli.workflow.run_report import RunReport
from tosa_cli.workflow.whole_folder import image_part, load_converted
from tosa_cli.workflow.whole_job import WholeJob, run_job


def distill(
    name: str,
    config: DistillConfig,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener,
) -> RunReport:
    """Train the selectors of a whole model's encoder and fit its bypasses on photos, and write the model.

    A selector is trained on crops of the model's own size. What is fitted is fitted on the photos as the processor
    prepares them, and dropped if it takes the tokens of held-out photos away from the dense model's.

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
    return run_job(
        "distilled",
        lambda job: _distill(job, name, config, resume),
        name,
        config,
        output=output,
        overwrite=overwrite,
        resume=resume,
        listener=listener,
    )


def _distill(job: WholeJob, name: str, config: DistillConfig, resume: bool) -> RunReport:
    whole = job.model = load_converted(name)
    job.check(resume)
    part = image_part(whole.model)
    run = converted_runs(part)[0].run
    assert run is not None
    check_trainable(run)
    accelerator = make_accelerator(config, job.tracker_folder)
    main = MainProcess(accelerator)
    trains, is_fitted = bool(trained_runs(part)), run.config.is_fitted
    images, held_out = job.open_photos(config, own_shape(part)[1:], distill_augmentation(config) if trains else None)
    photos = ProcessedPhotos(config.data_dir, whole.processor, files=images.samples.files())
    job.start_trackers(accelerator, config)
    job.tell_images("Distilling", images, held_out, resume)
    if trains:
        job.tell_left_out(accelerator, config, images)
    part.to(accelerator.device)

    def selectors() -> SelectorReport | None:
        if not trains:
            return None
        batches = (batch.images for batch in held_out.batches(config.strict))
        return main.tell(measure_runs(part, batches) if main.is_here else None)

    watch = None
    if is_fitted:
        nearness = TokensObjective(part, dense_copy(part), [len(run.blocks)])
        watch = Watch(lambda: held_out_tokens(nearness, held_out, accelerator.device), every=0, keep_best=True)
    with lost_workers_told(lambda: job.how_to_go_on):
        before = selectors()
        with job.listener.progress("Distilling") as progress:
            done = distill_whole(
                accelerator,
                part,
                images,
                photos,
                config,
                checkpoint=job.checkpoint,
                watch=watch,
                resume=resume,
                progress=progress,
            )
        after = selectors()
    accelerator.end_training()
    if done.calibration is not None:
        done.calibration.failed = photos.skipped
        images.note(photos.skipped, config.strict)
    return job.finish(accelerator, config, done, held_out, watch, results_of(done, before, after, watch), {})
