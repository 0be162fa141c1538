"""Multiply-accumulates of a whole model: its layers by arithmetic, all that is around them as PyTorch counts it."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.flops import count_layers, largest_rate
from tosa_cli.model.flops_report import GIGA, FlopsReport, LayerFlops
from tosa_cli.model.runs.calls import Call, call_on, example_call, is_transformers
from tosa_cli.model.runs.find import ImageRun, converted_runs
from tosa_cli.model.runs.insert import dense
from tosa_cli.model.runs.run import Run

TEXT_LENGTH = 16
"""Number of tokens of the text that is counted with an image, in a model that takes both."""


@dataclass(frozen=True)
class WholeFlops(FlopsReport):
    """MACs of a whole model for one image, in GMACs: the head is in all figures but those of the layers.

    Attributes:
        encoder_gmacs: MACs of the layers alone, selectors and bypasses included.
        encoder_dense_gmacs: The same of the source model.
        counted: What was counted: the class of the model, or of the part of it that takes images alone.
    """

    encoder_gmacs: float = 0.0
    encoder_dense_gmacs: float = 0.0
    counted: str = ""

    @property
    def encoder_reduction(self) -> float:
        """Share of the dense MACs of the layers that is saved."""
        return 1 - self.encoder_gmacs / self.encoder_dense_gmacs


def count_whole(model: nn.Module, batch: Any = None, name: str = "") -> WholeFlops:
    """Count the MACs of a converted model, head and all.

    Args:
        model: The converted model.
        batch: What it is called with, for one image; None makes an image of the model's own size.
        name: Name for the report.

    Raises:
        ConfigError: If the model is not converted, or does not take the batch.
    """
    runs = converted_runs(model)
    if not runs:
        raise ConfigError("The model is not converted: convert it first.")
    layers: list[LayerFlops] = []
    for found in runs:
        run = found.run
        assert run is not None
        layers += count_layers(run, run.config, run.keep_rates)
    with dense(model):
        call, whole = _count_one(model, runs[0], batch)
    dense_layers = sum(layer.dense_macs for layer in layers)
    selector, bypass = (sum(getattr(layer, key) for layer in layers) for key in ("selector_macs", "bypass_macs"))
    kept = sum(layer.macs for layer in layers) + selector + bypass
    total = whole - dense_layers + kept
    first = runs[0].run
    assert first is not None
    return WholeFlops(
        model=name or type(model).__name__,
        img_size=first.patch_embed.img_size,
        gmacs=total / GIGA,
        dense_gmacs=whole / GIGA,
        reduction=1 - total / whole,
        selector_gmacs=selector / GIGA,
        bypass_gmacs=bypass / GIGA,
        norm_gmacs=0.0,
        params=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
        encoder_gmacs=kept / GIGA,
        encoder_dense_gmacs=dense_layers / GIGA,
        counted=type(call.module).__name__,
    )


def count_run(run: Run, config: TosaConfig) -> float:
    """Share of the MACs of a run's layers that a conversion saves, selectors and bypasses counted."""
    layers = list(count_layers(run, config, config.keep_rates))
    made = sum(layer.macs + layer.selector_macs + layer.bypass_macs for layer in layers)
    return 1 - made / sum(layer.dense_macs for layer in layers)


def solve_run_rate(run: Run, method: Method, layers: tuple[int, ...], target_reduction: float) -> float:
    """The largest keep rate of layers that saves a share of the MACs of a run's layers, as `largest_rate` finds it."""
    return largest_rate(layers, target_reduction, lambda rate: count_run(run, method.at(layers, rate)))


def counted_call(call: Call) -> int:
    """MACs of a call, as PyTorch counts them: without computing anything, if the model lets it."""

    def moved(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    module = call.module
    tensors = {name: tensor.to("meta") for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    args = tuple(moved(value) for value in call.args)
    kwargs = {name: moved(value) for name, value in call.kwargs.items()}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(module, tensors, args, kwargs)
    except (RuntimeError, NotImplementedError):
        # It looks at a number on its way. PyTorch does not count fused attention on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call.outputs()
    return counter.get_total_flops() // 2


def _count_one(model: nn.Module, found: ImageRun, batch: Any) -> tuple[Call, int]:
    """A call on one image, with its MACs: of the whole model if it takes an image, alone or with a text; else of its
    tower."""
    if batch is not None:
        return _counted(call_on(model, batch))
    tower = example_call(model, found)
    image = tower.args[0][:1]
    if not is_transformers(model):
        return _counted(Call(model, (image,), {}))
    names = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {"pixel_values": image}
    if "input_ids" in names:
        given["input_ids"] = torch.ones((1, TEXT_LENGTH), dtype=torch.long, device=image.device)
    try:
        return _counted(Call(model, (), given))
    except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError, UnsupportedModelError):
        return _counted(Call(tower.module, (image,), {}))


def _counted(call: Call) -> tuple[Call, int]:
    return call, counted_call(call)
