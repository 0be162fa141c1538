"""The families of backbones that can be converted, in one list, and what of them a model or a block belongs to."""

from typing import Any

from torch import nn

from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families.base import BlockKind, Family, OpaqueBlock
from tosa_cli.model.families.timm_beit import TimmBeit
from tosa_cli.model.families.timm_eva import TimmEva
from tosa_cli.model.families.timm_relpos import TimmRelPos
from tosa_cli.model.families.timm_vit import TimmVit
from tosa_cli.model.families.transformers_vit import transformers_kind
from tosa_cli.model.refusals import reason_against

FAMILIES: list[Family] = [TimmVit(), TimmEva(), TimmBeit(), TimmRelPos()]
"""Where a name is to be completed, the first that can does."""

_UNKNOWN = OpaqueBlock()


def family_of(model: Any) -> Family:
    """The family of a model, by its exact type.

    Raises:
        UnsupportedModelError: If it is of no family: a sentence with its type and the reason.
    """
    family = family_of_type(class_of(model))
    if family is None:
        raise UnsupportedModelError(f"{why_unknown(model)} Type `tosa list` to see what can be.")
    return family


def class_of(model: Any) -> type:
    """The class of a model; of the dense model inside of a converted one, that of the source."""
    kind: type = getattr(type(model), "view_of", type(model))
    return kind


def family_of_type(kind: type[nn.Module]) -> Family | None:
    """The family that models of a type belong to; None if there is none."""
    for family in FAMILIES:
        if kind in family.models:
            return family
    return None


def kind_of(block: nn.Module) -> BlockKind:
    """What is known of a block, by its exact type."""
    for family in FAMILIES:
        if type(block) in family.blocks:
            return family.blocks[type(block)]
    return transformers_kind(type(block)) or _UNKNOWN


def is_supported_kind(kind: object) -> bool:
    """Whether something is one of the types of models that can be converted."""
    return any(kind is supported for family in FAMILIES for supported in family.models)


def why_unknown(model: Any) -> str | None:
    """One sentence that says why a model is of no family; None if it is of one."""
    kind = class_of(model)
    if is_supported_kind(kind):
        return None
    is_subclass = any(isinstance(model, family.models) for family in FAMILIES)
    own = "it is a subclass, which may compute something else" if is_subclass else reason_against(kind.__module__)
    return f"{name_of(model)} is a {kind.__name__}, which cannot be converted: {own}."


def name_of(model: Any) -> str:
    """timm's name of a model, to begin a sentence with."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or "The model"
