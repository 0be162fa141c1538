"""What `distill` or `finetune` did."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tosa_cli.progress import counted
from tosa_cli.tasks.base import Task
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.weights import Watch


@dataclass
class RunReport:
    """What `distill` or `finetune` did.

    Attributes:
        model: The model, trained.
        folder: The folder that was written; None if none was.
        images_per_second: Images a second while it trained; None if a resumed run had none left to train on.
        seconds: Time it took.
        updates: Optimizer steps, those before a resume included.
        updates_before: Of these, those before the resume.
        skipped: Images that could not be read, with the reason.
        held_out: What the held-out images say of the weights before and after.
        watch: All measurements on held-out images; None if none were made.
        config: The settings, completed.
        task: What was learned, where it was finetuned for a task.
        details: What else is reported, by name.
    """

    model: Any
    folder: Path | None
    images_per_second: float | None
    seconds: float
    updates: int
    updates_before: int
    skipped: list[str]
    held_out: dict[str, Any]
    watch: Watch | None
    config: TrainConfig
    task: Task | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> str:
        """The optimizer steps in words, and how many of them lie before a resume."""
        steps, before = counted(self.updates, "step"), self.updates_before
        if not before:
            return steps
        return f"{steps}, {'all' if before == self.updates else f'{before} of them'} before the run was resumed"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "model": None if self.folder is None else str(self.folder),
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "updates": self.updates,
            "updates_before": self.updates_before,
            "skipped": self.skipped,
            "held_out": self.held_out,
            **self.details,
        }


def watched_results(watch: Watch) -> dict[str, Any]:
    """What the held-out images say of the weights at the start and of those handed back."""
    before, after = watch.history[0], watch.best
    results: dict[str, Any] = {"samples": after.samples}
    if watch.keep_best:
        results["measurements"] = len(watch.candidates)
    for name, value in before.figures.items():
        results |= {f"{name}_before": value, f"{name}_after": after.figures[name]}
    return results
