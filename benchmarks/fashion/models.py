"""The models of the Fashion-MNIST experiment, made from the teacher, with what they cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.fashion.variants import MATCHED, PAPER_REDUCTION, Variant, paper
from tosa_cli.config import TosaConfig
from tosa_cli.fit.budget import ErrorCurve, allocate
from tosa_cli.model.families import Backbone
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.peers.compare import make_peer


def build_model(
    variant: Variant, teacher: Backbone, curves: Callable[[], list[ErrorCurve]], seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a model with the teacher's weights; its selectors and bypasses are untrained.

    Args:
        variant: Which one.
        teacher: The dense model; it becomes part of the new one.
        curves: Gives the error curves of its layers.
        seed: Draws the weights of the selectors.

    Returns:
        The model; its GMACs, the share of the dense MACs that it saves, and what it was set to.
    """
    if variant.kind == "merge" or variant.kind == "prune":
        peer = make_peer(teacher, variant.kind, target_reduction(variant, teacher))
        return peer.model, {"gmacs": peer.gmacs, "reduction": peer.reduction, **peer.settings}
    config = variant.config
    if variant.kind == "matched":
        config = allocate(teacher, MATCHED, curves(), target_reduction(variant, teacher))
    elif variant.kind == "dense":
        config = TosaConfig(layers=(len(teacher.blocks),), keep_rate=1.0, selector="random")
    assert config is not None
    # Here and no earlier: the error curves, which are measured once, may use random numbers.
    torch.manual_seed(seed)
    model = TosaViT(teacher, config)
    if variant.kind == "dense":
        # No ToSA layer is left: it runs as its backbone, by the same functions as all others.
        model.keep_rates.clear()
    flops = count_flops(model)
    return model, {"gmacs": flops.gmacs, "reduction": flops.reduction, "keep_rates": model.keep_rates}


def target_reduction(variant: Variant, teacher: Backbone) -> float:
    """Share of the dense MACs that a model without a keep rate of its own has to save."""
    return PAPER_REDUCTION if variant.rate is None else count_flops(teacher, paper(variant.rate)).reduction
