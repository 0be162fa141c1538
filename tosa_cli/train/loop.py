"""The one training loop, which serves `distill` and `finetune`: they differ by objective and settings."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor, nn

from tosa_cli import interrupts
from tosa_cli.data.datasets import is_streamed
from tosa_cli.data.loading import Images
from tosa_cli.data.samples import Batch
from tosa_cli.errors import DataError, TrainingError
from tosa_cli.progress import NoProgress, Progress
from tosa_cli.seeding import seed_step
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.saver import Saver
from tosa_cli.train.schedule import Clock
from tosa_cli.train.weights import Average, Watch


@dataclass
class TrainReport:
    """What a run did.

    Attributes:
        updates: Optimizer steps, those before a resume included.
        updates_before: Of these, those before the resume.
        images: Images read in all processes since the start or resume.
        seconds: Time that took, measurements on held-out images included.
        measuring_seconds: Time of these measurements alone.
        first_loss: Loss of the first optimizer step since the start or resume.
        last_loss: Mean loss of the last epoch's steps since the start or resume.
        failed: Images that could not be read, with the reason.
    """

    updates: int = 0
    updates_before: int = 0
    images: int = 0
    seconds: float = 0.0
    measuring_seconds: float = 0.0
    first_loss: float = float("nan")
    last_loss: float = float("nan")
    failed: list[str] = field(default_factory=list)

    @property
    def images_per_second(self) -> float | None:
        """Images a second of all processes together, while they train; None if no image was left to train on."""
        seconds = self.seconds - self.measuring_seconds
        return self.images / seconds if self.images and seconds else None


def train(
    accelerator: Accelerator,
    objective: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    checkpoint: Path | None,
    fingerprint: str = "",
    resume: bool = False,
    make_scheduler: Callable[[torch.optim.Optimizer, int], Any] | None = None,
    change_batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ema: Average | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train an objective.

    A resumed run ends in the same weights as one that was never interrupted: the state that matters is in the
    checkpoint, and all random numbers of a step come from seed, epoch, step and process. Not so with `max_minutes`,
    where the clock decides how many steps there are and how fast the learning rate falls.

    Args:
        accelerator: From `make_accelerator`.
        objective: Module from images and targets to a loss; what it trains requires gradients.
        images: Training images.
        optimizer: Optimizer of what is trained.
        config: The settings.
        checkpoint: Where the checkpoint is written; None writes none.
        fingerprint: What tells the model to train from others; a run is resumed on the same one only.
        resume: Continue from it.
        make_scheduler: Makes a timm schedule from the optimizer and the number of updates an epoch.
        change_batch: Changes a batch on its way, as mixup does.
        ema: Average of the weights to keep up to date.
        watch: Measures on held-out images at the start, in between and at the end; it is attached already.
        progress: Told about the advance.

    Raises:
        DataError: If an image cannot be read and the settings are strict, many in a row cannot be read, or there are
            too few for one step.
        TrainingError: If the loss or a weight is not finite; the checkpoint before stays.
        CheckpointError: If there is nothing to resume, or the settings are others.
    """
    progress = progress or NoProgress()
    report = TrainReport()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    model, optimizer, loader = _prepare(accelerator, objective, optimizer, images)
    batches_per_epoch = len(loader) - len(loader) % config.grad_accum_steps
    if batches_per_epoch == 0:
        raise DataError(
            f"{images.num_images} images are too few for one step of {config.batch_size} images in each of "
            f"{accelerator.num_processes} processes, {config.grad_accum_steps} times. Pass a smaller --batch-size."
        )
    updates_per_epoch = batches_per_epoch // config.grad_accum_steps
    scheduler = make_scheduler(optimizer, updates_per_epoch) if make_scheduler else None
    identity = {"num_images": images.num_images, "model": fingerprint, "images": images.fingerprint}
    streamed = is_streamed(images.loader.dataset)
    saver = Saver(accelerator, checkpoint, config, identity, trained, optimizer, ema, watch, streamed)
    clock = Clock(config.max_minutes, updates_per_epoch * config.epochs)
    first_epoch, batch_in_epoch, update = saver.restore() if resume else (0, 0, 0)
    report.updates_before = update
    if scheduler is not None:
        scheduler.step_update(clock.position(update, saver.seconds))
    started = time.perf_counter()
    try:
        with interrupts.noted() as request:
            if watch is not None and not watch.history:
                watch.look(0)
            progress.start(batches_per_epoch * config.epochs, first_epoch * batches_per_epoch + batch_in_epoch)
            for epoch in range(first_epoch, config.epochs):
                losses: list[float] = []
                summed: list[Tensor] = []
                for number, batch in _batches(
                    accelerator, loader, images, epoch, batch_in_epoch, batches_per_epoch, config
                ):
                    images.note(_share_failed(accelerator, batch, config.batch_size), config.strict)
                    inputs, targets = batch.images.to(accelerator.device), batch.targets.to(accelerator.device)
                    seed_step(config.seed, epoch, number, accelerator.process_index)
                    if change_batch is not None:
                        inputs, targets = change_batch(inputs, targets)
                    if number % config.grad_accum_steps == 0:
                        asked = request.asked
                    with accelerator.accumulate(model):
                        with accelerator.autocast():
                            loss = model(inputs, targets)
                        summed.append(loss.detach())
                        if accelerator.sync_gradients:
                            mean, asked_to_stop, seconds = saver.check_loss(summed, update, asked)
                            losses.append(mean)
                            summed.clear()
                            saver.save_if_due()
                            if asked_to_stop:
                                saver.stop_at(epoch, number + 1 - config.grad_accum_steps, update)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients and config.clip_grad:
                            accelerator.clip_grad_norm_(trained.values(), config.clip_grad)
                        optimizer.step()
                        optimizer.zero_grad()
                    if accelerator.sync_gradients:
                        update += 1
                        if ema is not None:
                            ema.update()
                        if scheduler is not None:
                            scheduler.step_update(clock.position(update, seconds))
                        accelerator.log({"loss": mean, "lr": optimizer.param_groups[0]["lr"]}, step=update)
                        if watch is not None and watch.is_due(update):
                            watch.look(update)
                    batch_in_epoch = number + 1
                    report.images += len(inputs) * accelerator.num_processes
                    shown = f"loss {losses[-1]:.4f}" if losses else ""
                    progress.advance(len(inputs) * accelerator.num_processes, shown)
                    if accelerator.sync_gradients and config.checkpoint_every and update % config.checkpoint_every == 0:
                        saver.due = (epoch, batch_in_epoch, update)
                    if accelerator.sync_gradients and clock.is_over(seconds):
                        break
                report.last_loss = sum(losses) / len(losses) if losses else report.last_loss
                if losses and math.isnan(report.first_loss):
                    report.first_loss = losses[0]
                batch_in_epoch = 0
                if not config.checkpoint_every:
                    saver.due = (epoch + 1, 0, update)
                if losses and clock.is_over(seconds):
                    break
            saver.check_weights(update)
            if watch is not None:
                watch.look(update)
            saver.due = (config.epochs, 0, update)
            saver.save_if_due()
    except KeyboardInterrupt:
        raise TrainingError(saver.interrupted()) from None
    report.updates, report.seconds, report.failed = update, time.perf_counter() - started, list(images.failed)
    report.measuring_seconds = watch.seconds if watch is not None else 0.0
    return report


def images_left_out(num_images: int, config: TrainConfig, num_processes: int) -> int:
    """So many images of an epoch are in no step, as the last ones are too few for one: others in each epoch."""
    batches = num_images // config.batch_size // num_processes
    steps = batches // config.grad_accum_steps
    return num_images - steps * config.grad_accum_steps * num_processes * config.batch_size


def _prepare(
    accelerator: Accelerator, objective: nn.Module, optimizer: torch.optim.Optimizer, images: Images
) -> tuple[nn.Module, Any, Any]:
    model, optimizer = accelerator.prepare(objective, optimizer)
    if is_streamed(images.loader.dataset):
        # timm's readers of streams divide the work among the processes themselves.
        return model, optimizer, images.loader
    return model, optimizer, accelerator.prepare_data_loader(images.loader)


def _batches(
    accelerator: Accelerator, loader: Any, images: Images, epoch: int, skip: int, stop: int, config: TrainConfig
) -> Iterator[tuple[int, Any]]:
    # The processes that load data take their seeds from here.
    seed_step(config.seed, epoch, 0, accelerator.process_index)
    images.samples.set_epoch(epoch)
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    if is_streamed(images.loader.dataset):
        return itertools.islice(enumerate(loader), skip, stop)
    remaining = skip_first_batches(loader, skip) if skip else loader
    if skip and hasattr(remaining, "set_epoch"):
        remaining.set_epoch(epoch)
    # A number of batches that is no multiple of the accumulation leaves a rest, which is left out.
    return itertools.islice(enumerate(remaining, start=skip), stop - skip)


def _share_failed(accelerator: Accelerator, batch: Batch, batch_size: int) -> list[str]:
    """What could not be read in this step, in all processes, so that all go on or all stop.

    Raises:
        DataError: If so many images in a row could not be read that one of the processes has no whole batch.
    """
    missing = batch_size - len(batch.images)
    failed = batch.failed
    if accelerator.num_processes > 1:
        counts = torch.tensor([missing, len(failed)], device=accelerator.device)
        missing, num_failed = accelerator.reduce(counts).tolist()
        failed = gather_object(failed) if num_failed else []
    if missing:
        raise DataError(f"Too many images in a row cannot be read, the first is {failed[0]}. Check the data.")
    return failed
