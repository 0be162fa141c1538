"""Device, precision and processes of a run, through accelerate."""

from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import LoggerType, get_available_trackers
from accelerate.utils import DataLoaderConfiguration
from torch import distributed

from tosa_cli.device import pick_device
from tosa_cli.errors import ConfigError
from tosa_cli.train.config import TrainConfig

Found = TypeVar("Found")

PATIENCE = timedelta(hours=12)
"""How long the other processes wait for what the main one measures alone, while it lives."""


def make_accelerator(config: TrainConfig, log_dir: Path | None = None) -> Accelerator:
    """Set up device, precision, processes and trackers, whatever an accelerator before was set up with.

    Args:
        config: The settings.
        log_dir: Where trackers write.

    Raises:
        ConfigError: If the device or the tracker is not there.
    """
    _check_tracker(config.log_with)
    pick_device(config.device)
    _forget_former_settings()
    try:
        return Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.amp,
            gradient_accumulation_steps=config.grad_accum_steps,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
            log_with=config.log_with or None,
            project_dir=str(log_dir) if log_dir else None,
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"Training cannot be set up like this: {error}") from error


def _check_tracker(name: str) -> None:
    """Check that a tracker is installed: accelerate would go on without it.

    Raises:
        ConfigError: If it is not.
    """
    known, available = ([str(tracker) for tracker in trackers] for trackers in (LoggerType, get_available_trackers()))
    if name in known and name not in available and name != LoggerType.ALL:
        package = f"'tosa-cli[{name}]'" if name in ("tensorboard", "wandb") else name
        raise ConfigError(f"The tracker {name} is not installed: run `pip install {package}`, or leave out --log-with.")


class MainProcess:
    """What the main process alone finds out, for all processes, which wait for it.

    They wait in a group of their own: it outlasts a long measurement, and a main process that died is noticed at once,
    as its connections close, while the processes that train together give up on each other after accelerate's minutes.

    Args:
        accelerator: From `make_accelerator`. All processes make this object together.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.is_here = accelerator.is_main_process
        self._group: Any = None
        if accelerator.num_processes > 1:
            self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)

    def tell(self, found: Found | None) -> Found:
        """What the main process found, in all processes; the others pass None."""
        told: list[Any] = [found]
        if self._group is not None:
            distributed.broadcast_object_list(told, src=0, group=self._group)
        return told[0]


def _forget_former_settings() -> None:
    """accelerate keeps the settings of the first accelerator of a process, and refuses others.

    Accelerators that are still in use keep theirs: the settings are not cleared, new ones begin.
    """
    states: list[Any] = [AcceleratorState, GradientState]
    if not distributed.is_initialized():
        states.append(PartialState)
    for state in states:
        state._shared_state = {}
