"""Settings of `distill` and `finetune`, as frozen and strict data. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tosa_cli.data.description import Data
from tosa_cli.errors import ConfigError
from tosa_cli.settings import Setting, option_name, shown

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

NEEDS_LABELS = ("smoothing", "mixup", "cutmix", "class_map")
CHANGES_FEATURES = ("auto_augment", "color_jitter", "reprob", "drop_path")


BATCH_SIZE = Setting("Images a step and process.", flag="-b", ge=1)
WORKERS = Setting("Processes that load data.", flag="-j", ge=0)
AMP = Setting("Mixed precision.")
DEVICE = Setting("Where to compute.")
CLASS_MAP = Setting(
    "File that says which of the model's classes each class folder is: JSON of names and indices, or lines NAME,INDEX "
    "or names alone in their order. Empty goes by names that both have, or else by position."
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Data):
    """What `distill` and `finetune` have in common. Names are those of timm's training script.

    Raises:
        ConfigError: If a value is out of range.
    """

    epochs: Annotated[int, Setting("Passes over the data.", ge=1)] = 1
    batch_size: Annotated[int, BATCH_SIZE] = 32
    grad_accum_steps: Annotated[
        int, Setting("Steps whose gradients are summed up before the optimizer's step.", ge=1)
    ] = 1
    lr: Annotated[float, Setting("Learning rate at its peak.", gt=0)] = 1e-3
    opt: Annotated[str, Setting("timm's name of the optimizer.")] = "adamw"
    sched: Annotated[str, Setting("timm's name of the schedule; none keeps the rate.")] = "cosine"
    warmup_epochs: Annotated[float, Setting("Epochs of linear warm-up.", ge=0)] = 0.0
    min_lr: Annotated[float, Setting("Learning rate at the end of the schedule.", ge=0)] = 0.0
    weight_decay: Annotated[float, Setting("Weight decay.", ge=0)] = 0.0
    clip_grad: Annotated[float | None, Setting("Largest norm of the gradient; 0 or None does not clip.", ge=0)] = 1.0
    amp: Annotated[Amp, AMP] = "no"
    workers: Annotated[int, WORKERS] = 2
    # NumPy takes no larger seed.
    seed: Annotated[int, Setting("Seed of all that is random.", ge=0, le=2**32 - 1)] = 0
    strict: Annotated[bool, Setting("Stop at an image that cannot be read, instead of skipping it with a count.")] = (
        False
    )
    device: Annotated[Device, DEVICE] = "auto"
    log_with: Annotated[
        str,
        Setting(
            "accelerate's name of a tracker (tensorboard, wandb), which writes beside the model folder, into its name "
            "with -logs; or empty."
        ),
    ] = ""
    checkpoint_every: Annotated[
        int, Setting("Optimizer steps between checkpoints; 0 writes one after each epoch.", ge=0)
    ] = 0
    max_minutes: Annotated[
        float | None,
        Setting("Stop after so many minutes, those before a resume included; the schedule ends by then.", gt=0),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"--warmup-epochs ({self.warmup_epochs}) cannot be more than --epochs ({self.epochs}).")

    def recorded(self) -> dict[str, Any]:
        """What a model's folder keeps of the settings: the main ones, and those that are not the default."""
        defaults = self._defaults().to_dict()
        return {name: value for name, value in self.to_dict().items() if name in RECORDED or value != defaults[name]}

    def _defaults(self) -> "TrainConfig":
        return type(self)()


CROP_SCALE = Setting("Smallest share of an image that a training crop covers.", gt=0, le=1)
HFLIP = Setting("Probability of a horizontal flip.", ge=0, le=1)
COLOR_JITTER = Setting("Strength of color jitter.", ge=0)
DROP_PATH = Setting("Stochastic depth rate; None keeps the model's.", ge=0, lt=1)
MODEL_EMA = Setting("Average the weights over the steps, and keep the average.")
MODEL_EMA_DECAY = Setting("Decay of that average.", ge=0, lt=1)
GRAD_CHECKPOINTING = Setting("Recompute layers in the backward pass to save memory.")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Settings of selector training (paper 2.2). The selectors are small: they take a high rate and few steps."""

    epochs: int = 3
    batch_size: int = 8
    lr: float = 1e-2
    warmup_epochs: float = 0.0
    crop_scale: Annotated[float, CROP_SCALE] = 0.35


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of finetuning with frozen selectors (paper 2.3); defaults depend on the objective.

    Raises:
        ConfigError: If a value is out of range, or makes no sense with the objective.
    """

    objective: Annotated[
        Objective,
        Setting("What is learned: labels, or on any images the features (final tokens) of the dense source."),
    ] = "labels"
    epochs: int = BY_OBJECTIVE
    batch_size: int = BY_OBJECTIVE
    lr: float = BY_OBJECTIVE
    warmup_epochs: float = BY_OBJECTIVE
    min_lr: float = BY_OBJECTIVE
    weight_decay: float = BY_OBJECTIVE
    feature_layers: Annotated[
        int,
        Setting("Number of evenly spread layers before the last whose tokens are matched too; features only.", ge=0),
    ] = 0
    eval_every: Annotated[
        int,
        Setting(
            "Optimizer steps between measurements on held-out images, of which the best weights are kept, those at the "
            "start included; 0 measures at start and end alone, and keeps the last weights, or of features the better "
            "of the two.",
            ge=0,
        ),
    ] = BY_OBJECTIVE
    class_map: Annotated[str, CLASS_MAP] = ""
    smoothing: Annotated[float, Setting("Label smoothing.", ge=0, lt=1)] = BY_OBJECTIVE
    mixup: Annotated[float, Setting("Mixup alpha; 0 is off.", ge=0)] = 0.0
    cutmix: Annotated[float, Setting("CutMix alpha; 0 is off.", ge=0)] = 0.0
    auto_augment: Annotated[str, Setting("timm's augmentation policy, as rand-m9-mstd0.5-inc1; empty is off.")] = ""
    color_jitter: Annotated[float, COLOR_JITTER] = 0.0
    reprob: Annotated[float, Setting("Probability of random erasing.", ge=0, le=1)] = 0.0
    hflip: Annotated[float, HFLIP] = 0.5
    crop_scale: Annotated[float, CROP_SCALE] = 0.35
    drop_path: Annotated[float | None, DROP_PATH] = None
    layer_decay: Annotated[
        float | None,
        Setting("Factor between the learning rates of neighbouring layers; None is off.", gt=0, le=1),
    ] = None
    model_ema: Annotated[bool, MODEL_EMA] = BY_OBJECTIVE
    model_ema_decay: Annotated[float, MODEL_EMA_DECAY] = BY_OBJECTIVE
    grad_checkpointing: Annotated[bool, GRAD_CHECKPOINTING] = False

    def __post_init__(self) -> None:
        self._check("objective")
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

    @classmethod
    def default_of(cls, name: str) -> Any:
        """The default of a setting with the objective labels."""
        return OBJECTIVE_DEFAULTS["labels"].get(name, super().default_of(name))

    @classmethod
    def help_of(cls, name: str) -> str:
        """What a setting does, and its default with the objective features where that is another."""
        text, features = super().help_of(name), OBJECTIVE_DEFAULTS["features"]
        if features.get(name, cls.default_of(name)) == cls.default_of(name):
            return text
        return f"{text.removesuffix('.')} (features: {shown(features[name])})."

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
