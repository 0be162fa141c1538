"""Settings of `distill` and `finetune`, as frozen and strict data. Imports no torch."""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin

from tosa_cli.config import check_keys
from tosa_cli.errors import ConfigError

Amp = Literal["no", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]

RECORDED = ("data_dir", "epochs", "batch_size", "lr", "seed")
"""Settings that say most about a run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `distill` and `finetune` have in common. Names are those of timm's training script.

    Attributes:
        data_dir: Folder of images, or root of a Hugging Face or WebDataset source.
        dataset: timm's name of the data set type: empty for a folder, `hfds/...` or `wds/...`.
        split: Split of the data set to train on.
        max_samples: Use so many images of it, evenly spread; None uses all.
        val_dir: Held-out images; empty holds out a share of the training images.
        val_split: Split that holds the held-out images; empty holds out a share of the training images.
        epochs: Passes over the data.
        batch_size: Images a step and process.
        grad_accum_steps: Steps whose gradients are summed up before the optimizer's step.
        lr: Learning rate at its peak.
        opt: timm's name of the optimizer.
        sched: timm's name of the schedule; `none` keeps the rate.
        warmup_epochs: Epochs of linear warm-up.
        min_lr: Learning rate at the end of the schedule.
        weight_decay: Weight decay.
        clip_grad: Largest norm of the gradient; None does not clip.
        amp: Mixed precision.
        workers: Processes that load data.
        seed: Seed of all that is random.
        strict: Stop at an image that cannot be read, instead of skipping it with a count.
        device: `auto`, `cpu` or `cuda`.
        log_with: accelerate's name of a tracker (`tensorboard`, `wandb`), which writes beside the model folder, into
            its name with `-logs`; or empty.
        checkpoint_every: Optimizer steps between checkpoints; 0 writes one after each epoch.

    Raises:
        ConfigError: If a value is out of range.
    """

    data_dir: str = ""
    dataset: str = ""
    split: str = "train"
    max_samples: int | None = None
    val_dir: str = ""
    val_split: str = ""
    epochs: int = 1
    batch_size: int = 32
    grad_accum_steps: int = 1
    lr: float = 1e-3
    opt: str = "adamw"
    sched: str = "cosine"
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    weight_decay: float = 0.0
    clip_grad: float | None = 1.0
    amp: Amp = "no"
    workers: int = 2
    seed: int = 0
    strict: bool = False
    device: Device = "auto"
    log_with: str = ""
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _read(field.name, field.type, getattr(self, field.name)))
        for name in ("epochs", "batch_size", "grad_accum_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a whole number from 1 up, not {getattr(self, name)!r}.")
        for name in ("workers", "checkpoint_every", "warmup_epochs", "weight_decay", "min_lr"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)!r}.")
        if not self.lr > 0:
            raise ConfigError(f"lr must be above 0, not {self.lr!r}.")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples must be 1 or more, not {self.max_samples!r}.")
        for name, choices in (("amp", Amp), ("device", Device)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}; not {getattr(self, name)!r}.")
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"warmup_epochs ({self.warmup_epochs}) cannot be more than epochs ({self.epochs}).")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    def recorded(self) -> dict[str, Any]:
        """What a model's folder keeps of the settings: the main ones, and those that are not the default."""
        defaults = type(self)().to_dict()
        return {name: value for name, value in self.to_dict().items() if name in RECORDED or value != defaults[name]}

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read settings, strictly.

        Raises:
            ConfigError: If a key is unknown or a value is wrong.
        """
        check_keys(values, cls.field_names(), "setting")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Settings of selector training (paper 2.2). The selectors are small: they take a high rate and few steps.

    Attributes:
        crop_scale: Smallest share of an image that a training crop covers.
    """

    epochs: int = 3
    batch_size: int = 8
    lr: float = 1e-2
    warmup_epochs: float = 0.0
    crop_scale: float = 0.35


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of finetuning with frozen selectors (paper 2.3); defaults for a pretrained classifier.

    Attributes:
        smoothing: Label smoothing.
        mixup: Mixup alpha; 0 is off.
        cutmix: CutMix alpha; 0 is off.
        auto_augment: timm's augmentation policy, as `rand-m9-mstd0.5-inc1`; empty is off.
        color_jitter: Strength of color jitter.
        reprob: Probability of random erasing.
        hflip: Probability of a horizontal flip.
        crop_scale: Smallest share of an image that a training crop covers.
        drop_path: Stochastic depth rate; None keeps the model's.
        layer_decay: Factor between the learning rates of neighbouring layers; None is off.
        model_ema: Average the weights over the steps, and keep the average.
        model_ema_decay: Decay of that average.
        grad_checkpointing: Recompute layers in the backward pass to save memory.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 5e-5
    weight_decay: float = 0.05
    min_lr: float = 1e-6
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: str = ""
    color_jitter: float = 0.0
    reprob: float = 0.0
    hflip: float = 0.5
    crop_scale: float = 0.35
    drop_path: float | None = None
    layer_decay: float | None = None
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    grad_checkpointing: bool = False


def _read(name: str, kind: Any, value: Any) -> Any:
    """Check the type of a value; a number may be a string, as YAML reads 1e-3 as one.

    Raises:
        ConfigError: If the value is of another type.
    """
    if get_origin(kind) is types.UnionType:
        if value is None:
            return None
        kind = get_args(kind)[0]
    if kind in (int, float):
        number = _read_number(value)
        if kind is float and number is not None:
            return number
        if number is not None and number.is_integer():
            return int(number)
    elif isinstance(value, bool if kind is bool else str):
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
    raise ConfigError(f"{name} must be {expected}, not {value!r}.")


def _read_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None
