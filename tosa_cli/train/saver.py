"""When the checkpoint of a run is written, and what is put back from it."""

import math
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tosa_cli.errors import CheckpointError, TrainingError
from tosa_cli.progress import counted
from tosa_cli.train.checkpoint import (
    TrainState,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.weights import Average, Watch

MAY_CHANGE_ON_RESUME = frozenset(
    {"workers", "device", "log_with", "checkpoint_every", "lr", "clip_grad", "strict", "max_minutes", "images"}
)
"""Settings that a resumed run may change; with any other it would be another run. On a stream `workers` is such too.
That images are others is told by the job."""


PATHS = frozenset({"data_dir", "val_dir", "split_file", "val_split_file", "depth_dir", "val_depth_dir"})
"""Settings that are paths: two spellings of one path are the same setting."""


class Saver:
    """Writes and reads the checkpoint of a run, and tells which one is the last good one.

    A checkpoint that is `due` is written after the next loss, once that shows that the weights are good.

    Args:
        accelerator: From `make_accelerator`.
        path: Where the checkpoint is written; None writes none.
        config: The settings.
        identity: What else tells the run from others.
        trained: The parameters that are trained, by name.
        optimizer: Their optimizer.
        ema: Average of the weights.
        watch: Measurements on held-out images.
        streamed: Whether the images can only be read in order, so that order and augmentation depend on `workers`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path | None,
        config: TrainConfig,
        identity: dict[str, Any],
        trained: dict[str, nn.Parameter],
        optimizer: Any,
        ema: Average | None,
        watch: Watch | None,
        streamed: bool,
    ) -> None:
        self.accelerator, self.path = accelerator, path
        self.settings = {**_without_spellings(config.to_dict()), "processes": accelerator.num_processes, **identity}
        self.trained, self.optimizer, self.ema = trained, getattr(optimizer, "optimizer", optimizer), ema
        self.watch, self.streamed = watch, streamed
        self.due: tuple[int, int, int] | None = None
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self.has_checkpoint = False

    @property
    def seconds(self) -> float:
        """Time that the run took in this process, that before a resume included."""
        return self._seconds_before + time.perf_counter() - self._started

    def check_loss(self, losses: list[Tensor], update: int, asked_to_stop: bool) -> tuple[float, bool, float]:
        """Mean loss of a step in all processes, whether any was asked to stop, and the time so far in seconds.

        The one place where a step waits for its device: `losses` are those of its batches, still there.

        Raises `TrainingError` if the loss is not finite.
        """
        # Of all processes, as all go on or all stop.
        loss = torch.stack([loss.float() for loss in losses]).mean()
        here = torch.cat([loss.view(1), torch.tensor([float(asked_to_stop), self.seconds], device=loss.device)])
        mean, stopping, seconds = self.accelerator.reduce(here, reduction="mean").tolist()
        if not math.isfinite(mean):
            raise TrainingError(
                f"The loss became {mean} after {counted(update, 'step')}, and training stopped. {self._advice()}"
            )
        return mean, stopping > 0, seconds

    def check_weights(self, update: int) -> None:
        """Raise `TrainingError` if a weight is not finite."""
        # The loss of the last step was measured before it.
        if not all(bool(value.isfinite().all()) for value in self.trained.values()):
            raise TrainingError(
                f"A weight is not finite after {counted(update, 'step')}, and nothing was written. {self._advice()}"
            )

    def stop_at(self, epoch: int, batch: int, update: int) -> NoReturn:
        """Write a checkpoint of this moment, then raise `KeyboardInterrupt`."""
        if update:
            self.due = (epoch, batch, update)
            self.save_if_due()
        raise KeyboardInterrupt

    def save_if_due(self) -> None:
        """Write the checkpoint that is due, if there is one."""
        if self.due is None or self.path is None:
            return
        (epoch, batch, update), self.due = self.due, None
        self.has_checkpoint = True
        if not self.accelerator.is_main_process:
            return
        optimizer_tensors, optimizer_numbers = pack_optimizer(self.optimizer)
        tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in self.trained.items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors.items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        if self.accelerator.scaler is not None:
            optimizer_numbers["scaler"] = self.accelerator.scaler.state_dict()
        state = TrainState(epoch, batch, update, self.settings, tensors, optimizer_numbers, seconds=self.seconds)
        if self.watch is not None:
            best, state.history = self.watch.state()
            state.tensors |= {f"best.{name}": value for name, value in best.items()}
        write_checkpoint(self.path, state)

    @torch.no_grad()
    def restore(self) -> tuple[int, int, int]:
        """Read the checkpoint; returns epoch, batch and update. Raises `CheckpointError` if it is of another run."""
        if self.path is None:
            raise CheckpointError("There is nothing to resume, as the run keeps no checkpoint: leave out --resume.")
        state = read_checkpoint(self.path)
        groups = _by_prefix(state.tensors)
        shapes = {name: value.shape for name, value in groups.get("weights", {}).items()}
        if state.settings.get("model") != self.settings["model"] or shapes != {
            name: value.shape for name, value in self.trained.items()
        }:
            raise CheckpointError(f"{self.path} belongs to another model. Leave out --resume to start anew.")
        may_change = MAY_CHANGE_ON_RESUME - {"workers"} if self.streamed else MAY_CHANGE_ON_RESUME
        for key, value in self.settings.items():
            if key not in may_change and state.settings.get(key) != value:
                why = ", on which the order of data that can only be read in order depends" if key == "workers" else ""
                raise CheckpointError(
                    f"The run to resume had {key} {state.settings.get(key)}, now it is {value}{why}. Pass the same "
                    f"settings, or leave out --resume to start anew."
                )
        try:
            self._put_back(groups, state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} cannot be resumed from ({error!r}). Delete it and start anew."
            ) from error
        self.has_checkpoint = True
        self._seconds_before = state.seconds
        return state.epoch, state.batch, state.update

    def _put_back(self, groups: dict[str, dict[str, Tensor]], state: TrainState) -> None:
        for name, value in groups["weights"].items():
            self.trained[name].copy_(value)
        unpack_optimizer(self.optimizer, groups.get("optimizer", {}), state.optimizer)
        if self.ema is not None:
            self.ema.module.load_state_dict(groups["ema"])
        if self.watch is not None:
            self.watch.restore(groups.get("best", {}), state.history)
        if self.accelerator.scaler is not None and "scaler" in state.optimizer:
            self.accelerator.scaler.load_state_dict(state.optimizer["scaler"])

    def interrupted(self) -> str:
        """What to tell when the run was interrupted."""
        if self.has_checkpoint:
            return f"Interrupted. The last checkpoint is {self.path}: run the same command with --resume to go on."
        return "Interrupted before the first checkpoint; the model is as it was."

    def _advice(self) -> str:
        if self.has_checkpoint:
            return f"The last good checkpoint is {self.path}: go on from it with --resume and a smaller --lr."
        return "Try a smaller --lr."


def _without_spellings(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: str(Path(value).resolve()) if name in PATHS and value else value for name, value in settings.items()}


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        prefix, _, rest = name.partition(".")
        groups.setdefault(prefix, {})[rest] = value
    return groups
