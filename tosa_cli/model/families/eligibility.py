"""Which layers of a model can be ToSA layers, and why others cannot; those run with every token as they are."""

from typing import Any

from torch import nn

from tosa_cli.config import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.methods import Selection
from tosa_cli.model.families.backbone import Backbone
from tosa_cli.model.families.base import names_of
from tosa_cli.model.families.registry import FAMILIES, family_of, kind_of, name_of, why_unknown


def check_convertible(model: Any, config: TosaConfig) -> None:
    """Check that a model has the layers that a config asks for, and that they can be ToSA layers.

    Raises:
        UnsupportedModelError: If the model is of no known type, or a layer cannot be a ToSA layer, or its selector
            cannot read the layer before it: a sentence that says why, and which layers can be.
        ConfigError: If the model does not have a layer.
    """
    check_supported(model, config.selection)
    config.check_depth(len(model.blocks))
    for layer in config.layers:
        reason = why_not(model, layer, config.selection, config.reads_maps)
        if reason is not None:
            others = eligible_layers(model, config.selection, config.reads_maps)
            which = f"layers that can are {','.join(map(str, others))}" if others else "no layer can"
            raise UnsupportedModelError(f"{reason.removesuffix('.')}; {which}.")


def check_supported(model: Any, selection: Selection = "shared") -> None:
    """Check that a model can be converted: that tokens can be selected in some layer of it.

    Args:
        model: A model.
        selection: `shared` or `per-head`.

    Raises:
        UnsupportedModelError: Naming the type that is not supported, and the reason.
    """
    family_of(model)
    reason = why_unsupported(model, selection)
    if reason is not None:
        raise UnsupportedModelError(reason)


def why_unsupported(model: Any, selection: Selection = "shared") -> str | None:
    """One sentence that says why a model cannot be converted with this selection; None if some layer of it can be."""
    reason = why_unknown(model)
    if reason is not None or eligible_layers(model, selection):
        return reason
    return why_not(model, 1, selection)


def eligible_layers(model: Backbone, selection: Selection = "shared", reads_maps: bool = False) -> tuple[int, ...]:
    """The layers, from 1, that can be ToSA layers.

    Args:
        model: A model of a known type.
        selection: `shared` or `per-head`.
        reads_maps: Whether the selector reads the attention logits of the layer before; then that must be readable.
    """
    layers = range(1, len(model.blocks) + 1)
    return tuple(layer for layer in layers if why_not(model, layer, selection, reads_maps) is None)


def why_not(model: Backbone, layer: int, selection: Selection, reads_maps: bool = False) -> str | None:
    """One sentence that says why a layer, from 1, cannot be a ToSA layer; None if it can. See `eligible_layers`."""
    name = name_of(model)
    reason = why_ineligible(model.blocks[layer - 1], selection)
    if reason is not None:
        return f"Layer {layer} of {name} {reason}"
    if not reads_maps:
        return None
    if layer == 1:
        return f"Layer 1 of {name} cannot be a ToSA layer: its selector needs a standard layer before it."
    # What a selection of tokens needs to know of attention is what makes its logits readable.
    reason = why_ineligible(model.blocks[layer - 2], "shared")
    if reason is not None:
        return f"The selector of layer {layer} cannot read the layer before it: layer {layer - 1} of {name} {reason}"
    return None


def why_ineligible(block: nn.Module, selection: Selection) -> str | None:
    """Why a block cannot select tokens, in words that follow "Layer 3"; None if it can."""
    kind = kind_of(block)
    reason = kind.why_ineligible(block, selection)
    if reason is not None or selection in kind.selections:
        return reason
    supported = [
        of_type for family in FAMILIES for of_type, known in family.blocks.items() if selection in known.selections
    ]
    return (
        f"is a {type(block).__name__}, which cannot be converted with {selection} selection: supported are "
        f"{names_of(supported)}."
    )
