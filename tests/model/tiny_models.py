"""Tiny real timm models whose weights make every layer matter, and the ToSA models made of them."""

import copy
import functools
import math
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.tosa_vit import TosaViT

MODELS = ("test_vit", "test_vit2", "test_vit3", "test_vit4")
"""Class token; LayerScale, a register and average pooling; attention pooling; RMSNorm. 6 to 9 layers, 160 pixels."""

LAYERS = (2, 4, 6)

ROWS = [16, "all"]
"""Query rows that a selector may read."""

SELECTIONS = ["shared", "per-head"]


def make_vit(name: str = "test_vit", seed: int = 0, **args: Any) -> nn.Module:
    """A dense timm model with weights that differ from layer to layer."""
    settings = tuple(sorted(args.items()))
    build = _build if _is_hashable(settings) else _build.__wrapped__
    return copy.deepcopy(build(name, seed, settings))


@functools.lru_cache(maxsize=64)
def _build(name: str, seed: int, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    return randomize_(timm.create_model(name, **dict(settings)), seed).eval()


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def make_tosa(source: str | nn.Module = "test_vit", **settings: Any) -> TosaViT:
    """A ToSA model made of a copy of `source`, with selectors as if trained."""
    backbone = make_vit(source) if isinstance(source, str) else copy.deepcopy(source)
    model = TosaViT(backbone, TosaConfig(**{"layers": LAYERS, "keep_rate": 0.5, **settings}))
    randomize_(model.selectors, seed=1)
    return model.eval()


def make_images(batch: int = 2, size: int | tuple[int, int] = 160, seed: int = 0) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomize_(module: nn.Module, seed: int) -> nn.Module:
    """Give a module weights of a trained one's size: timm's own leave attention uniform and LayerScale near 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and name.endswith("weight"):
            noise *= 1.5 / math.sqrt(parameter[0].numel())
        elif name.endswith("bias") or parameter.ndim > 1:
            noise *= 0.3
        else:  # weights of norms, and LayerScale
            noise = 1 + 0.3 * noise
        parameter.copy_(noise)
    return module
