"""Selector training (paper 2.2) and the fit of what has a closed form: label-free, the backbone frozen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from tosa_cli.data.loading import Augmentation, Images
from tosa_cli.errors import ConfigError
from tosa_cli.fit.calibrate import CalibrationReport, calibrate
from tosa_cli.methods import SELECTORS
from tosa_cli.model.selectors.attention import attention_kl
from tosa_cli.model.tosa_layers import TosaLayers
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Progress
from tosa_cli.train.checkpoint import fingerprint
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.loop import TrainReport, train
from tosa_cli.train.optimizer import make_optimizer
from tosa_cli.train.schedule import make_scheduler
from tosa_cli.train.weights import Change, Watch


class DistillObjective(nn.Module):
    """Selector training: predict the maps of the pretrained model's next layer (paper 2.2, Eq. 5).

    The backbone runs dense and without gradients; the selectors alone are trained.

    Args:
        model: The ToSA model.
    """

    def __init__(self, model: TosaViT) -> None:
        super().__init__()
        self.model = model
        model.requires_grad_(False)
        model.selectors.requires_grad_(True)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width), summed over the ToSA layers; `targets` are not read."""
        return maps_loss(self.model, self.model.dense_logits(images, self.model.map_layers))

    def train(self, mode: bool = True) -> "DistillObjective":
        """Dropout and the like stay off: the maps are those of the pretrained model."""
        return super().train(False)


def maps_loss(layers: TosaLayers, logits: Mapping[int, Tensor]) -> Tensor:
    """How far what selectors predict is from the maps of the pretrained model (paper Eq. 5), summed over the layers.

    Args:
        layers: Layers with trained selectors.
        logits: Scaled logits (B, H, M, N) of their `map_layers`.
    """
    losses = [attention_kl(layers.selector(layer)(logits[layer - 1]), logits[layer]) for layer in layers.keep_rates]
    return sum(losses)  # type: ignore[return-value]


@dataclass
class DistillReport:
    """What `distill` did; a part is None where the model does not need it.

    Attributes:
        training: Training of the selectors.
        calibration: Fit of bypasses and probes.
        fit_kept: Whether the model has what was fitted; None if nothing was.
        change: How the fit changed the scores of held-out images; None without them.
    """

    training: TrainReport | None = None
    calibration: CalibrationReport | None = None
    fit_kept: bool | None = None
    change: Change | None = None

    @property
    def updates(self) -> int:
        """Optimizer steps."""
        return self.training.updates if self.training else 0

    @property
    def updates_before(self) -> int:
        """Those of them before a resume."""
        return self.training.updates_before if self.training else 0

    @property
    def seconds(self) -> float:
        """Time of both parts."""
        return sum(part.seconds for part in (self.training, self.calibration) if part)

    @property
    def images_per_second(self) -> float | None:
        """Images a second of both parts and all processes together; None if no image was read."""
        images = sum(part.images for part in (self.training, self.calibration) if part)
        return images / self.seconds if images and self.seconds else None

    @property
    def failed(self) -> list[str]:
        """Images that could not be read, with the reason."""
        return list(dict.fromkeys(name for part in (self.training, self.calibration) if part for name in part.failed))


def check_trainable(model: TosaLayers) -> None:
    """Check that layers have something to train or to fit.

    Raises:
        ConfigError: If they have nothing.
    """
    config = model.config
    if not config.needs_distill:
        raise ConfigError(
            f"The selector {config.selector!r} has nothing to train, and the bypass {config.bypass!r} nothing to fit: "
            f"the model is ready to use. Convert with --selector attention or --bypass nearest+linear to distill."
        )


def distill_augmentation(config: DistillConfig) -> Augmentation:
    """Crops and flips; colors stay as they are."""
    return Augmentation(crop_scale=config.crop_scale)


def distill(
    accelerator: Accelerator,
    model: TosaViT,
    images: Images | None,
    calibration: Images | None,
    config: DistillConfig,
    *,
    checkpoint: Path | None,
    watch: Watch | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> DistillReport:
    """Train the selectors of a model in place, then fit its bypasses and probes.

    Args:
        accelerator: From `make_accelerator`.
        model: The ToSA model; its backbone is not changed.
        images: Training images, for a selector that trains step by step; labels are not read.
        calibration: The same images, in order and not augmented, for what is fitted in closed form.
        config: The settings.
        checkpoint: Where the checkpoint is written.
        watch: Measures on held-out images before anything is trained, and before and after the fit. Least squares bring
            each layer nearer to the dense one, which need not help the final tokens: the fit is dropped if, image by
            image, they are farther from the dense model's for it with 95 % confidence. A few images that cannot tell do
            not drop what many were fitted on. Trained selectors are kept in any case.
        resume: Continue from it.
        progress: Told about the advance.

    Raises:
        ConfigError: If there is nothing to train or to fit, or the optimizer or the schedule is unknown.
        DataError: If no image can be read, or one cannot and the settings are strict.
        TrainingError: If the loss or a fit is not finite.
    """
    check_trainable(model)

    def train_selectors(images: Images) -> TrainReport:
        report = train(
            accelerator,
            DistillObjective(model),
            images,
            make_optimizer(model.selector_parameters(), config),
            config,
            checkpoint=checkpoint,
            fingerprint=fingerprint(model),
            resume=resume,
            make_scheduler=make_scheduler(config),
            progress=progress,
        )
        model.requires_grad_(True)
        model.selectors.requires_grad_(False)
        return report

    def fit_rest(images: Images) -> CalibrationReport:
        return calibrate(accelerator, model, images, strict=config.strict, progress=progress)

    trains, is_fitted = SELECTORS[model.config.selector].is_trained, model.config.is_fitted
    if watch is not None:
        watch.attach(accelerator, fitted_parts(model), None, config.seed)
    return train_then_fit(
        partial(train_selectors, images) if trains and images is not None else None,
        partial(fit_rest, calibration) if is_fitted and calibration is not None else None,
        watch,
    )


def train_then_fit(
    train_selectors: Callable[[], TrainReport] | None,
    fit_rest: Callable[[], CalibrationReport] | None,
    watch: Watch | None,
) -> DistillReport:
    """Train what is trained and then fit what is fitted, and keep the fit unless it is for the worse; see `distill`.

    Args:
        train_selectors: Trains the selectors; None where they are not.
        fit_rest: Fits bypasses and probes; None where nothing is fitted.
        watch: Measures on held-out images; it is attached already.
    """
    report = DistillReport()
    if watch is not None:
        # Selectors that predict maps are judged by the maps, and what is fitted by the final tokens.
        watch.look(0)
    if train_selectors is not None:
        report.training = train_selectors()
        if watch is not None:
            watch.start_anew()
            watch.look(report.updates)
    if fit_rest is not None:
        report.calibration = fit_rest()
        report.fit_kept = True
        if watch is not None:
            watch.look(report.updates + 1)
            report.change = Change.between(watch.candidates[0], watch.history[-1])
            report.fit_kept = not report.change.is_worse
            if report.fit_kept:
                watch.keep_last()
            watch.hand_back()
    return report


def fitted_parts(model: TosaLayers) -> nn.ModuleDict:
    """The parts of layers, as one module, that `distill` brings nearer to the dense model, not to its maps."""
    parts = nn.ModuleDict({"bypasses": model.bypasses})
    if not SELECTORS[model.config.selector].is_trained:
        parts["selectors"] = model.selectors
    return parts
