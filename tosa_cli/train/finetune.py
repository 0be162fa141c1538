"""Finetuning with frozen selectors (paper 2.3), whatever is learned: set a model up, train its parts, keep the best."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from tosa_cli.data.loading import Images
from tosa_cli.model.families import kind_of
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.progress import Progress
from tosa_cli.train.checkpoint import fingerprint
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.loop import TrainReport, train
from tosa_cli.train.optimizer import make_optimizer
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.train.schedule import make_scheduler
from tosa_cli.train.weights import Average, Watch

ChangeBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Changes images and targets on their way, as mixup does."""


@dataclass(frozen=True)
class Learned:
    """What is learned of a model.

    Attributes:
        objective: Module from images and targets to a loss; what it trains requires gradients.
        parts: The parts that train, as one module.
        groups: Their parameters in groups, as timm's optimizers and schedules take them.
        change_batch: What is done to a batch before; None does nothing.
        recompute: Whether layers may be recomputed in the backward pass to save memory, as gradients go through them.
    """

    objective: nn.Module
    parts: nn.Module
    groups: list[dict[str, Any]]
    change_batch: ChangeBatch | None = None
    recompute: bool = True


def finetune(
    accelerator: Accelerator,
    model: FinetunableViT | Predictor,
    images: Images,
    config: FinetuneConfig | PredictorConfig,
    learn: Callable[[], Learned],
    *,
    checkpoint: Path | None,
    watch: Watch | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Train a model in place, and leave it in evaluation mode with the weights to keep: last, average or best.

    What requires gradients afterwards is what did before.

    Args:
        accelerator: From `make_accelerator`.
        model: The model: a ToSA model or a peer of it, as `MergedViT`, or a predictor.
        images: Training images.
        config: The settings.
        learn: Tells what is learned, once the model is on its device.
        checkpoint: Where the checkpoint is written.
        watch: Measures on held-out images on the way, and hands back the best weights if it keeps them.
        resume: Continue from the checkpoint.
        progress: Told about the advance.

    Raises:
        ConfigError: If the optimizer or the schedule is unknown.
        DataError: If a target is wrong, or too many images cannot be read.
        TrainingError: If the loss is not finite.
        TosaError: As `learn` does.
    """
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if config.drop_path is not None:
        set_drop_path(model, config.drop_path)
    # On its device before it is copied: the average stays where the model is.
    model.to(accelerator.device)
    run_of = fingerprint(model)
    learned = learn()
    model.set_grad_checkpointing(config.grad_checkpointing and learned.recompute)
    ema = Average(learned.parts, config.model_ema_decay) if config.model_ema else None
    if watch is not None:
        watch.attach(accelerator, learned.parts, ema, config.seed)
    report = train(
        accelerator,
        learned.objective,
        images,
        make_optimizer(learned.groups, config),
        config,
        checkpoint=checkpoint,
        fingerprint=run_of,
        resume=resume,
        make_scheduler=make_scheduler(config),
        change_batch=learned.change_batch,
        ema=ema,
        watch=watch,
        progress=progress,
    )
    if ema is not None:
        learned.parts.load_state_dict(ema.module.state_dict())
    if watch is not None:
        watch.hand_back()
    model.set_grad_checkpointing(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required[name])
    model.eval()
    return report


def set_drop_path(model: FinetunableViT | Predictor, rate: float) -> None:
    """Set the stochastic depth rate of a model's blocks, which rises to `rate` from the first to the last."""
    rates: list[float] = calculate_drop_path_rates(rate, len(model.blocks))  # type: ignore[assignment]
    for block, probability in zip(model.blocks, rates, strict=True):
        kind_of(block).set_drop_path(block, probability)
