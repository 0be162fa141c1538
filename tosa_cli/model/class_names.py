"""What the classes of a model are called, as timm keeps it in `pretrained_cfg`."""

from collections.abc import Mapping, Sequence
from typing import Any


def class_names(model: Any) -> list[str]:
    """Names of a timm model's classes in the order of its outputs, from its `pretrained_cfg`; empty without any."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if not isinstance(names, (list, tuple)) or len(names) != model.num_classes:
        return []
    return [str(name) for name in names]


def class_descriptions(model: Any) -> list[str]:
    """What a timm model's classes are called in words, in the order of its outputs; empty without any."""
    described = (getattr(model, "pretrained_cfg", None) or {}).get("label_descriptions")
    names = class_names(model)
    if not isinstance(described, Mapping) or not names or any(name not in described for name in names):
        return []
    return [str(described[name]) for name in names]


def set_class_names(model: Any, names: Sequence[str] | None) -> None:
    """Give a timm model names of its classes, in the order of its outputs, or none; what described the old goes."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    # timm saves no names that are of another number of classes than it notes here.
    own = {"label_names": None if names is None else list(names), "num_classes": model.num_classes}
    model.pretrained_cfg = {**cfg, **own, "label_descriptions": None}
