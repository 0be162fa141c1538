"""Finetuning of a whole model without labels: its encoder's tokens learn to be the dense model's again."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError
from tosa_cli.model.runs import ImageRun, converted_runs
from tosa_cli.model.runs.insert import dense_copy
from tosa_cli.model.runs.run import ReachedError
from tosa_cli.progress import Progress
from tosa_cli.train.checkpoint import hash_of
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.feature_loss import feature_loss
from tosa_cli.train.loop import TrainReport, train
from tosa_cli.train.optimizer import make_optimizer
from tosa_cli.train.schedule import make_scheduler
from tosa_cli.train.weights import Average, HeldOut, Watch


class TokensObjective(nn.Module):
    """Match the tokens that layers of the encoder say with those of the dense model; the head is not run.

    Args:
        model: The converted model.
        teacher: The dense model; it is frozen.
        layers: Layers whose tokens are matched, the last among them.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher.requires_grad_(False)
        self.layers = tuple(layers)
        self.found = converted_runs(model)[0]
        blocks = self.teacher.get_submodule(self.found.path)
        self.dense_blocks: Any = blocks
        assert self.found.run is not None
        self.num_prefix = self.found.run.patch_embed.num_prefix_tokens

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width); `targets` are not read."""
        with torch.no_grad():
            expected = tokens_behind(self.teacher, self.dense_blocks, images, self.layers)
        made = tokens_behind(self.model, self.found.layers, images, self.layers)
        return feature_loss(made, expected, self.num_prefix, num_class=min(1, self.num_prefix))

    def train(self, mode: bool = True) -> "TokensObjective":
        """Dropout and the like stay off, as a model that only has to stay close to its teacher needs no noise."""
        return super().train(False)


def tokens_behind(model: nn.Module, blocks: Any, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Tokens (B, N, D) behind layers of a run, layer-normalised without weights; what comes after them is not run.

    Args:
        model: The model that the run is in.
        blocks: The list of its blocks.
        images: Images (B, C, height, width).
        layers: The layers, from 1, in rising order.
    """
    found: dict[int, Tensor] = {}

    def keep(number: int, output: Any) -> None:
        found[number] = output[0] if isinstance(output, tuple) else output
        if number == layers[-1]:
            raise ReachedError

    def hook(number: int) -> Any:
        return lambda module, args, output: keep(number, output)

    handles = [blocks[number - 1].register_forward_hook(hook(number)) for number in layers]
    try:
        with suppress(ReachedError):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [F.layer_norm(found[number].float(), found[number].shape[-1:]) for number in layers]


def feature_layers(found: ImageRun, count: int) -> list[int]:
    """So many evenly spread layers of a run before its last, and the last.

    Raises:
        ConfigError: If there are not so many.
    """
    depth = len(found.blocks)
    if count >= depth:
        raise ConfigError(
            f"--feature-layers must be below {depth}, as the encoder has so many layers and the last is matched "
            f"anyway; not {count}."
        )
    return [depth * i // (count + 1) for i in range(1, count + 2)]


def finetune_whole(
    accelerator: Accelerator,
    model: nn.Module,
    images: Images,
    held_out: Images,
    config: FinetuneConfig,
    *,
    checkpoint: Path | None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[TrainReport, Watch]:
    """Train the layers of a converted model from its first ToSA layer on, in place; head and selectors stay.

    Args:
        accelerator: From `make_accelerator`.
        model: The model, or the part of it that takes images, in evaluation mode.
        images: Training images.
        held_out: Images by which the best weights are kept, the start included.
        config: The settings, with the objective `features`.
        checkpoint: Where the checkpoint is written.
        resume: Continue from it.
        progress: Told about the advance.

    Raises:
        ConfigError: If the optimizer or the schedule is unknown, or there are fewer layers than are to be matched.
        DataError: If too many images cannot be read.
        TrainingError: If the loss is not finite.
    """
    model.to(accelerator.device)
    found = converted_runs(model)[0]
    run = found.run
    assert run is not None
    layers = feature_layers(found, config.feature_layers)
    teacher = copy.deepcopy(dense_copy(model)).eval()
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    parts = nn.ModuleDict({"blocks": nn.ModuleList(run.blocks[min(run.keep_rates) - 1 :]), "bypasses": run.bypasses})
    parts.requires_grad_(True)
    average = Average(parts, config.model_ema_decay) if config.model_ema else None
    objective = TokensObjective(model, teacher, layers).train()
    watch = Watch(lambda: held_out_tokens(objective, held_out, accelerator.device), config.eval_every, keep_best=True)
    watch.attach(accelerator, parts, average, config.seed)
    with _recomputing(model, run.blocks, config.grad_checkpointing):
        report = train(
            accelerator,
            objective,
            images,
            make_optimizer(_reached(objective, parts, images), config),
            config,
            checkpoint=checkpoint,
            fingerprint=fingerprint(model),
            resume=resume,
            make_scheduler=make_scheduler(config),
            ema=average,
            watch=watch,
            progress=progress,
        )
    if average is not None:
        parts.load_state_dict(average.module.state_dict())
    watch.hand_back()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required[name])
    model.eval()
    return report, watch


def fingerprint(model: nn.Module) -> str:
    """What tells a converted whole model from all others: the settings of its encoder, and all weights."""
    return hash_of([found.run.to_dict() for found in converted_runs(model) if found.run], model.state_dict())


def _reached(objective: TokensObjective, parts: nn.Module, images: Images) -> list[nn.Parameter]:
    """The parameters that a gradient reaches: several processes need to know which it does not."""
    parameters = list(parts.parameters())
    size = images.samples.transform.size
    sample = torch.zeros(1, objective.found.patches.in_channels, *size, device=parameters[0].device)
    tokens = tokens_behind(objective.model, objective.found.layers, sample, objective.layers)
    gradients = torch.autograd.grad(torch.stack(tokens).square().sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return [parameter for parameter in parameters if parameter.requires_grad]


@torch.no_grad()
def held_out_tokens(objective: TokensObjective, images: Images, device: torch.device) -> HeldOut:
    """Cosines of the tokens behind the last layer to the dense model's."""
    prefix, last = objective.num_prefix, objective.layers[-1:]
    patches, classes = [], []
    objective.eval()
    for batch in images.batches(strict=False):
        pixels = batch.images.to(device)
        expected = tokens_behind(objective.teacher, objective.dense_blocks, pixels, last)[0]
        cosine = F.cosine_similarity(
            expected, tokens_behind(objective.model, objective.found.layers, pixels, last)[0], -1
        )
        patches.append(cosine[:, prefix:].mean(1).cpu())
        classes.append(cosine[:, 0].cpu())
    figures = {"patch_cosine": torch.cat(patches)} | ({"class_cosine": torch.cat(classes)} if prefix else {})
    scores = torch.stack([*figures.values()]).mean(0)
    means = {name: values.mean().item() for name, values in figures.items()}
    return HeldOut(len(scores), scores.mean().item(), means, scores=scores.tolist())


@contextmanager
def _recomputing(model: Any, blocks: Iterable[nn.Module], asked: bool) -> Iterator[None]:
    """Within this context blocks of a model are computed again in the backward pass, to save memory, where asked for.

    Raises:
        ConfigError: If the model does not do so.
    """
    if not asked:
        yield
        return
    if not hasattr(model, "gradient_checkpointing_enable"):
        raise ConfigError(f"{type(model).__name__} computes no layer again: leave out --grad-checkpointing.")
    # The reentrant kind leaves out the gradients of a block whose input needs none.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # A block does so in training alone. Its dropout and the like, which stay off, are modules of their own.
    for block in blocks:
        block.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
