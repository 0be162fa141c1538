"""Families that are converted, and what tests look at in their blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tosa_cli.model.tosa_vit import TosaViT

from .families import make_family
from .tiny_models import make_images, make_tosa

LAYERS = (2, 4)


def convert_family(family: str, **settings: Any) -> TosaViT:
    """A ToSA model of a family, every other layer."""
    return make_tosa(make_family(family), **{"layers": LAYERS, "keep_rate": 0.6, **settings})


def images_of(model: Any, batch: int = 2) -> Tensor:
    return make_images(batch, tuple(model.patch_embed.img_size))


class AddToLogits(TorchFunctionMode):
    """Adds something to the logits of every attention that is computed, whatever else is added to them."""

    def __init__(self, added: Tensor) -> None:
        super().__init__()
        self.added = added

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            bias = kwargs.get("attn_mask")
            kwargs["attn_mask"] = self.added if bias is None else bias + self.added
        return func(*args, **kwargs)


def hide_skipped(keep_indices: Tensor, length: int, sizes: Tensor | None = None) -> Tensor:
    """What is added to logits so that only selected tokens (B, K) are attended to: (B, 1, 1, N)."""
    values = torch.zeros(keep_indices.shape) if sizes is None else sizes.log()
    return torch.full((len(keep_indices), length), -torch.inf).scatter(1, keep_indices, values)[:, None, None]


class RunHidden:
    """Runs some blocks of a timm model as ToSA layers that compute every token, and throw away what is skipped."""

    def __init__(self, model: Any, keep_indices: dict[int, Tensor]) -> None:
        for layer, keep in keep_indices.items():
            model.blocks[layer - 1].register_forward_hook(self.replace(keep), with_kwargs=True)

    def replace(self, keep: Tensor) -> Any:
        def hook(block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            (tokens,) = args
            kwargs = {name: value for name, value in kwargs.items() if name != "is_causal"}
            with AddToLogits(hide_skipped(keep, tokens.shape[1])):
                computed = block.forward(tokens, **kwargs)
            is_kept = torch.zeros(tokens.shape[:2], dtype=torch.bool).scatter(1, keep, True)
            return torch.where(is_kept[..., None], computed, tokens)

        return hook


class ReadArgument(TorchFunctionMode):
    """Notes what a function is called with.

    Args:
        function: The function.
        place: Which of its arguments, by its place.
    """

    def __init__(self, function: Callable[..., Any], place: int) -> None:
        super().__init__()
        self.function, self.place = function, place
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.function:
            self.found.append(args[self.place])
        return func(*args, **(kwargs or {}))


read_softmax = partial(ReadArgument, Tensor.softmax, 0)
"""Notes what goes into the softmax of attention that is not fused."""

read_keys = partial(ReadArgument, F.scaled_dot_product_attention, 1)
"""Notes the keys that are attended with."""
