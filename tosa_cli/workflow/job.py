"""What `distill` and `finetune` share: the model, the folder that is written, and the report."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tosa_cli.api import load
from tosa_cli.data.datasets import is_streamed
from tosa_cli.data.loading import Images
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.folder import check_output, check_writable, is_model_folder
from tosa_cli.hub.writing import alone
from tosa_cli.progress import Listener, counted, tell_skipped
from tosa_cli.provenance import COMMANDS, Stage
from tosa_cli.tasks.base import Task
from tosa_cli.train.checkpoint import (
    check_resumable,
    checkpoint_path,
    fingerprint,
    note_result,
    read_checkpoint,
    read_result,
    remove_checkpoint,
)
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.loop import images_left_out
from tosa_cli.train.weights import Watch
from tosa_cli.workflow.run_report import RunReport
from tosa_cli.workflow.save import save

UNTRAINED = "The selectors were not trained: run `tosa distill` first, or they select by the layer before."
"""What is told where a model is finetuned before its selectors are."""


@contextmanager
def one_run(folder: Path | None) -> Iterator[None]:
    """Keep other runs from the folder that one writes; of processes that train together the main one does.

    Raises:
        OutputError: If another run writes it, or it cannot be written.
    """
    if folder is not None:
        check_writable(folder.resolve().parent)
    is_main = os.environ.get("RANK", "0") == "0"
    with alone(folder) if folder is not None and is_main else nullcontext():
        yield


@dataclass
class Job:
    """A model to train and where it goes; `read`, `mark` and `write` are what differs from one format to another.

    Attributes:
        model: The model: a `TosaViT`, or a `Predictor`.
        stage: What the job makes of it.
        folder: Folder to write; None writes nothing, and keeps no checkpoint.
        overwrite: Whether the folder may be replaced: it is the model's own, or the user said so.
        listener: Told what is done.
        older_checkpoint: When a checkpoint was written that is not of this run, which will replace it, in nanoseconds.
    """

    model: Any
    stage: Stage
    folder: Path | None
    overwrite: bool
    listener: Listener
    older_checkpoint: int | None = field(default=None, init=False)

    @property
    def trained(self) -> Any:
        """The module that is trained."""
        return self.model

    @property
    def checkpoint(self) -> Path | None:
        """Where the checkpoint of the run lies: beside the folder."""
        return None if self.folder is None else checkpoint_path(self.folder, COMMANDS[self.stage])

    @property
    def tracker_folder(self) -> Path | None:
        """Where trackers write: beside the model, and never into it, as it is what is pushed."""
        if self.folder is None:
            return None
        folder = self.folder.resolve()
        return folder.with_name(f"{folder.name}-logs")

    @property
    def how_to_go_on(self) -> str:
        """How the run goes on after it was stopped, as a sentence; empty where it has written no checkpoint."""
        checkpoint = self.checkpoint
        if checkpoint is None or not checkpoint.exists() or checkpoint.stat().st_mtime_ns == self.older_checkpoint:
            return ""
        return f"The same command with --resume goes on from {checkpoint}."

    def check(self, resume: bool) -> None:
        """Check that the result can be written before any work is done.

        Raises:
            OutputError: If the output exists or cannot be written.
            CheckpointError: If there is nothing to resume.
        """
        if self.folder is not None:
            check_output(self.folder, self.overwrite)
        checkpoint = self.checkpoint
        if checkpoint is None:
            if resume:
                raise CheckpointError("A run without a folder to write keeps no checkpoint: name the folder to resume.")
        elif resume:
            check_resumable(checkpoint)
        elif checkpoint.exists():
            self.older_checkpoint = checkpoint.stat().st_mtime_ns
            self.listener.warn(f"{checkpoint} of an unfinished run will be replaced; --resume would go on from it.")

    def finished(self, config: TrainConfig) -> RunReport | None:
        """The report of a run that wrote its model, but was killed before it removed its checkpoint; that is done now.

        Args:
            config: The settings.

        Returns:
            None if there is no such run.
        """
        checkpoint = self.checkpoint
        result = None if checkpoint is None else read_result(checkpoint)
        if self.folder is None or checkpoint is None or result is None:
            return None
        model = self.read(self.folder)
        if model is None or self.mark(model) != result:
            return None
        state = read_checkpoint(checkpoint)
        remove_checkpoint(checkpoint)
        self.listener.say(f"The run had ended, and {self.folder} is what it wrote: nothing is left to do.")
        return RunReport(
            model=model,
            folder=self.folder,
            images_per_second=None,
            seconds=state.seconds,
            updates=state.update,
            updates_before=state.update,
            skipped=[],
            held_out=dict(model.provenance.results.get(COMMANDS[self.stage], {})),
            watch=None,
            config=config,
        )

    def read(self, folder: Path) -> Any:
        """The model in a folder; None if there is none of the kind."""
        return load(folder) if is_model_folder(folder) else None

    def mark(self, model: Any) -> str:
        """What tells a model from all others."""
        return fingerprint(model)

    def write(self, model: Any, folder: Path) -> None:
        """Write a model into its folder, whole or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        save(model, folder, overwrite=self.overwrite)

    def start_trackers(self, accelerator: Accelerator, config: TrainConfig) -> None:
        """Start the trackers that were asked for."""
        if config.log_with:
            settings = {key: value for key, value in config.to_dict().items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("tosa", config=settings)

    def tell_images(self, doing: str, training: Images, held_out: Images, resume: bool) -> None:
        """Say what is done, on how many images, and how many are held out; and if a resumed run began with others."""
        if resume and self.checkpoint is not None:
            before = read_checkpoint(self.checkpoint).settings.get("images")
            if before not in (None, training.fingerprint):
                self.listener.warn(
                    f"Images of {training.name} changed since the run was stopped: it goes on with those of now, and "
                    f"ends in other weights than a run that was never stopped."
                )
        self.listener.say(
            f"{doing} on {counted(training.num_images, 'image')} of {training.name}; "
            f"{counted(held_out.num_images, 'image')} {'is' if held_out.num_images == 1 else 'are'} held out."
        )

    def tell_left_out(self, accelerator: Accelerator, config: TrainConfig, training: Images) -> None:
        """Say how many images an epoch leaves out, where processes or summed steps take many at once."""
        at_once = accelerator.num_processes * config.grad_accum_steps
        left_out = images_left_out(training.num_images, config, accelerator.num_processes)
        if at_once > 1 and left_out and not is_streamed(training.loader.dataset):
            self.listener.say(
                f"Each epoch leaves out {left_out} of {counted(training.num_images, 'image')}, others each time: the "
                f"last are too few for a step, which takes {at_once * config.batch_size} in all processes together."
            )

    def finish(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        done: Any,
        held_out: Images,
        watch: Watch | None,
        results: dict[str, Any],
        details: dict[str, Any],
        task: Task | None = None,
    ) -> RunReport:
        """Write the model folder, then remove the checkpoint, and tell what was skipped.

        Args:
            accelerator: Of the run; of several processes the main one writes.
            config: The settings, which the folder keeps.
            done: What training did: a `TrainReport` or a `DistillReport`.
            held_out: The held-out images.
            watch: The measurements on them.
            results: What the folder keeps of these.
            details: What else is reported.
            task: What was learned.
        """
        model = self.model
        self.trained.cpu().eval()
        model.provenance = model.provenance.after(self.stage, config.recorded(), {COMMANDS[self.stage]: results})
        skipped = [*done.failed, *held_out.failed]
        if self.folder is not None and self.checkpoint is not None and accelerator.is_main_process:
            if self.checkpoint.exists():  # a model that is only fitted has none
                note_result(self.checkpoint, self.mark(model))
            self.write(model, self.folder)
            remove_checkpoint(self.checkpoint)
        tell_skipped(skipped, self.listener)
        return RunReport(
            model=model,
            folder=self.folder,
            images_per_second=done.images_per_second,
            seconds=done.seconds,
            updates=done.updates,
            updates_before=done.updates_before,
            skipped=skipped,
            held_out=results,
            watch=watch,
            config=config,
            task=task,
            details=details,
        )


def is_same(own: Path | None, folder: Path | None) -> bool:
    """Whether a folder to write is the model's own."""
    return own is not None and folder is not None and own.is_dir() and own.resolve() == folder.resolve()
