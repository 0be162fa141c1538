"""A whole model to train: what `distill` and `finetune` of it share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tosa_cli.data.loading import Augmentation, Images
from tosa_cli.data.whole_images import open_training
from tosa_cli.hub.kind import find_kind
from tosa_cli.hub.whole import WholeModel, save_whole
from tosa_cli.progress import Listener
from tosa_cli.provenance import Stage
from tosa_cli.train.config import DistillConfig, FinetuneConfig, TrainConfig
from tosa_cli.train.whole import fingerprint
from tosa_cli.workflow.job import Job, one_run
from tosa_cli.workflow.run_report import RunReport
from tosa_cli.workflow.whole_folder import load_converted


class WholeJob(Job):
    """A whole model to train, in its own format and under a folder of that; `model` is a `WholeModel`."""

    @property
    def trained(self) -> Any:
        """The module that is trained."""
        return self.model.model

    def read(self, folder: Path) -> WholeModel | None:
        """The model in a folder; None if there is no converted one."""
        return load_converted(str(folder)) if find_kind(str(folder)) == "whole" else None

    def mark(self, model: WholeModel) -> str:
        """What tells a model from all others."""
        return fingerprint(model.model)

    def open_photos(
        self, config: DistillConfig | FinetuneConfig, size: tuple[int, int], augment: Augmentation | None
    ) -> tuple[Images, Images]:
        """Photos to train on and held-out ones, as the settings name them: see `open_training`."""
        return open_training(
            config,
            self.model.processor,
            size,
            batch_size=config.batch_size,
            workers=config.workers,
            seed=config.seed,
            augment=augment,
        )

    def write(self, model: WholeModel, folder: Path) -> None:
        """Write a model into its folder, whole or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        save_whole(model, folder, self.overwrite)


def run_job(
    stage: Stage,
    work: Callable[[WholeJob], RunReport],
    name: str,
    config: TrainConfig,
    *,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    listener: Listener,
) -> RunReport:
    """Do work on a whole model that brings it to a stage, as the one run that writes its folder.

    Args:
        stage: The stage.
        work: What is done; it reads the model, once it is known that there is work: a run that had ended left a model
            of the stage in its place.
        name: A folder; or the id of a Hub repository, where `output` is given.
        config: The settings.
        output: Folder to write; None takes the model's own.
        overwrite: Replace a folder that exists.
        resume: Go on from the checkpoint of an interrupted run.
        listener: Told what is done.
    """
    folder = output or Path(name.removeprefix("local-dir:"))
    job = WholeJob(None, stage, folder, overwrite or output is None, listener)
    with one_run(folder):
        return (job.finished(config) if resume else None) or work(job)
