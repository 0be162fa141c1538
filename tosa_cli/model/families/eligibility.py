"""Which layers of a model can be ToSA layers, and why others cannot."""

from tosa_cli.config import Selection
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families.base import Backbone, names_of
from tosa_cli.model.families.registry import FAMILIES, family_of, kind_of, name_of, why_unknown


def check_supported(model: Backbone, selection: Selection = "shared") -> None:
    """Check that a model can be converted.

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


def is_supported(model: Backbone, selection: Selection) -> bool:
    """Whether a model can be converted with this selection."""
    return why_unsupported(model, selection) is None


def why_unsupported(model: Backbone, selection: Selection = "shared") -> str | None:
    """One sentence that says why a model cannot be converted with this selection; None if it can be."""
    reason = why_unknown(model)
    if reason is not None:
        return reason
    for layer, block in enumerate(model.blocks, start=1):
        reason = why_ineligible(block, selection)
        if reason is not None:
            return f"Layer {layer} of {name_of(model)} {reason}"
    return None


def why_ineligible(block: Backbone, selection: Selection) -> str | None:
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
