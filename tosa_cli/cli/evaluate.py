"""`tosa eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import JsonOption, ModelArgument, resolve_model, with_settings
from tosa_cli.errors import InputError
from tosa_cli.measure.config import EvalConfig
from tosa_cli.settings import option_name

if TYPE_CHECKING:
    from torch import nn

    from tosa_cli.hub.original import DenseModel
    from tosa_cli.model.tosa_vit import TosaViT


@with_settings(EvalConfig)
def evaluate(
    settings: dict[str, Any],
    model: ModelArgument = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the result into the model's folder.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure a model: top-1 and top-5 accuracy, GMACs and images a second.

    A model without a head is measured by the cosine of its final tokens to the dense model's, which needs no labels.
    One with a decoder is measured by the errors of its depth maps, or by the mean intersection over union.

    --compare sets the dense source beside the model. Where the source is none, as for a decoder or, once it is
    finetuned, for a new head or weights that started at random, it is the same weights with every token computed.
    """
    name = resolve_model(model)
    config = EvalConfig.from_dict(settings)
    folder = Path(name.removeprefix("local-dir:"))
    if update_card and not folder.is_dir():
        raise InputError(f"{name} is not a local folder, so its card cannot be updated: leave out --update-card.")

    from tosa_cli.hub.predictor import is_predictor

    if is_predictor(name):
        from tosa_cli.cli.predictor_evaluate import evaluate_predictor

        if config.dataset or config.selector == "oracle" or config.task in ("classification", "features"):
            raise InputError(
                f"{name} is a model with a decoder: it is measured on --data-dir by its own selector, and "
                f"--dataset, --selector oracle and --task {config.task} do not go with it."
            )
        evaluate_predictor(name, config, update_card, json)
        return
    if config.task in ("depth", "segmentation"):
        raise InputError(f"{name} has no decoder: train one with `tosa finetune {name} --task {config.task}`.")
    _check_no_maps(name, config)

    from tosa_cli.cli.training import choose_indices, tell_skipped
    from tosa_cli.data.datasets import is_streamed, name_of, open_dataset
    from tosa_cli.data.labels import check_labels
    from tosa_cli.data.loading import images_to_read
    from tosa_cli.device import pick_device
    from tosa_cli.hub.card import why_unpublished
    from tosa_cli.hub.checkpoint import load, save, with_results
    from tosa_cli.hub.original import dense_model
    from tosa_cli.model.flops import count_flops

    converted = load(name, img_size=config.img_size)
    if config.selector == "oracle":
        from tosa_cli.measure.oracle import with_oracle

        if update_card:
            raise InputError("What the oracle reaches is not the model's own result: leave out --update-card.")
        converted = with_oracle(converted)
    task = config.task
    if task == "auto":
        task = "classification" if converted.num_classes else "features"
    opened = open_dataset(config.data_dir, config.dataset, config.split, batch_size=config.batch_size)
    indices, _ = choose_indices(opened, config.max_samples, hold_out=False, name=config.dataset or config.data_dir)
    images = images_to_read(
        opened,
        converted,
        indices=indices,
        batch_size=config.batch_size,
        workers=config.workers,
        name=config.dataset or config.data_dir,
    )
    if task == "classification":
        check_labels(images, converted.num_classes)
        if images.by_name:
            console.say("Labels were matched with the model's classes by name.")
    place = pick_device(config.device)
    flops = count_flops(converted, name=name)
    dense = None
    if config.compare or task == "features":
        dense = dense_model(converted, config.img_size, head=task == "classification")
        tell_compared(dense)
    report: dict[str, Any] = {
        "task": task,
        "selector": converted.config.selector if config.selector == "own" else config.selector,
        "model": name,
        "dataset": name_of(config.dataset or config.data_dir),
        "dataset_samples": None if is_streamed(opened) else len(opened),
        # The oracle runs every layer whole.
        "gmacs": flops.gmacs if config.selector == "own" else None,
        "dense_gmacs": flops.dense_gmacs,
        "reduction": flops.reduction if config.selector == "own" else None,
        "batch_size": config.batch_size,
        "img_size": list(flops.img_size),
        "dtype": "float32" if config.amp == "no" else config.amp,
    }
    with console.progress("Evaluating") as bar:
        bar.start(-(-images.num_images // config.batch_size), 0)
        if task == "classification":
            report.update(_classify(converted, dense, images, place, config.amp, config.strict, bar))
        elif dense is not None:
            report.update(_compare_features(converted, dense, images, place, config.amp, config.strict, bar))
    tell_skipped(report["skipped"])
    if json:
        console.print_json(report)
    else:
        _show(report)
    if update_card:
        original = load(name)
        # Names of local files and folders are nobody else's business, and the folder may be pushed.
        with_results(
            original, "eval", {**report, "model": original.provenance.base_model, "skipped": len(report["skipped"])}
        )
        save(original, folder, overwrite=True)
        console.say(f"Wrote the result into {folder / 'README.md'}.")
        reason = why_unpublished(original, original.provenance.results["eval"])
        if reason and task == "classification":
            console.say(f"It stands in its text and not in the card's metadata, which the Hub shows: {reason}.")


def tell_compared(dense: "DenseModel") -> None:
    """Say so where a model is not compared with its source."""
    if dense.lost:
        console.say(f"{dense.lost} So the model is compared with its own weights and every token computed.")


def _classify(
    converted: "TosaViT", dense: "DenseModel | None", images: Any, device: Any, amp: str, strict: bool, bar: Any
) -> dict[str, Any]:
    from tosa_cli.measure.accuracy import measure_accuracy
    from tosa_cli.measure.speed import device_name

    models: dict[str, nn.Module] = {"tosa": converted}
    if dense is not None:
        models["dense"] = dense.model
    measured = measure_accuracy(models, images, device=device, amp=amp, strict=strict, advance=bar.advance)
    tosa = measured.models["tosa"]
    report = {
        "samples": measured.samples,
        "skipped": measured.skipped,
        "labels": "by name" if images.by_name else "by position",
        "top1": tosa.top1,
        "top5": tosa.top5,
        "images_per_second": tosa.images_per_second,
        "model_seconds": tosa.model_seconds,
        "data_seconds": measured.data_seconds,
        "device": device_name(device),
    }
    if dense is not None:
        other = measured.models["dense"]
        report["dense"] = {
            "weights": dense.weights,
            "top1": other.top1,
            "top5": other.top5,
            "images_per_second": other.images_per_second,
            "model_seconds": other.model_seconds,
        }
    return report


def _compare_features(
    converted: "TosaViT", dense: "DenseModel", images: Any, device: Any, amp: str, strict: bool, bar: Any
) -> dict[str, Any]:
    from tosa_cli.measure.features import measure_features
    from tosa_cli.measure.speed import device_name

    report = measure_features(
        converted, dense.model, images, device=device, amp=amp, strict=strict, advance=bar.advance
    ).to_dict()
    report["dense"] = {"weights": dense.weights, "images_per_second": report.pop("dense_images_per_second")}
    report["device"] = device_name(device)
    return report


def _check_no_maps(name: str, config: EvalConfig) -> None:
    """Check that nothing is said of maps where none are read.

    Raises:
        InputError: If an option about maps was given.
    """
    about_maps = ("data_format", "split_file", "depth_dir", "depth_scale", "flip")
    options = [option_name(key) for key in about_maps if getattr(config, key) != config.default_of(key)]
    if options:
        raise InputError(
            f"{name} has no decoder, so no maps are read: leave out {' and '.join(options)}, or train a decoder with "
            f"`tosa finetune {name} --task depth`."
        )


COLUMNS = {
    "top1": ("top-1 %", 2),
    "top5": ("top-5 %", 2),
    "patch_cosine": ("patch cosine", 4),
    "class_cosine": ("class cosine", 4),
}
"""What is shown of a model: the name of each figure, and its decimals."""


def _show(report: dict[str, Any]) -> None:
    classification = report["task"] == "classification"
    keys = ["top1", "top5"] if classification else ["patch_cosine", "class_cosine"]
    rows = []
    if "dense" in report:
        dense = report["dense"]
        label = "dense" if dense["weights"] == "source" else "every token"
        # What is measured against the dense model is 1 for itself, where there is something to measure.
        own = dense if classification else {key: None if report[key] is None else 1.0 for key in keys}
        rows.append(_row(label, own, keys, report["dense_gmacs"], dense["images_per_second"]))
    label = "oracle" if report["selector"] == "oracle" else "tosa"
    rows.append(_row(label, report, keys, report["gmacs"], report["images_per_second"]))
    console.print_table(
        f"{report['samples']} images of {report['dataset']}",
        ["", *(COLUMNS[key][0] for key in keys), "GMACs", "images/s"],
        rows,
    )
    saved = "" if report["reduction"] is None else f"{report['reduction']:.1%} fewer MACs. "
    console.say(
        f"{saved}{report['device']}, {report['dtype']}, batch size {report['batch_size']}; images/s is the model "
        f"alone, loading took {report['data_seconds']:.1f} s more."
    )


def _row(
    label: str, figures: Mapping[str, Any], keys: list[str], gmacs: float | None, images_per_second: float
) -> list[str]:
    measured = [_number(figures[key], COLUMNS[key][1]) for key in keys]
    return [label, *measured, _number(gmacs, 3), _number(images_per_second, 1)]


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
