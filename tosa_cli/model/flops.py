"""Multiply-accumulates (MACs) of a model, layer by layer, by arithmetic on its shapes.

Counted are matrix products and convolutions, as PyTorch's own counter does; FLOPs = 2 * MACs. timm's published
figures (1.26 GMACs for DeiT-Tiny) add five operations for each element that a LayerNorm reads: `norm_gmacs` has them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, PatchEmbed, RmsNorm, RmsNorm2d
from torch import nn

from tosa_cli import methods
from tosa_cli.bisection import largest
from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.model.bypasses import BYPASSES
from tosa_cli.model.families import (
    Backbone,
    check_convertible,
    counted_macs,
    family_of,
    head_dim,
    key_dim,
    kind_of,
    linear_macs,
    num_heads,
    why_ineligible,
)
from tosa_cli.model.flops_report import GIGA, FlopsReport, LayerFlops
from tosa_cli.model.selection import num_kept
from tosa_cli.model.selectors import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT

NORM_MACS_PER_ELEMENT = 5


def count_flops(model: Backbone | TosaViT, config: TosaConfig | None = None, name: str = "") -> FlopsReport:
    """Count the MACs of a ToSA model, or of a dense timm ViT.

    Args:
        model: A `TosaViT`, or a dense model; it may be on the meta device.
        config: For a dense model, count as if it were converted so; None counts it as it is.
        name: Name for the report.

    Returns:
        The report, for one image of the model's own size.

    Raises:
        UnsupportedModelError: If a dense model cannot be converted as `config` says.
        ConfigError: If it does not have the layers.
    """
    params = sum(parameter.numel() for parameter in model.parameters())
    keep_rates: dict[int, float] = {}
    if isinstance(model, TosaViT):
        config, keep_rates, backbone = model.config, model.keep_rates, model.backbone
    else:
        backbone = model
        if config is not None:
            check_convertible(backbone, config)
            keep_rates = config.keep_rates
            choosing = config.choosing_layers
            params += sum(_added_params(backbone, config, layer, choosing[layer] == layer) for layer in config.layers)
    layers = list(count_layers(backbone, config, keep_rates))
    outside = (
        _embed_macs(backbone) + head_macs(backbone, _num_tokens(backbone)) + family_of(backbone).shared_macs(backbone)
    )
    dense = outside + sum(layer.dense_macs for layer in layers)
    selector = sum(layer.selector_macs for layer in layers)
    bypass = sum(layer.bypass_macs for layer in layers)
    total = outside + sum(layer.macs for layer in layers) + selector + bypass
    height, width = backbone.patch_embed.img_size
    return FlopsReport(
        model=name,
        img_size=(height, width),
        gmacs=total / GIGA,
        dense_gmacs=dense / GIGA,
        reduction=1 - total / dense,
        selector_gmacs=selector / GIGA,
        bypass_gmacs=bypass / GIGA,
        norm_gmacs=_norm_macs(backbone) / GIGA,
        params=params,
        layers=layers,
    )


def solve_keep_rate(model: Backbone, config: TosaConfig, target_reduction: float) -> TosaConfig:
    """Find the one keep rate for all ToSA layers that saves a share of the dense MACs, selector included.

    Args:
        model: The dense model.
        config: Layers, selector and selection; its keep rate is ignored.
        target_reduction: Share of the dense MACs to save, as 0.258 for 25.8 %.

    Returns:
        The config with the largest keep rate, to three decimals, that saves at least as much.

    Raises:
        ConfigError: If the share is not between 0 and 1, or these layers cannot save as much.
    """

    def at(keep_rate: float) -> TosaConfig:
        return dataclasses.replace(config, keep_rate=keep_rate)

    return at(largest_rate(config.layers, target_reduction, lambda rate: count_flops(model, at(rate)).reduction))


def largest_rate(layers: Sequence[int], target_reduction: float, saved: Callable[[float], float]) -> float:
    """Find the largest keep rate, to three decimals, at which a share of the MACs is saved.

    Args:
        layers: The ToSA layers, which all get it.
        target_reduction: The share to save.
        saved: The share that is saved at a keep rate.

    Raises:
        ConfigError: If the share to save is not between 0 and 1, or these layers cannot save as much.
    """
    if not 0 < target_reduction < 1:
        raise ConfigError(f"The target reduction is {target_reduction}, but must be between 0 and 1, as in 0.25.")
    if saved(0.001) < target_reduction:
        raise ConfigError(
            f"The target reduction {target_reduction:.1%} cannot be reached: with layers "
            f"{','.join(map(str, layers))} at most {saved(0.001):.1%} is saved. Name more layers."
        )
    return largest(1, 1000, lambda thousandths: saved(thousandths / 1000) >= target_reduction) / 1000


def count_layers(
    backbone: Backbone | Any, config: TosaConfig | None, keep_rates: dict[int, float]
) -> Iterator[LayerFlops]:
    """Count the MACs of each layer of a dense model.

    Args:
        backbone: The dense model, or a run of blocks inside another.
        config: Settings of the conversion; None counts the dense layers.
        keep_rates: Keep rate of each ToSA layer.
    """
    tokens = entering = _num_tokens(backbone)
    for layer, block in enumerate(backbone.blocks, start=1):
        dense = _block_macs(block, tokens, backbone.embed_dim)
        if config is None or layer not in keep_rates:
            feeding = config is not None and layer + 1 in keep_rates and config.reads_maps
            yield LayerFlops(layer, "feeding" if feeding else "standard", tokens, tokens, dense, dense)
            entering = tokens
            continue
        chooses = config.choosing_layers[layer] == layer
        counted = count_tosa_layer(backbone, config, layer, keep_rates[layer], chooses, entering)
        if config.groups_tokens:
            entering = counted.kept
        yield counted


def count_tosa_layer(
    backbone: Backbone,
    method: Method,
    layer: int,
    keep_rate: float,
    chooses: bool = True,
    entering: int | None = None,
) -> LayerFlops:
    """Count the MACs of one ToSA layer with what belongs to it: selector, query rows in the feeding layer, bypass.

    Args:
        backbone: The dense model.
        method: Selector, selection and bypass.
        layer: Which layer, from 1.
        keep_rate: Its keep rate.
        chooses: Whether it makes a choice of tokens, or uses that of a layer before it.
        entering: How many groups of tokens enter it; None where every token does.
    """
    block, tokens = backbone.blocks[layer - 1], _num_tokens(backbone)
    entering = entering or tokens
    kept = min(entering, num_kept(tokens, keep_rate, backbone.num_prefix_tokens))
    kind = kind_of(block)
    return LayerFlops(
        layer,
        "tosa",
        tokens,
        kept,
        kind.macs(block, tokens),
        _per_head_block_macs(block, tokens, kept) if method.selection == "per-head" else kind.macs(block, kept),
        SELECTORS[method.selector].macs(backbone, layer, method, entering, kept) if chooses else 0,
        _bypass_macs(backbone, method, layer, kept, chooses),
    )


def _num_tokens(backbone: Backbone) -> int:
    return int(backbone.patch_embed.num_patches) + backbone.num_prefix_tokens


def _block_macs(block: nn.Module, tokens: int, dim: int) -> int:
    if why_ineligible(block, "shared") is None:
        return kind_of(block).macs(block, tokens)
    # What it is made of is not known; PyTorch counts it without computing anything.
    return counted_macs(block, 1, tokens, dim)


def _per_head_block_macs(block: Any, tokens: int, kept: int) -> int:
    # Each head projects and attends among its own K tokens; the output projection and the MLP see every token.
    projection = linear_macs(block.attn.qkv)
    return kept * projection + tokens * (linear_macs(block) - projection) + 2 * kept * kept * _attention_dim(block)


def _attention_dim(block: nn.Module) -> int:
    """Width of the heads of a block together."""
    return num_heads(block) * head_dim(block)


def _bypass_macs(backbone: Backbone, method: Method, layer: int, kept: int, chooses: bool) -> int:
    tokens, dim = _num_tokens(backbone), backbone.embed_dim
    skipped = tokens - kept
    macs = skipped * BYPASSES[method.bypass].macs(dim)
    if not (chooses and method.matches_tokens) or methods.SELECTORS[method.selector].compares_keys:
        return macs
    width = key_dim(backbone.blocks[layer - 1], dim)
    return macs + tokens * dim * width + skipped * (kept - backbone.num_prefix_tokens) * width


def _added_params(backbone: Backbone, method: Method, layer: int, chooses: bool) -> int:
    """Parameters that a ToSA layer gets: selector and bypass; the frozen keys are none."""
    with torch.device("meta"):
        added: list[nn.Module] = [BYPASSES[method.bypass](backbone.embed_dim)]
        if chooses:
            added.append(SELECTORS[method.selector].for_layer(backbone, layer, method))
    return sum(parameter.numel() for module in added for parameter in module.parameters())


def _embed_macs(backbone: Backbone) -> int:
    embed: Any = backbone.patch_embed
    if type(embed) is PatchEmbed:
        return int(embed.num_patches) * embed.proj.weight.numel()
    # A convolutional stem has shapes of its own; PyTorch counts it without computing anything.
    return counted_macs(embed, 1, backbone.in_chans, *embed.img_size)


def head_macs(backbone: Backbone, tokens: int) -> int:
    """MACs of what pools so many tokens and classifies, prefix tokens included in their number."""
    heads = [getattr(backbone, name, None) for name in ("head", "head_dist")]
    macs = sum(linear_macs(head) for head in heads if head is not None)
    pool = getattr(backbone, "attn_pool", None)
    if pool is None:
        return macs
    if not getattr(backbone, "pool_include_prefix", True):
        tokens -= backbone.num_prefix_tokens
    if isinstance(pool, AttentionPoolLatent):
        keys = linear_macs(pool.kv)
        dim = pool.num_heads * pool.head_dim
        return macs + tokens * keys + pool.latent_len * (linear_macs(pool) - keys + 2 * tokens * dim)
    return macs + counted_macs(pool, 1, tokens, backbone.embed_dim)


def _norm_macs(backbone: Backbone) -> int:
    tokens = _num_tokens(backbone)
    norms = (nn.LayerNorm, RmsNorm, RmsNorm2d)
    in_layers = sum(math.prod(norm.normalized_shape) for norm in backbone.modules() if isinstance(norm, norms))
    return NORM_MACS_PER_ELEMENT * tokens * in_layers
