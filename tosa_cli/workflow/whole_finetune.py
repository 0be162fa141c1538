"""Finetuning of a whole model on photos, without labels."""

import dataclasses
from pathlib import Path

from tosa_cli.data.whole_images import open_training
from tosa_cli.data.workers import lost_workers_told
from tosa_cli.errors import ConfigError
from tosa_cli.export.whole import own_shape
from tosa_cli.hub.folder import check_output
from tosa_cli.hub.kind import find_kind
from tosa_cli.hub.whole import save_whole
from tosa_cli.progress import Listener, tell_skipped
from tosa_cli.train.checkpoint import (
    check_resumable,
    checkpoint_path,
    note_result,
    read_checkpoint,
    read_result,
    remove_checkpoint,
)
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.whole import finetune_whole, fingerprint
from tosa_cli.workflow.job import RunReport, one_run, watched_results
from tosa_cli.workflow.whole_folder import image_part, load_converted


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
    folder = output or Path(name.removeprefix("local-dir:"))
    checkpoint = checkpoint_path(folder, "finetune")
    if resume:
        with one_run(folder):
            report = _finished(folder, checkpoint, config)
        if report is not None:
            listener.say(f"The run had ended, and {folder} is what it wrote: nothing is left to do.")
            return report
    whole = load_converted(name)
    if whole.provenance.is_finetuned:
        raise ConfigError(
            f"{name} was finetuned already, so its own dense weights are not its source's: finetune the model as it "
            f"was converted, with more --epochs."
        )
    check_output(folder, overwrite or output is None)
    if resume:
        check_resumable(checkpoint)
    with one_run(folder):
        part = image_part(whole.model)
        accelerator = make_accelerator(config)
        images, held_out = open_training(config, whole.processor, own_shape(part)[1:])
        listener.say(
            f"Finetuning on {images.num_images} images of {config.data_dir}; {held_out.num_images} are held out."
        )
        how = f"The same command with --resume goes on from {checkpoint}."
        with lost_workers_told(lambda: how), listener.progress("Finetuning") as bar:
            done, watch = finetune_whole(
                accelerator, part, images, held_out, config, checkpoint=checkpoint, resume=resume, progress=bar
            )
        results = {**watched_results(watch), "best_step": watch.best.update}
        provenance = whole.provenance.after("finetuned", config.recorded(), {"finetune": results})
        whole.model.cpu().eval()
        if accelerator.is_main_process:
            if checkpoint.exists():
                note_result(checkpoint, fingerprint(whole.model))
            save_whole(dataclasses.replace(whole, provenance=provenance), folder, overwrite=True)
            remove_checkpoint(checkpoint)
    skipped = [*done.failed, *held_out.failed]
    tell_skipped(skipped, listener)
    return RunReport(
        model=whole.model,
        folder=folder,
        images_per_second=done.images_per_second,
        seconds=done.seconds,
        updates=done.updates,
        skipped=skipped,
        held_out=results,
        watch=watch,
        config=config,
        details={
            "measuring_seconds": done.measuring_seconds,
            "loss": done.last_loss,
            "history": [{"step": seen.update, **seen.figures} for seen in watch.history],
        },
    )


def _finished(folder: Path, checkpoint: Path, config: FinetuneConfig) -> RunReport | None:
    """The report of a run that wrote its model, but was killed before it removed its checkpoint; that is done now."""
    result = read_result(checkpoint)
    if result is None or find_kind(str(folder)) != "whole":
        return None
    whole = load_converted(str(folder))
    if fingerprint(whole.model) != result:
        return None
    state = read_checkpoint(checkpoint)
    remove_checkpoint(checkpoint)
    return RunReport(
        model=whole.model,
        folder=folder,
        images_per_second=0.0,
        seconds=state.seconds,
        updates=state.update,
        skipped=[],
        held_out=dict(whole.provenance.results["finetune"]),
        watch=None,
        config=config,
    )
