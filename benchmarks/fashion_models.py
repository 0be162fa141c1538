"""The models of the Fashion-MNIST experiment, made from the teacher, with what they cost."""

from collections.abc import Callable
from typing import Any

from fashion_variants import CALIBRATED, PAPER_REDUCTION, Variant, paper
from torch import nn

from tosa_cli.config import TosaConfig
from tosa_cli.measure.flops import GIGA, count_flops
from tosa_cli.measure.merged_flops import count_merged_macs, solve_num_merged
from tosa_cli.measure.merging import MergedViT
from tosa_cli.measure.pruned_flops import count_pruned_macs, solve_pruned_keep_rate
from tosa_cli.measure.pruning import PrunedViT, paper_layers
from tosa_cli.model.backbone import Backbone
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.budget import ErrorCurve, allocate


def build_model(
    variant: Variant, teacher: Backbone, curves: Callable[[], list[ErrorCurve]]
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a model with the teacher's weights; its selectors and bypasses are untrained.

    Args:
        variant: Which one.
        teacher: The dense model; it becomes part of the new one.
        curves: Gives the error curves of its layers.

    Returns:
        The model; its GMACs, the share of the dense MACs that it saves, and what it was set to.
    """
    if variant.kind == "merge":
        return _merged(variant, teacher)
    if variant.kind == "prune":
        return _pruned(variant, teacher)
    config = variant.config
    if variant.kind == "calibrated":
        config = allocate(teacher, CALIBRATED, curves(), target_reduction(variant, teacher))
    elif variant.kind == "dense":
        config = TosaConfig(layers=(len(teacher.blocks),), keep_rate=1.0, selector="random")
    assert config is not None
    model = TosaViT(teacher, config)
    if variant.kind == "dense":
        # No ToSA layer is left: it runs as its backbone, by the same functions as all others.
        model.keep_rates.clear()
    return model, _cost(count_flops(model).gmacs, teacher, {"keep_rates": model.keep_rates})


def target_reduction(variant: Variant, teacher: Backbone) -> float:
    """Share of the dense MACs that a model without a keep rate of its own has to save."""
    return PAPER_REDUCTION if variant.rate is None else count_flops(teacher, paper(variant.rate)).reduction


def _merged(variant: Variant, teacher: Backbone) -> tuple[nn.Module, dict[str, Any]]:
    num_merged = solve_num_merged(teacher, "merge", target_reduction(variant, teacher))
    gmacs = count_merged_macs(teacher, "merge", num_merged) / GIGA
    return MergedViT(teacher, "merge", num_merged), _cost(gmacs, teacher, {"num_merged": list(num_merged)})


def _pruned(variant: Variant, teacher: Backbone) -> tuple[nn.Module, dict[str, Any]]:
    layers = paper_layers(len(teacher.blocks))
    keep_rate = solve_pruned_keep_rate(teacher, layers, target_reduction(variant, teacher))
    gmacs = count_pruned_macs(teacher, keep_rate, layers) / GIGA
    return PrunedViT(teacher, keep_rate, layers), _cost(
        gmacs, teacher, {"keep_rates": dict.fromkeys(layers, keep_rate)}
    )


def _cost(gmacs: float, teacher: Backbone, about: dict[str, Any]) -> dict[str, Any]:
    return {"gmacs": gmacs, "reduction": 1 - gmacs / count_flops(teacher).dense_gmacs, **about}
