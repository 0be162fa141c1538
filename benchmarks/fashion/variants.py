"""What the Fashion-MNIST experiment compares: the models, and the settings that all of them share."""

from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.lab import FIVE
from tosa_cli.config import TosaConfig

PAPER_RATE, LOW_RATE = 0.8, 0.4
"""The paper's keep rate, and the one whose arithmetic gives about the 25.8 % that its Table 1 reports."""
KEEP_RATES = (PAPER_RATE, LOW_RATE)
PAPER_REDUCTION = 0.258
LOW_MATCHED = f"matched, -{PAPER_REDUCTION:.1%}"
"""Name of the matched model that saves that."""
MATCHED = TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+affine", span=2)
"""The preset `matched`; its layers and keep rates come from error curves."""


@dataclass(frozen=True)
class Settings:
    """How much is trained and measured; the defaults are the experiment.

    Attributes:
        seeds: Each draws the images of calibration, distillation and finetuning, and their order.
        finetune_images: Training images of finetuning, read once.
        rate_images: Other training images, by which the learning rate is chosen.
        distill_images: Training images of selector training, read once and without their labels.
        curve_images: Training images of the error curves.
        calibration_images: Training images of the fit of a bypass.
        test_images: Test images of the accuracy after finetuning.
        start_images: Test images of the accuracy without finetuning; the matched models take `test_images`.
        selector_images: Test images that selectors are compared on.
        speed_batch: Images a batch where models are timed.
        speed_rounds: Turns of each model.
        speed_seconds: Least time of a turn.
        checkpoint_every: Optimizer steps between checkpoints.
        workers: Processes that load data.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    finetune_images: int = 10_240
    rate_images: int = 2_000
    distill_images: int = 4_000
    curve_images: int = 128
    calibration_images: int = 2_000
    test_images: int = 10_000
    start_images: int = 2_000
    selector_images: int = 500
    speed_batch: int = 64
    speed_rounds: int = 9
    speed_seconds: float = 0.5
    checkpoint_every: int = 50
    workers: int = 1


FINETUNE: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 64,
    "opt": "adamw",
    "min_lr": 1e-6,
    "warmup_epochs": 0.0,
    "weight_decay": 0.05,
    "smoothing": 0.1,
    "crop_scale": 0.7,
    "hflip": 0.5,
    "model_ema": False,
    "eval_every": 0,
    "amp": "bf16",
    "device": "cpu",
}
"""Finetuning, the same for every model but for the learning rate, which is chosen of `RATES`."""
RATES = (1e-4, 3e-4, 1e-3)

DISTILL: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 16,
    "opt": "adamw",
    "lr": 1e-2,
    "crop_scale": 0.7,
    "amp": "bf16",
    "device": "cpu",
}
"""Selector training, the same for every model that needs it."""

Kind = Literal["dense", "tosa", "matched", "merge", "prune"]


@dataclass(frozen=True)
class Variant:
    """One model of the comparison.

    Attributes:
        name: What it is called in the results.
        kind: How it is made.
        config: Its settings, for `tosa`.
        rate: Keep rate of the paper's setting whose MACs it is given, for the kinds without a keep rate of their own;
            None asks for `PAPER_REDUCTION`.
    """

    name: str
    kind: Kind
    config: TosaConfig | None = None
    rate: float | None = None

    @property
    def is_distilled(self) -> bool:
        """Whether its selectors are trained."""
        return self.config is not None and self.config.selector == "attention"

    @property
    def selector_key(self) -> str:
        """Models with the same key share trained selectors: training reads neither keep rate nor selection."""
        assert self.config is not None
        return f"{self.config.query_rows} rows"


def paper(keep_rate: float, **settings: Any) -> TosaConfig:
    """The paper's setting at a keep rate, with all query rows where nothing else is said."""
    return TosaConfig(layers=FIVE, keep_rate=keep_rate, **{"query_rows": "all", **settings})


def variants() -> list[Variant]:
    """All models, those that matter most first."""
    found = [Variant("dense", "dense")]
    found += [tosa(rate) for rate in KEEP_RATES]
    found += [
        Variant(f"{selector} {rate}", "tosa", paper(rate, selector=selector))
        for selector in ("random", "previous")
        for rate in KEEP_RATES
    ]
    found += [Variant(f"matched, MACs of {PAPER_RATE}", "matched", rate=PAPER_RATE)]
    found += [Variant(LOW_MATCHED, "matched")]
    found += [Variant(f"merging, MACs of {rate}", "merge", rate=rate) for rate in KEEP_RATES]
    found += [Variant(f"pruning, MACs of {rate}", "prune", rate=rate) for rate in KEEP_RATES]
    found += [tosa(rate, query_rows=16) for rate in KEEP_RATES]
    found += [tosa(rate, selection="per-head") for rate in KEEP_RATES]
    found += [tosa(rate, selection="per-head", query_rows=16) for rate in KEEP_RATES]
    return found


def tried() -> list[Variant]:
    """The models that the learning rate is chosen by: it is the same for all."""
    return [Variant("dense", "dense"), tosa(LOW_RATE)]


def tosa(rate: float, **settings: Any) -> Variant:
    """The paper's model at a keep rate."""
    config = paper(rate, **settings)
    return Variant(f"ToSA {rate}, {config.selection}, {config.query_rows} rows", "tosa", config)
