"""The Python interface: `convert`, `load`, `save`."""

from torch import nn

from tosa_cli.config import Provenance, TosaConfig
from tosa_cli.hub.checkpoint import load, save
from tosa_cli.hub.source import Source, load_source
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.tosa_vit import TosaViT

__all__ = ["convert", "convert_source", "load", "save"]


def convert(source: str | nn.Module, config: TosaConfig) -> TosaViT:
    """Turn a pretrained ViT into a ToSA model; with every token kept it equals its source, which is checked.

    Args:
        source: A timm name, Hub id, folder or weights file, or a timm model, which becomes part of the new one.
        config: Where and how tokens are selected.

    Returns:
        The ToSA model, in evaluation mode.

    Raises:
        TosaError: If the source cannot be found, read or converted; the subclass and the message say which.
    """
    if isinstance(source, str):
        return convert_source(load_source(source), config, source)
    cfg = getattr(source, "pretrained_cfg", {})
    return convert_source(Source(source, cfg.get("architecture") or type(source).__name__), config, "")


def convert_source(source: Source, config: TosaConfig, named: str) -> TosaViT:
    """Convert a loaded source.

    Args:
        source: The dense model and where it comes from.
        config: Where and how tokens are selected.
        named: The source as the user named it.

    Raises:
        UnsupportedModelError: If the model is of a type that cannot be converted.
        ConfigError: If the model does not have the layers asked for.
        IdentityError: If the converted model does not equal its source with every token kept.
    """
    model = insert_selectors(source.model, config)
    license_name = (getattr(source.model, "pretrained_cfg", None) or {}).get("license")
    provenance = Provenance(
        source=named,
        base_model=source.name,
        base_hub_id=source.hub_id,
        base_revision=source.revision,
        license=license_name,
    )
    model.provenance = provenance.after("converted", {"source": named, **config.to_dict()})
    return model
