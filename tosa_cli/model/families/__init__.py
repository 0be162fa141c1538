"""Families of backbones: one file each says all that the rest of the package knows of its models and blocks."""

from tosa_cli.model.families.backbone import Backbone
from tosa_cli.model.families.base import BlockKind, Family
from tosa_cli.model.families.eligibility import (
    check_convertible,
    check_supported,
    eligible_layers,
    why_ineligible,
    why_unsupported,
)
from tosa_cli.model.families.macs import counted_macs, linear_macs
from tosa_cli.model.families.parts import (
    attention_input,
    embed,
    embed_with_places,
    has_class_token,
    head_dim,
    key_dim,
    matching_projection,
    mean_key_projection,
    num_attentions,
    num_heads,
)
from tosa_cli.model.families.registry import FAMILIES, class_of, family_of, family_of_type, is_supported_kind, kind_of

__all__ = [
    "FAMILIES",
    "Backbone",
    "BlockKind",
    "Family",
    "attention_input",
    "check_convertible",
    "check_supported",
    "class_of",
    "counted_macs",
    "eligible_layers",
    "embed",
    "embed_with_places",
    "family_of",
    "family_of_type",
    "has_class_token",
    "head_dim",
    "is_supported_kind",
    "key_dim",
    "kind_of",
    "linear_macs",
    "matching_projection",
    "mean_key_projection",
    "num_attentions",
    "num_heads",
    "why_ineligible",
    "why_unsupported",
]
