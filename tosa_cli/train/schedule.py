"""timm's learning-rate schedules, stepped once an update."""

from collections.abc import Callable
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from tosa_cli.errors import ConfigError
from tosa_cli.train.config import TrainConfig


def make_scheduler(config: TrainConfig) -> Callable[[torch.optim.Optimizer, int], Any] | None:
    """A function that makes the schedule once the number of updates an epoch is known; None for `none`."""
    if config.sched == "none":
        return None

    def make(optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]
            warmup_prefix=True,
            warmup_lr=config.lr / 100,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        if scheduler is None:
            raise ConfigError(f"timm knows no schedule {config.sched!r}: try cosine, linear, step or none.")
        return scheduler

    return make
