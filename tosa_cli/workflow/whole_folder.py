"""The verbs for whole models in folders, as the command line has them."""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.config import Method, TosaConfig
from tosa_cli.convert_config import AUTO, ConvertConfig
from tosa_cli.data.processed import ProcessedPhotos, norm_of
from tosa_cli.errors import DataError, InputError, TosaError
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.whole import WholeExportReport, export_whole
from tosa_cli.fit.rates import RateSearch
from tosa_cli.fit.whole import choose_run_rates
from tosa_cli.hub.download import cached_commit
from tosa_cli.hub.names import from_anywhere
from tosa_cli.hub.whole import WholeModel, is_converted, load_whole, save_whole
from tosa_cli.measure.agreement import AgreementReport, compare_outputs
from tosa_cli.model.runs.calls import example_call, image_tower
from tosa_cli.model.runs.find import check_runs, converted_runs, own_shape
from tosa_cli.model.runs.flops import WholeFlops, solve_run_rate
from tosa_cli.model.runs.insert import insert_run, measure_patches, remove_run
from tosa_cli.progress import Listener, Nobody, counted
from tosa_cli.provenance import Provenance
from tosa_cli.workflow.rates import DEFAULT_HELD_OUT, DEFAULT_SAMPLES, check_enough
from tosa_cli.workflow.whole import convert_whole


@dataclass(frozen=True)
class WholeReport:
    """What was done to a whole model.

    Attributes:
        whole: The model.
        flops: Its MACs.
        config: How its encoder is converted.
        search: How keep rates were found, where they were sought.
    """

    whole: WholeModel
    flops: WholeFlops
    config: TosaConfig
    search: RateSearch | None = None


def convert(config: ConvertConfig, *, name: str = "", listener: Listener | None = None) -> WholeReport:
    """Convert the encoder inside a model of transformers; with every token kept it equals its source.

    Args:
        config: The source, the method, and the layers with their keep rates; or what these are chosen by.
        name: What the report calls the model.
        listener: Told what is done.

    Raises:
        TosaError: If the source cannot be found, read or converted; the subclass and the message say which.
    """
    listener = listener or Nobody()
    config.check_whole()
    whole = load_whole(config.source, config.pretrained)
    if whole.unused:
        listener.warn(
            f"{type(whole.model).__name__} has no use for {counted(len(whole.unused), 'key')} of the weights, the "
            f"first {whole.unused[0]!r}: they are left out."
        )
    tosa, search = _layers_for(whole, config, listener)
    convert_whole(whole.model, tosa)
    hub_id, _, revision = config.source.removeprefix("hf-hub:").partition("@")
    of_hub = "/" in hub_id and not Path(config.source).exists()
    provenance = Provenance(
        source=from_anywhere(config.source),
        base_model=hub_id if of_hub else Path(config.source).name,
        base_hub_id=hub_id if of_hub else None,
        base_revision=revision or (cached_commit(hub_id, ["config.json"]) if of_hub else None),
    )
    settings = {"source": provenance.source, **tosa.to_dict()}
    results = {"budget": {"search": search.to_dict()}} if search is not None else {}
    whole = dataclasses.replace(whole, provenance=provenance.after("converted", settings, results))
    return WholeReport(whole, dataclasses.replace(whole.flops, model=name or whole.flops.model), tosa, search)


def evaluate(
    name: str, data_dir: str, max_samples: int | None, listener: Listener, texts: Sequence[str] = ()
) -> AgreementReport:
    """Tell how near the outputs of a whole model on photos are to the dense model's.

    That is the same model with every token computed; of one that was finetuned its source, where that can be loaded.

    Args:
        name: A folder, or the id of a Hub repository.
        data_dir: Folder of photos.
        max_samples: Use so many, evenly spread; None uses all.
        listener: Told what is done.
        texts: What a model is asked that reads texts as well; of such a model the image tower is measured without.

    Raises:
        TosaError: If it is not converted, reads no texts but is given some, or there are no photos.
    """
    whole = load_converted(name)
    dense = _source(whole, listener) if whole.provenance.is_finetuned else None
    photos: Any = ProcessedPhotos(data_dir, whole.processor, batch_size=1, max_samples=max_samples)
    part = image_part(whole.model)
    if texts:
        asked = _asked(whole, texts)
        part, batches = whole.model, (_joined(batch, asked, whole.model) for batch in photos)
    else:
        batches = photos
        dense = dense if dense is None else image_part(dense)
        if part is not whole.model:
            listener.say(
                f"{type(whole.model).__name__} reads a text too: measured is its {type(part).__name__}. To measure the "
                f'whole, pass --texts "a cat,a dog".'
            )
    listener.say(f"Comparing outputs on {counted(len(photos.files), 'image')} of {data_dir} ...")
    report = compare_outputs(dense, part, batches)
    for warning in (*(f"Skipped {skipped}." for skipped in photos.skipped), *report.notes):
        listener.warn(warning)
    if not report.outputs:
        raise DataError(f"No image of {data_dir} says anything of the outputs of {name}: take other images.")
    return report


def _source(whole: WholeModel, listener: Listener) -> nn.Module | None:
    """What a finetuned model came from; None, which is told, where it cannot be loaded."""
    source = whole.provenance.base_hub_id or whole.provenance.source
    try:
        model: nn.Module = load_whole(source).model
    except TosaError:
        listener.warn(f"The source {source} cannot be loaded: compared is the finetuned model with every token.")
        return None
    listener.say(f"The model was finetuned, so it is compared with its source, {source}.")
    return model


def _asked(whole: WholeModel, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as a model reads them.

    Raises:
        InputError: If it reads none, or there is no tokenizer beside it.
    """
    if image_part(whole.model) is whole.model:
        raise InputError(f"{whole.name} reads no text: leave out --texts.")
    tokenizer = getattr(whole.processor, "tokenizer", None)
    if tokenizer is None:
        raise InputError(f"{whole.name} has no tokenizer beside it: save its whole processor there.")
    # SigLIP was trained on texts of one length.
    fills = "max_length" if whole.model.config.model_type.startswith("siglip") else True
    made = tokenizer(list(texts), padding=fills, truncation=True, return_tensors="pt")
    taken = inspect.signature(whole.model.forward).parameters
    return {key: value for key, value in made.items() if key in taken}


def _joined(batch: dict[str, Tensor], asked: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """One image with all texts; CLIPSeg takes as many images as texts."""
    if model.config.model_type == "clipseg":
        batch = {key: value.expand(len(asked["input_ids"]), -1, -1, -1) for key, value in batch.items()}
    return {**batch, **asked}


def record(name: str, folder: Path, report: AgreementReport) -> None:
    """Write what `evaluate` found into a folder and its card."""
    whole = load_converted(name)
    results = {**whole.provenance.results, "eval": report.to_dict()}
    whole.provenance = dataclasses.replace(whole.provenance, results=results)
    save_whole(whole, folder, overwrite=True)


def export(name: str, path: Path, config: ExportConfig, listener: Listener) -> tuple[str, WholeExportReport]:
    """Write a whole model as one ONNX file, by photos of its own processor where ranges are taken from some.

    Returns:
        The class of the model, or of the part of it that takes images alone; and what was written.

    Raises:
        TosaError: If it is not converted, there are no photos where they are needed, or it cannot be exported.
    """
    whole = load_converted(name)
    part = image_part(whole.model)
    photos: list[Tensor] = []
    if config.quantize == "static":
        size, batch = own_shape(part)[1:], config.batch_size or 1
        read = ProcessedPhotos(config.data_dir, whole.processor, batch, config.max_samples)
        sized = (F.interpolate(each["pixel_values"], size, mode="bilinear", antialias=True) for each in read)
        photos = [each for each in torch.cat(list(sized)).split(batch) if len(each) == batch]
        if not photos:
            raise DataError(f"{config.data_dir} holds fewer images than one batch, {batch}: add images.")
    mean, std = norm_of(whole.processor)
    return type(part).__name__, export_whole(part, path, config, photos=photos, mean=mean, std=std, say=listener.say)


def load_converted(name: str) -> WholeModel:
    """Load a converted whole model.

    Raises:
        InputError: If it is not converted.
    """
    whole = load_whole(name)
    if not is_converted(whole.model):
        raise InputError(f"{name} is not converted yet: run `tosa convert {name} --preset calibrated` first.")
    return whole


def image_part(model: Any) -> nn.Module:
    """The part of a model that is called with images alone: itself, or its tower where it reads a text too."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return model
    return image_tower(model, (converted_runs(model) or check_runs(model))[0])


def save(whole: WholeModel, folder: Path, overwrite: bool = False) -> Path:
    """Write a whole model."""
    return save_whole(whole, folder, overwrite)


def _layers_for(whole: WholeModel, config: ConvertConfig, listener: Listener) -> tuple[TosaConfig, RateSearch | None]:
    if isinstance(config.layers, tuple):
        tosa = config.at(config.layers, config.keep_rate)
        if config.target_reduction is None:
            return tosa, None
        return _at_target(whole.model, config, config.layers, config.target_reduction, listener), None
    assert config.layers == AUTO
    if not config.groups_tokens:
        assert config.target_reduction is not None
        layers = check_runs(whole.model)[0].eligible_layers
        listener.say("Without a measurement of single layers, all but the first get one keep rate.")
        return _at_target(whole.model, config, layers[1:], config.target_reduction, listener), None
    holds = config.target_reduction is None
    count = config.max_samples or DEFAULT_SAMPLES + DEFAULT_HELD_OUT * holds
    photos = ProcessedPhotos(config.data_dir, whole.processor, max_samples=count)
    if holds:
        check_enough(len(photos.files), config.data_dir, "--min-cosine" if config.max_drop is None else "--max-drop")
        photos.batch_size = max(1, min(photos.batch_size, len(photos.files) // 3))
    held = ", two thirds of them held out," if holds else ""
    listener.say(f"Measuring keep rates on {counted(len(photos.files), 'image')}{held} of {config.data_dir} ...")
    with listener.progress("Measuring") as bar:
        found = choose_run_rates(
            image_part(whole.model),
            photos,
            config,
            target_reduction=config.target_reduction,
            min_cosine=config.min_cosine,
            max_drop=config.max_drop,
            progress=bar,
        )
    for skipped in photos.skipped:
        listener.warn(f"Skipped {skipped}.")
    return found


@torch.no_grad()
def _at_target(
    model: nn.Module, method: Method, layers: tuple[int, ...], target: float, listener: Listener
) -> TosaConfig:
    """The largest keep rate, to three decimals, that saves a share of the MACs of the encoder's layers."""
    found = check_runs(model)[0]
    run = insert_run(found, method.at(layers, 1.0), measure_patches(found, example_call(model, found)))
    try:
        keep_rate = solve_run_rate(run, method, layers, target)
    finally:
        remove_run(found)
    listener.say(f"Keep rate {keep_rate} reaches the target.")
    return method.at(layers, keep_rate)
