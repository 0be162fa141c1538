"""What `tosa eval` does for a model with a decoder."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tosa_cli.api import save
from tosa_cli.cli import console
from tosa_cli.cli.predictor import NAMES, measure_predictor
from tosa_cli.cli.training import tell_skipped
from tosa_cli.data.datasets import split_indices
from tosa_cli.data.formats import FORMATS
from tosa_cli.data.images import both_sides
from tosa_cli.data.pair_images import pairs_to_read
from tosa_cli.data.pairs import open_pairs
from tosa_cli.device import pick_device
from tosa_cli.errors import InputError
from tosa_cli.hub.predictor import load_predictor
from tosa_cli.measure.config import EvalConfig
from tosa_cli.measure.speed import device_name
from tosa_cli.model.predictor_flops import count_predictor_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

MIN_DEPTH = 1e-3
"""Smallest depth in metres that counts in NYU Depth v2 and KITTI."""


def evaluate_predictor(name: str, asked: EvalConfig, update_card: bool, json: bool) -> None:
    """Measure a model with a decoder on images with maps.

    Images of NYU Depth v2 and KITTI are read whole and keep their size unless one was named, others are brought to the
    size that the model was trained on; the true map always keeps its own.
    """
    model = load_predictor(name)
    config, defaults = model.config, FORMATS[asked.data_format]
    if asked.task not in ("auto", config.task):
        raise InputError(f"{name} predicts {config.task}, not {asked.task}: leave out --task.")
    if asked.compare and not isinstance(model.encoder, TosaViT):
        raise InputError(f"The encoder of {name} computes every token already: leave out --compare.")
    pairs = open_pairs(
        asked.data_dir,
        task=config.task,
        data_format=asked.data_format,
        split=asked.split,
        split_file=asked.split_file,
        depth_dir=asked.depth_dir,
        depth_scale=asked.depth_scale,
    )
    asked_size = both_sides(asked.img_size)
    indices, _ = split_indices(len(pairs), asked.max_samples, hold_out=False)
    # What counts in NYU Depth v2 and KITTI is the same for every model.
    measured_task = config
    if asked.data_format != "folder":
        measured_task = dataclasses.replace(config, min_depth=MIN_DEPTH, max_depth=defaults.max_depth)
    images = pairs_to_read(
        pairs,
        model,
        measured_task,
        data_format=asked.data_format,
        img_size=asked_size or (None if defaults.full_size else model.img_size),
        batch_size=asked.batch_size,
        workers=asked.workers,
        indices=indices,
    )
    first = images.samples[0].image
    size = asked_size or (model.img_size if first is None else (first.shape[-2], first.shape[-1]))
    flops = count_predictor_flops(model, size)
    place = pick_device(asked.device)
    models: dict[str, nn.Module] = {"tosa": model}
    if asked.compare:
        models["dense"] = model.with_dense_encoder()
    settings = TrainConfig(amp=asked.amp, strict=asked.strict)
    with console.progress("Evaluating") as bar:
        bar.start(-(-images.num_images // asked.batch_size), 0)
        found, figures = measure_predictor(models, images, measured_task, place, settings, asked.flip, bar.advance)
    tell_skipped(found.skipped)
    report: dict[str, Any] = {
        "task": config.task,
        "decoder": config.decoder,
        "model": name,
        "dataset": images.name,
        "dataset_samples": len(pairs),
        "samples": found.samples,
        "skipped": found.skipped,
        **figures["tosa"],
        "images_per_second": found.images_per_second["tosa"],
        "data_seconds": found.data_seconds,
        **flops.figures,
        "flip": asked.flip,
        "batch_size": asked.batch_size,
        "img_size": list(size),
        "dtype": "float32" if asked.amp == "no" else asked.amp,
        "device": device_name(place),
    }
    if config.task == "depth":
        report |= {
            "crop": defaults.crop,
            "min_depth": measured_task.min_depth,
            "max_depth": measured_task.max_depth,
        }
    if asked.compare:
        report["dense"] = {**figures["dense"], "images_per_second": found.images_per_second["dense"]}
    if json:
        console.print_json(report)
    else:
        _show(report, list(figures["tosa"]))
    if update_card:
        _update_card(name, report)


def _show(report: dict[str, Any], keys: list[str]) -> None:
    saves = report["encoder_gmacs"] != report["dense_encoder_gmacs"]
    rows = [("tosa" if saves else "dense", report, report["encoder_gmacs"], report["gmacs"])]
    if "dense" in report:
        rows.insert(0, ("every token", report["dense"], report["dense_encoder_gmacs"], report["dense_gmacs"]))
    console.print_table(
        f"{report['samples']} images of {report['dataset']}",
        ["", *(NAMES[key] for key in keys), "encoder GMACs", "GMACs", "images/s"],
        [
            [
                label,
                *(f"{figures[key]:.4f}" for key in keys),
                f"{encoder:.3f}",
                f"{whole:.3f}",
                f"{figures['images_per_second']:.1f}",
            ]
            for label, figures, encoder, whole in rows
        ],
    )
    counted = ""
    if report["task"] == "depth":
        crop = f"the {report['crop'].capitalize()} crop, " if report["crop"] != "none" else ""
        counted = f"Measured: {crop}{report['min_depth']:g} to {report['max_depth']:g} m, mean over the images. "
    height, width = report["img_size"]
    saved = (
        f"{report['encoder_reduction']:.1%} fewer MACs in the encoder, {report['reduction']:.1%} in all. "
        if saves
        else ""
    )
    console.say(
        f"{saved}{counted}{report['device']}, {report['dtype']}, {height}x{width} pixels, batch size "
        f"{report['batch_size']}{', averaged with the mirrored image' if report['flip'] else ''}."
    )


def _update_card(name: str, report: dict[str, Any]) -> None:
    folder = Path(name.removeprefix("local-dir:"))
    model = load_predictor(name)
    # Names of local files and folders are nobody else's business, and the folder may be pushed.
    shown = {**report, "model": model.provenance.base_model, "skipped": len(report["skipped"])}
    results = {**model.provenance.results, "eval": shown}
    model.provenance = dataclasses.replace(model.provenance, results=results)
    save(model, folder, overwrite=True)
    console.say(f"Wrote the result into {folder / 'README.md'}.")
