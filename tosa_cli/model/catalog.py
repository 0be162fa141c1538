"""Which of timm's architectures convert, found out without weights and without building most of them."""

import sys
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import model_entrypoint
from torch import nn

from tosa_cli.config import ARCHITECTURE
from tosa_cli.model.families import is_supported_kind, why_unsupported
from tosa_cli.model.meta import create_on_meta
from tosa_cli.model.refusals import reason_against
from tosa_cli.task import PREDICTOR_ARCHITECTURE


@dataclass(frozen=True)
class Architecture:
    """One of timm's architectures.

    Attributes:
        name: timm's name.
        family: timm's file that it is in, as `vision_transformer` or `eva`.
        reason: One sentence that says why it cannot be converted; None if it can be.
    """

    name: str
    family: str
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """The architecture as plain JSON values."""
        return {
            "architecture": self.name,
            "family": self.family,
            "convertible": self.reason is None,
            "reason": self.reason,
        }


def find_architectures(pattern: str = "") -> list[str]:
    """Names of timm's architectures that match a pattern as `vit_*dinov3`; one without wildcards is part of a name."""
    if pattern and not set("*?[") & set(pattern):
        pattern = f"*{pattern}*"
    return [name for name in timm.list_models(pattern) if name not in (ARCHITECTURE, PREDICTOR_ARCHITECTURE)]


def look_up(name: str) -> Architecture:
    """Find out whether one of timm's architectures can be converted.

    An architecture is built, on the meta device, if it is in a file of timm that knows a supported model; in the other
    files there is none, as types must match exactly. It is built with one layer where timm lets it; if that cannot be
    a ToSA layer, whole, as others may.

    Args:
        name: timm's name.
    """
    module = model_entrypoint(name).__module__
    family = module.rpartition(".")[2]
    if not any(is_supported_kind(value) for value in vars(sys.modules[module]).values()):
        clause = reason_against(module)
        return Architecture(name, family, f"{clause[0].upper()}{clause[1:]}.")
    try:
        reason = why_unsupported(_build(name))
        return Architecture(name, family, reason and why_unsupported(create_on_meta(name, {})))
    except Exception as error:
        text = " ".join(str(error).split())
        return Architecture(name, family, f"timm does not build it here ({type(error).__name__}: {text}).")


def _build(name: str) -> nn.Module:
    try:
        return create_on_meta(name, {"depth": 1})
    except Exception:
        # Some have settings for each of their layers, or take no depth.
        return create_on_meta(name, {})
