"""How a model is called on a batch, whatever the batch is, and what tensors come out."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.errors import ConfigError, DataError
from tosa_cli.model.runs.find import ImageRun

DEFAULT_SIZE = 224
EXAMPLES = 2


@dataclass(frozen=True)
class Call:
    """A call of a model.

    Attributes:
        module: What is called: the model, or a part of it.
        args: With what.
        kwargs: Likewise, by name.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @torch.no_grad()
    def outputs(self) -> dict[str, Tensor]:
        """The tensors of numbers that come out, by what they are called."""
        return tensors_of(self.module(*self.args, **self.kwargs))

    def outputs_or_why(self) -> dict[str, Tensor]:
        """The same, of a batch that is the user's.

        Raises:
            DataError: If the model does not take it.
        """
        try:
            return self.outputs()
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            words = " ".join(str(error).split())[:200]
            if "memory" in words:
                raise
            values = [*self.args, *self.kwargs.values()]
            shapes = " and ".join("x".join(map(str, value.shape)) for value in values if isinstance(value, Tensor))
            raise DataError(
                f"{type(self.module).__name__} was not run on what it was given, of the shape {shapes} ({words}). Give "
                f"it batches that it takes; of photos it is its processor that makes them."
            ) from error


def call_on(model: nn.Module, batch: Any) -> Call:
    """The call of a model on a batch.

    Args:
        model: Any model.
        batch: Images (B, C, height, width), a tuple of what the model is called with, or a dictionary of it by name.
    """
    parameter = next(model.parameters(), None)

    def moved(value: Any) -> Any:
        if parameter is None or not isinstance(value, Tensor):
            return value
        return value.to(parameter) if value.is_floating_point() else value.to(parameter.device)

    if isinstance(batch, Mapping):
        return Call(model, (), {name: moved(value) for name, value in batch.items()})
    if isinstance(batch, (tuple, list)):
        return Call(model, tuple(moved(value) for value in batch), {})
    return Call(model, (moved(batch),), {})


def example_call(model: nn.Module, found: ImageRun, example: Any = None) -> Call:
    """A call that sends images through a run.

    Args:
        model: The model.
        found: One of its runs.
        example: A batch that the model takes; None makes one of random images of the model's own size, for the
            smallest part of it that takes images.

    Raises:
        ConfigError: If that part does not take them: an example is needed.
    """
    if example is not None:
        return call_on(model, example)
    tower: Any = image_tower(model, found)
    parameter = next(tower.parameters())
    height, width = _image_size(tower, found)
    generator = torch.Generator().manual_seed(0)
    shape = (EXAMPLES, found.patches.in_channels, height, width)
    images = torch.randn(shape, generator=generator).to(parameter)
    call = Call(tower, (images,), {"output_hidden_states": True} if hasattr(tower, "config") else {})
    try:
        call.outputs()
    except (TypeError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(tower).__name__} was not run on images of {height}x{width} pixels ({words}): pass a batch that the "
            f"model takes, as in convert(model, config, example=batch)."
        ) from error
    return call


def tensors_of(output: Any, name: str = "output") -> dict[str, Tensor]:
    """The tensors of numbers in what a model returns, by names such as `logits` or `hidden_states.3`."""
    if isinstance(output, Tensor):
        return {name: output} if output.is_floating_point() else {}
    parts: list[tuple[str, Any]] = []
    if isinstance(output, Mapping):
        parts = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        parts = [(str(index), value) for index, value in enumerate(output)]
    prefix = "" if name == "output" and isinstance(output, Mapping) else f"{name}."
    found: dict[str, Tensor] = {}
    for key, value in parts:
        found |= tensors_of(value, f"{prefix}{key}")
    return found


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a model of transformers, which has a config and can be saved."""
    return hasattr(module, "config") and hasattr(module, "save_pretrained")


def image_tower(model: nn.Module, found: ImageRun) -> nn.Module:
    """The smallest part of a model of transformers around a run that is called with images; of others the model."""
    around = parts_around(model, found)
    return next((part for part in around if next(iter(_names(part)), "") == "pixel_values"), model)


def parts_around(model: nn.Module, found: ImageRun) -> list[nn.Module]:
    """The parts of a model around a run that turn images into patches, the smallest first."""
    around = [part for part in model.modules() if any(inner is found.tower for inner in part.modules())]
    return around[::-1]


def _names(module: nn.Module) -> list[str]:
    """Names of what a module is called with."""
    return list(inspect.signature(module.forward).parameters)


def _image_size(tower: Any, found: ImageRun) -> tuple[int, int]:
    sizes = [getattr(tower, "config", None), getattr(tower, "patch_embed", None), getattr(found.tower, "config", None)]
    for holder in sizes:
        size = getattr(holder, "image_size", None) or getattr(holder, "img_size", None)
        if size:
            height, width = size if isinstance(size, (tuple, list)) else (size, size)
            return int(height), int(width)
    return DEFAULT_SIZE, DEFAULT_SIZE
