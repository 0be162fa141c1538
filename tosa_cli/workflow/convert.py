"""`convert`: a pretrained ViT becomes a ToSA model, in layers that are named or chosen by measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from tosa_cli.config import TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.class_map import read_class_map
from tosa_cli.errors import ConfigError
from tosa_cli.fit.budget import allocate
from tosa_cli.fit.drop import MaxDrop
from tosa_cli.fit.rates import RateSearch, wished
from tosa_cli.hub.checkpoint import with_results
from tosa_cli.hub.source import Source, load_source
from tosa_cli.hub.weights import check_finite
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.families import Backbone
from tosa_cli.model.flops import count_flops, solve_keep_rate
from tosa_cli.model.flops_report import FlopsReport
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, Nobody
from tosa_cli.seeding import seeded
from tosa_cli.workflow.rates import MeasuredLayers, find_rates, measure_layers


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        model: The ToSA model, in evaluation mode.
        flops: Its multiply-accumulates, layer by layer.
        measured: What each layer can spare, where layers were chosen by measurement.
        notes: What the user should know about how the source was read, each a sentence.
    """

    model: TosaViT
    flops: FlopsReport
    measured: MeasuredLayers
    notes: tuple[str, ...]


def convert(
    config: ConvertConfig,
    source: nn.Module | None = None,
    *,
    name: str = "",
    listener: Listener | None = None,
) -> ConvertReport:
    """Turn a pretrained ViT into a ToSA model; with every token kept it equals its source, which is checked.

    Args:
        config: The source, the method, and the layers with their keep rates; or what these are chosen by.
        source: The dense timm model, where it is at hand, which becomes part of the new one; None loads the source that
            the config names.
        name: What the report calls the model.
        listener: Told what is done.

    Raises:
        TosaError: If the source cannot be found, read or converted, the images cannot be read, or the target cannot be
            reached; the subclass and the message say which.
    """
    with seeded(config.seed):
        return _convert(config, source, name, listener or Nobody())


def _convert(config: ConvertConfig, source: nn.Module | None, name: str, listener: Listener) -> ConvertReport:
    config.check_images()
    loaded = as_source(source) if source is not None else load_from(config)
    for note in loaded.notes:
        listener.say(note)
    measured = MeasuredLayers()
    if isinstance(config.layers, tuple):
        tosa = config.at(config.layers, config.keep_rate)
        tosa.check_depth(len(loaded.model.blocks))
        if config.target_reduction is not None:
            tosa = solve_keep_rate(loaded.model, tosa, config.target_reduction)
            listener.say(f"Keep rate {tosa.keep_rate} reaches the target.")
    else:
        if config.groups_tokens:
            wish = wished(config.min_cosine, config.max_drop)
            if isinstance(wish, MaxDrop):
                _check_head(loaded)
            measured = find_rates(
                loaded.model,
                config,
                config.target_reduction,
                config.data,
                wish=wish,
                class_map=read_class_map(config.class_map),
                listener=listener,
            )
            found = cast(RateSearch, measured.search).keep_rates
            tosa = config.at(found, found.values())
        else:
            measured = measure_layers(loaded.model, config, config.data, listener=listener)
            tosa = allocate(loaded.model, config, measured.curves, cast(float, config.target_reduction))
    model = convert_source(loaded, tosa, config.source, config.source_settings)
    if measured.curves:
        with_results(model, "budget", {"curves": [curve.to_dict() for curve in measured.curves]})
    if measured.search is not None:
        with_results(model, "budget", {"search": measured.search.to_dict()})
    return ConvertReport(model, count_flops(model, name=name), measured, loaded.notes)


def load_from(config: ConvertConfig) -> Source:
    """Load the source that a conversion names.

    Raises:
        TosaError: If it cannot be found or read, or is of a kind that cannot be converted.
    """
    return load_source(
        config.source,
        pretrained=config.pretrained,
        img_size=config.img_size,
        num_classes=config.num_classes,
        architecture=config.architecture,
        weights_key=config.weights_key,
        images=config.images,
    )


def as_source(model: nn.Module) -> Source:
    """A dense timm model as a source without a place.

    Raises:
        CheckpointError: If its weights are not finite.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
    check_finite(model, name)
    return Source(cast(Backbone, model), name)


def _check_head(source: Source) -> None:
    """Check that a source has a head whose accuracy can be held.

    Raises:
        ConfigError: If it has none.
    """
    if not source.model.num_classes:
        raise ConfigError(
            f"{source.name} has no classifier head, so it has no accuracy to lose: hold its tokens with --min-cosine "
            f"0.99, or name a model with a trained head."
        )


def convert_source(source: Source, config: TosaConfig, named: str, loading: Mapping[str, Any] | None = None) -> TosaViT:
    """Convert a loaded source, and remember where it comes from.

    Args:
        source: The dense model and where it comes from.
        config: Where and how tokens are selected.
        named: The source as the user named it; empty if it has no name.
        loading: How it was loaded, where not as it is, so that it can be loaded again; by the names of settings.

    Raises:
        UnsupportedModelError: If the model is of a type that cannot be converted.
        ConfigError: If the model does not have the layers asked for.
        IdentityError: If the converted model does not equal its source with every token kept.
    """
    model = insert_selectors(source.model, config)
    provenance = source.provenance(named)
    settings = {"source": provenance.source, **config.to_dict()}
    if not source.pretrained:
        settings["pretrained"] = False
    model.provenance = provenance.after("converted", {**settings, **(loading or {})})
    return model
