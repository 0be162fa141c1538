"""`convert`: a pretrained ViT becomes a ToSA model, in layers that are named or chosen by measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from tosa_cli.config import Method, TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.datasets import is_streamed, open_dataset, split_indices
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.errors import DataError
from tosa_cli.fit.budget import ErrorCurve, allocate, measure_curves
from tosa_cli.fit.rates import RateSearch, hold_cosine, search_rates
from tosa_cli.hub.checkpoint import with_results
from tosa_cli.hub.source import Source, load_source
from tosa_cli.hub.weights import check_finite
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.families import Backbone
from tosa_cli.model.flops import count_flops, solve_keep_rate
from tosa_cli.model.flops_report import FlopsReport
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import Listener, Nobody, counted
from tosa_cli.seeding import seeded
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

DEFAULT_SAMPLES = 32
DEFAULT_HELD_OUT = 64
BATCH_SIZE = 8


@dataclass(frozen=True)
class MeasuredLayers:
    """What each layer, or span of layers, can spare.

    Attributes:
        curves: Error curves, by layer; none where tokens are in groups, for which layers alone say little.
        search: How keep rates were found on the whole model, where tokens are in groups.
        skipped: Images that could not be read, with the reason.
    """

    curves: tuple[ErrorCurve, ...] = ()
    search: RateSearch | None = None
    skipped: tuple[str, ...] = ()


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
        where = (config.data_dir, config.dataset, config.split, config.max_samples)
        if config.groups_tokens:
            reduction, cosine = config.target_reduction, config.min_cosine
            measured = find_rates(loaded.model, config, reduction, *where, min_cosine=cosine, listener=listener)
            found = cast(RateSearch, measured.search).keep_rates
            tosa = config.at(found, found.values())
        else:
            measured = measure_layers(loaded.model, config, *where, listener=listener)
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


def measure_layers(
    model: Backbone,
    method: Method,
    data_dir: str = "",
    dataset: str = "",
    split: str = "train",
    max_samples: int | None = None,
    *,
    listener: Listener | None = None,
) -> MeasuredLayers:
    """Measure the error curve of each layer on a few images, evenly spread, or the first of a stream.

    Args:
        model: The dense model; it is not changed.
        method: By what tokens are selected.
        data_dir: Folder of images, or root of a data set.
        dataset: timm's name of the type of the data set; empty for a folder.
        split: Split of the data set.
        max_samples: Measure on so many images; None takes 32.
        listener: Told what is done.

    Raises:
        DataError: If there are none.
        ConfigError: If the selector says nothing before it is trained.
    """

    listener, name, opened = listener or Nobody(), dataset or data_dir, open_dataset(data_dir, dataset, split)
    images = _images(opened, model, _evenly(opened, max_samples or DEFAULT_SAMPLES), max_samples, name)
    listener.say(f"Measuring what each layer can spare, on {counted(images.num_images, 'image')} of {name} ...")
    with listener.progress("Measuring") as bar:
        curves = measure_curves(make_accelerator(TrainConfig()), model, method, images, progress=bar)
    return MeasuredLayers(tuple(curves), skipped=tuple(images.failed))


def find_rates(
    model: Backbone,
    method: Method,
    target_reduction: float | None,
    data_dir: str = "",
    dataset: str = "",
    split: str = "train",
    max_samples: int | None = None,
    *,
    min_cosine: float | None = None,
    listener: Listener | None = None,
) -> MeasuredLayers:
    """Find keep rates of groups on the whole model, on a few images as `measure_layers` takes them.

    Args:
        model: The dense model; it is not changed.
        method: A method that puts tokens into groups.
        target_reduction: Share of the MACs to save; None saves what leaves a cosine.
        data_dir: Folder of images, or root of a data set.
        dataset: timm's name of the type of the data set; empty for a folder.
        split: Split of the data set.
        max_samples: Measure on so many images; None takes 32, and with a cosine 96, two thirds of them held out.
        min_cosine: Cosine of the final tokens of held-out images that is to hold, where there is no target.
        listener: Told what is done.

    Raises:
        DataError: If there are none; for a cosine, if they can only be read in order.
        ConfigError: If as much cannot be saved, or the cosine holds at no saving.
    """
    listener, name, opened = listener or Nobody(), dataset or data_dir, open_dataset(data_dir, dataset, split)
    accelerator = make_accelerator(TrainConfig())
    if target_reduction is not None:
        images = _images(opened, model, _evenly(opened, max_samples or DEFAULT_SAMPLES), max_samples, name)
        listener.say(f"Measuring what each layer can spare, on {counted(images.num_images, 'image')} of {name} ...")
        with listener.progress("Measuring") as bar:
            found = search_rates(accelerator, model, method, images, target_reduction, progress=bar)
        return MeasuredLayers(search=found, skipped=tuple(images.failed))
    indices = _evenly(opened, max_samples or DEFAULT_SAMPLES + DEFAULT_HELD_OUT)
    if indices is None:
        raise DataError(f"{name} can only be read in order, so no images can be held out: pass --target-reduction.")
    if len(indices) < 2:
        raise DataError(
            f"{name} has {counted(len(indices), 'image')}, and --min-cosine needs some to hold out: add more."
        )
    tuning, others = indices[::3], [index for position, index in enumerate(indices) if position % 3]
    images, held_out = (_images(opened, model, part, max_samples, name) for part in (tuning, others))
    listener.say(
        f"Measuring what can be spared, on {counted(images.num_images, 'image')} of {name}, and on "
        f"{counted(held_out.num_images, 'other image')} whether the cosine holds ..."
    )
    with listener.progress("Measuring") as bar:
        found = hold_cosine(accelerator, model, method, images, held_out, cast(float, min_cosine), progress=bar)
    return MeasuredLayers(search=found, skipped=(*images.failed, *held_out.failed))


def _evenly(opened: Any, count: int) -> list[int] | None:
    """Indices of so many images, evenly spread; None for data that can only be read in order."""
    return None if is_streamed(opened) else split_indices(len(opened), count, hold_out=False)[0]


def _images(opened: Any, model: Backbone, indices: list[int] | None, max_samples: int | None, name: str) -> Images:
    """Images of a data set to measure on; of a stream the first."""
    first = max_samples or DEFAULT_SAMPLES
    return images_to_read(
        opened, cast(nn.Module, model), indices=indices, first=first, batch_size=BATCH_SIZE, name=name
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
