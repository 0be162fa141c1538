"""Settings of `distill` and `finetune`, as frozen and strict data. Imports no torch."""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin

from tosa_cli.config import check_keys
from tosa_cli.errors import ConfigError
from tosa_cli.train.ranges import check_range, option_name

Amp = Literal["no", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]

Objective = Literal["labels", "features"]

RECORDED = ("data_dir", "epochs", "batch_size", "lr", "seed")
"""Settings that say most about a run."""

BY_OBJECTIVE: Any = object()
"""Stands for a setting that was not given and whose default depends on the objective; no settings object keeps it."""

OBJECTIVE_DEFAULTS: dict[str, dict[str, Any]] = {
    "labels": {
        "epochs": 30,
        "batch_size": 128,
        "lr": 5e-5,
        "warmup_epochs": 0.0,
        "min_lr": 1e-6,
        "weight_decay": 0.05,
        "smoothing": 0.1,
        "model_ema": False,
        "model_ema_decay": 0.9998,
        "eval_every": 0,
    },
    # The model starts close to its teacher: large steps, and a decay to zero, would lead it away. On a real DINOv2,
    # 3e-6 rose, 1e-5 fell below the start within twenty steps, and the average was ahead of the last weights.
    "features": {
        "epochs": 5,
        "batch_size": 12,
        "lr": 3e-6,
        "warmup_epochs": 0.5,
        "min_lr": 0.0,
        "weight_decay": 0.0,
        "smoothing": 0.0,
        "model_ema": True,
        "model_ema_decay": 0.9,
        "eval_every": 20,
    },
}
"""Defaults of finetuning by what it learns from."""

NEEDS_LABELS = ("smoothing", "mixup", "cutmix")
CHANGES_FEATURES = ("auto_augment", "color_jitter", "reprob", "drop_path")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `distill` and `finetune` have in common. Names are those of timm's training script.

    Attributes:
        data_dir: Folder of images, or root of a Hugging Face or WebDataset source.
        dataset: timm's name of the data set type: empty for a folder, `hfds/...` or `wds/...`.
        split: Split of the data set to train on.
        max_samples: Use so many images of it, evenly spread; None uses all. Of `wds/...`, which is read in order, the
            first ones, and only where nothing is trained step by step.
        val_dir: Folder of held-out images, whose split `validation` is taken if it has one; empty holds out a share of
            the training images.
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
        clip_grad: Largest norm of the gradient; 0 or None does not clip.
        amp: Mixed precision.
        workers: Processes that load data.
        seed: Seed of all that is random.
        strict: Stop at an image that cannot be read, instead of skipping it with a count.
        device: `auto`, `cpu` or `cuda`.
        log_with: accelerate's name of a tracker (`tensorboard`, `wandb`), which writes beside the model folder, into
            its name with `-logs`; or empty.
        checkpoint_every: Optimizer steps between checkpoints; 0 writes one after each epoch.
        max_minutes: Stop after so many minutes, those before a resume included; the schedule ends by then.

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
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _read(field.name, field.type, getattr(self, field.name))
            check_range(field.name, value)
            object.__setattr__(self, field.name, value)
        for name, choices in (("amp", Amp), ("device", Device)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{option_name(name)} must be one of {', '.join(get_args(choices))}; not {getattr(self, name)!r}."
                )
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"--warmup-epochs ({self.warmup_epochs}) cannot be more than --epochs ({self.epochs}).")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    def recorded(self) -> dict[str, Any]:
        """What a model's folder keeps of the settings: the main ones, and those that are not the default."""
        defaults = self._defaults().to_dict()
        return {name: value for name, value in self.to_dict().items() if name in RECORDED or value != defaults[name]}

    def _defaults(self) -> "TrainConfig":
        return type(self)()

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
    """Settings of finetuning with frozen selectors (paper 2.3); defaults depend on the objective.

    Attributes:
        objective: What is learned: `labels`, or on any images the `features` (final tokens) of the dense source.
        epochs: Passes over the data (features: 5).
        batch_size: Images a step and process (features: 12).
        lr: Learning rate at its peak (features: 3e-06).
        warmup_epochs: Epochs of linear warm-up (features: 0.5).
        min_lr: Learning rate at the end of the schedule (features: 0.0).
        weight_decay: Weight decay (features: 0.0).
        feature_layers: Number of evenly spread layers before the last whose tokens are matched too; features only.
        eval_every: Optimizer steps between measurements on held-out images, of which the best weights are kept, those
            at the start included; 0 measures at start and end alone, and keeps the last weights (features: 20; 0 keeps
            the better of the two).
        smoothing: Label smoothing (features: none).
        mixup: Mixup alpha; 0 is off.
        cutmix: CutMix alpha; 0 is off.
        auto_augment: timm's augmentation policy, as `rand-m9-mstd0.5-inc1`; empty is off.
        color_jitter: Strength of color jitter.
        reprob: Probability of random erasing.
        hflip: Probability of a horizontal flip.
        crop_scale: Smallest share of an image that a training crop covers.
        drop_path: Stochastic depth rate; None keeps the model's.
        layer_decay: Factor between the learning rates of neighbouring layers; None is off.
        model_ema: Average the weights over the steps, and keep the average (features: true).
        model_ema_decay: Decay of that average (features: 0.9).
        grad_checkpointing: Recompute layers in the backward pass to save memory.

    Raises:
        ConfigError: If a value is out of range, or makes no sense with the objective.
    """

    objective: Objective = "labels"
    epochs: int = BY_OBJECTIVE
    batch_size: int = BY_OBJECTIVE
    lr: float = BY_OBJECTIVE
    warmup_epochs: float = BY_OBJECTIVE
    min_lr: float = BY_OBJECTIVE
    weight_decay: float = BY_OBJECTIVE
    feature_layers: int = 0
    eval_every: int = BY_OBJECTIVE
    smoothing: float = BY_OBJECTIVE
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: str = ""
    color_jitter: float = 0.0
    reprob: float = 0.0
    hflip: float = 0.5
    crop_scale: float = 0.35
    drop_path: float | None = None
    layer_decay: float | None = None
    model_ema: bool = BY_OBJECTIVE
    model_ema_decay: float = BY_OBJECTIVE
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ConfigError(f"--objective must be one of {', '.join(get_args(Objective))}; not {self.objective!r}.")
        for name, value in OBJECTIVE_DEFAULTS[self.objective].items():
            if getattr(self, name) is BY_OBJECTIVE:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.objective == "labels" and self.feature_layers:
            raise ConfigError(
                "--feature-layers needs the objective features: add --objective features, or leave it out."
            )
        if self.objective == "features":
            self._check_features()

    def recorded(self) -> dict[str, Any]:
        """What a model's folder keeps of the settings: of features, all that have defaults of their own too."""
        recorded = super().recorded()
        if self.objective != "features":
            return recorded
        names = ("objective", *OBJECTIVE_DEFAULTS[self.objective])
        return recorded | {name: getattr(self, name) for name in names}

    def _check_features(self) -> None:
        for name in NEEDS_LABELS:
            if getattr(self, name):
                raise ConfigError(
                    f"{option_name(name)} ({getattr(self, name)}) needs labels, and the objective features reads none: "
                    f"leave it out."
                )
        for name in CHANGES_FEATURES:
            if getattr(self, name):
                raise ConfigError(
                    f"{option_name(name)} ({getattr(self, name)}) does not go with the objective features, which crops "
                    f"and flips images and changes nothing else: leave it out."
                )

    def _defaults(self) -> "FinetuneConfig":
        return type(self)(objective=self.objective)


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
    raise ConfigError(f"{option_name(name)} must be {expected}, not {value!r}.")


def _read_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None
