"""timm's learning-rate schedules, stepped once an update, and the clock of a run with limited time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from tosa_cli.errors import ConfigError
from tosa_cli.train.config import TrainConfig

SCHEDULES = ("cosine", "tanh", "step", "constant", "poly", "wsd", "rsqrt")


def make_scheduler(config: TrainConfig) -> Callable[[torch.optim.Optimizer, int], Any]:
    """A function that makes the schedule once the number of updates an epoch is known; `none` is constant.

    Raises:
        ConfigError: If timm does not know the schedule, or it needs more than the number of updates.
    """
    # timm's own `none` would leave out the warm-up and the rates of the layers.
    name = "constant" if config.sched == "none" else config.sched
    if name not in SCHEDULES:
        raise ConfigError(f"--sched must be one of none, {', '.join(SCHEDULES)}; not {config.sched!r}.")

    def make(optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
        try:
            scheduler, _ = create_scheduler_v2(
                optimizer,
                sched=name,
                # timm counts the warm-up extra; without the difference the schedule would be cut short.
                num_epochs=(config.epochs - config.warmup_epochs) or 1,  # type: ignore[arg-type]
                warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]
                warmup_prefix=True,
                warmup_lr=config.lr / 100,
                min_lr=config.min_lr,
                step_on_epochs=False,
                updates_per_epoch=updates_per_epoch,
            )
        except ValueError as error:
            raise ConfigError(
                f"The schedule {config.sched} does not fit so few steps ({error}): pass more --epochs, or --sched none."
            ) from error
        return scheduler

    return make


@dataclass(frozen=True)
class Clock:
    """When a run with limited time is over, and where its schedule stands: by steps or by time, whichever is farther.

    Attributes:
        minutes: Time that the run may take; None does not limit it.
        total_updates: Optimizer steps of the whole schedule.
    """

    minutes: float | None
    total_updates: int

    def is_over(self, seconds: float) -> bool:
        """Whether the time is over after so many seconds."""
        return self.minutes is not None and seconds >= 60 * self.minutes

    def position(self, update: int, seconds: float) -> int:
        """The optimizer step at which the schedule stands after so many steps and seconds."""
        if self.minutes is None:
            return update
        return max(update, min(self.total_updates, int(self.total_updates * seconds / (60 * self.minutes))))
