"""`tosa convert`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tosa_cli.cli import budget, console
from tosa_cli.cli.flops import show_flops
from tosa_cli.cli.options import (
    AUTO,
    ImgSizeOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    PresetOption,
    RecipeOption,
    config_from,
    parse_keep_rate,
    parse_layers,
    parse_query_rows,
    preset_recipe,
    remember_model,
    settings_from,
)
from tosa_cli.config import TosaConfig, is_int
from tosa_cli.data.images import COLOR_MODES, read_img_size
from tosa_cli.errors import ConfigError

if TYPE_CHECKING:
    from tosa_cli.fit.budget import ErrorCurve
    from tosa_cli.model.tosa_vit import TosaViT


LEAST = {"num_classes": 0, "max_samples": 1}
"""Smallest values of settings that are counts."""


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            help="timm name (deit_tiny is short for deit_tiny_patch16_224), Hub id org/name[@revision], a folder, "
            "both in timm's or transformers' format, or a weights file.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="ToSA layers, numbered from 1, as in 2,4,6,8,10; or auto, which chooses layers and keep rates by "
            "measurement on --data-dir.",
            show_default=False,
        ),
    ] = None,
    keep_rate: Annotated[
        str | None,
        typer.Option(
            help="Share of tokens that are computed: one number, or one a layer. [default: 0.8]", show_default=False
        ),
    ] = None,
    target_reduction: Annotated[
        float | None,
        typer.Option(help="Find the keep rate that saves this share of the MACs, as in 0.25.", show_default=False),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(
            help="What ranks the tokens: attention, similarity, probe, previous or random. [default: attention]",
            show_default=False,
        ),
    ] = None,
    query_rows: Annotated[
        str | None,
        typer.Option(help="Query rows that the selector reads; all is the paper. [default: 16]", show_default=False),
    ] = None,
    selection: Annotated[
        str | None, typer.Option(help="shared or per-head. [default: shared]", show_default=False)
    ] = None,
    bypass: Annotated[
        str | None,
        typer.Option(
            help="What a skipped token becomes: identity, linear, nearest, nearest+affine or nearest+linear. [default: "
            "identity]",
            show_default=False,
        ),
    ] = None,
    neighbors: Annotated[
        int | None,
        typer.Option(
            help="How many kept tokens a skipped one takes its update from, with a nearest bypass. [default: 4]",
            show_default=False,
        ),
    ] = None,
    span: Annotated[
        int | None,
        typer.Option(help="How many ToSA layers in a row share one choice of tokens. [default: 1]", show_default=False),
    ] = None,
    selector_kernel: Annotated[
        int | None, typer.Option(help="Kernel size of the selector along the keys. [default: 1]", show_default=False)
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help="Images to measure on, for --layers auto; no labels are read.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="timm's name of the type of that data, for --layers auto: hfds/... or wds/...", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Its split, for --layers auto. [default: train]", show_default=False)
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measure on so many of them, for --layers auto: evenly spread, of wds/... the first. [default: 32]",
            show_default=False,
        ),
    ] = None,
    img_size: ImgSizeOption = None,
    num_classes: Annotated[
        int | None,
        typer.Option(min=0, help="Give the model a new head of so many classes; 0 is none.", show_default=False),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="timm's name of the architecture of a weights file.", show_default=False)
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="Load the weights, or start at random. [default: pretrained]",
            show_default=False,
        ),
    ] = None,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, but write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Insert selectors into a pretrained ViT and write a ToSA model.

    With every token kept the new model equals its source; this is checked on a real forward pass every time.
    """
    settings = settings_from(
        "convert",
        preset_recipe(preset, recipe),
        {
            "source": source,
            "layers": parse_layers(layers),
            "keep_rate": parse_keep_rate(keep_rate),
            "target_reduction": target_reduction,
            "selector": selector,
            "query_rows": parse_query_rows(query_rows),
            "selection": selection,
            "bypass": bypass,
            "neighbors": neighbors,
            "span": span,
            "data_dir": data_dir,
            "dataset": dataset,
            "split": split,
            "max_samples": max_samples,
            "selector_kernel": selector_kernel,
            "img_size": read_img_size(img_size),
            "num_classes": num_classes,
            "architecture": architecture,
            "pretrained": pretrained,
        },
    )
    if "source" not in settings:
        raise ConfigError("No model was named: run `tosa convert deit_tiny --layers 2,4,6,8,10`, or pass --recipe.")
    if target_reduction is not None and keep_rate is None:
        settings.pop("keep_rate", None)
    if "target_reduction" in settings and "keep_rate" in settings and target_reduction is not None:
        raise ConfigError("Both --keep-rate and --target-reduction were given: pass one of them.")
    if keep_rate is not None or (layers not in (None, AUTO) and target_reduction is None):
        settings.pop("target_reduction", None)
    _check_counts(settings)
    if settings.get("layers") != AUTO:
        _check_no_images({"--data-dir": data_dir, "--dataset": dataset, "--split": split, "--max-samples": max_samples})
    given = {"neighbors": neighbors, "query_rows": query_rows, "selector_kernel": selector_kernel}
    _convert(settings, given, output, overwrite, dry_run, json)


def _convert(
    settings: dict[str, Any],
    given: Mapping[str, object],
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    json: bool,
) -> None:
    by_measurement = settings.get("layers") == AUTO
    if by_measurement:
        _check_auto(settings)
        settings = {**settings, "layers": [2]}  # until they are chosen
    config = config_from(settings)
    _check_read(config, given)
    folder = output or default_output(settings["source"])

    from tosa_cli.api import convert_source
    from tosa_cli.fit.budget import allocate
    from tosa_cli.hub.checkpoint import save, with_results
    from tosa_cli.hub.folder import check_output
    from tosa_cli.hub.source import load_source
    from tosa_cli.model.flops import count_flops, solve_keep_rate

    size = settings.get("img_size")
    if not dry_run:
        check_output(folder, overwrite)
    loaded = load_source(
        settings["source"],
        pretrained=settings.get("pretrained", True),
        img_size=tuple(size) if isinstance(size, list) else size,
        num_classes=settings.get("num_classes"),
        architecture=settings.get("architecture"),
    )
    for note in loaded.notes:
        console.say(note)
    config.check_depth(len(loaded.model.blocks))  # type: ignore[arg-type]
    curves: list[ErrorCurve] = []
    if by_measurement:
        curves = budget.measure(
            loaded.model,
            config,
            settings.get("data_dir") or "",
            settings.get("max_samples"),
            dataset=settings.get("dataset") or "",
            split=settings.get("split") or "train",
        )
        config = allocate(loaded.model, config, curves, settings["target_reduction"])
    elif "target_reduction" in settings:
        config = solve_keep_rate(loaded.model, config, settings["target_reduction"])
        console.say(f"Keep rate {config.keep_rate} reaches the target.")
    model = convert_source(loaded, config, settings["source"])
    record_source(model, settings)
    if curves:
        with_results(model, "budget", {"curves": [curve.to_dict() for curve in curves]})
    report = count_flops(model, name=folder.name)
    console.say("Checked: with every token kept, the converted model equals its source.")
    if not dry_run:
        save(model, folder, overwrite=overwrite)
        remember_model(folder)
    if json:
        console.print_json({**report.to_dict(), "curves": [curve.to_dict() for curve in curves]})
    else:
        if curves:
            budget.show_curves(curves, config)
        show_flops(report)
    if dry_run:
        console.say("Dry run: nothing was written.")
    else:
        console.say(f"Wrote {folder}.")
        if model.in_chans in COLOR_MODES:
            step = ["distill", "--data-dir", "PHOTOS"] if config.needs_distill else ["eval", "--data-dir", "IMAGES"]
        else:
            step = ["bench"]  # what reads image files would refuse the model
        console.next_command("tosa", *step)


def _check_counts(settings: Mapping[str, Any]) -> None:
    """Check numbers that a recipe may give as well as an option.

    Raises:
        ConfigError: If one is not a whole number, or too small.
    """
    for name, least in LEAST.items():
        value = settings.get(name)
        if value is not None and not (is_int(value) and value >= least):
            raise ConfigError(f"{name} must be a whole number from {least} up, not {value!r}.")


def _check_auto(settings: Mapping[str, Any]) -> None:
    """Check what choosing the layers by measurement needs.

    Raises:
        ConfigError: If the images or the target are missing.
    """
    if not (settings.get("data_dir") or settings.get("dataset")):
        raise ConfigError(
            "The layers are chosen by measurement, which needs images: pass --data-dir PHOTOS, or name the layers "
            "as in --layers 2,4,6,8,10."
        )
    if "target_reduction" not in settings:
        raise ConfigError(
            "With --layers auto the share of the MACs to save is missing: pass --target-reduction 0.25, and no "
            "--keep-rate."
        )


def _check_no_images(given: Mapping[str, object]) -> None:
    """Check that nothing is said of images where none are read.

    Raises:
        ConfigError: If an option about images was given.
    """
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(
            f"No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out "
            f"{' and '.join(names)}."
        )


def _check_read(config: TosaConfig, given: Mapping[str, object]) -> None:
    """Check that selector and bypass read what was given on the command line; a recipe may say more.

    Raises:
        ConfigError: If one of the values given would change nothing.
    """
    for name, reason in config.unread.items():
        if given.get(name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} changes nothing, as {reason}: leave it out.")


def record_source(model: "TosaViT", settings: Mapping[str, Any]) -> None:
    """Record how the source was loaded, so that the dense model can be set beside a finetuned one."""
    names = [
        name for name in ("img_size", "num_classes", "architecture", "pretrained") if settings.get(name) is not None
    ]
    how = {name: list(settings[name]) if isinstance(settings[name], tuple) else settings[name] for name in names}
    steps = model.provenance.steps
    steps = {**steps, "convert": {**steps["convert"], **how}}
    model.provenance = dataclasses.replace(model.provenance, steps=steps)


def default_output(source: str) -> Path:
    """The folder to write for a source when none is named: its name with `-tosa`, in this directory."""
    name = source.partition(":")[2] if source.startswith(("hf-hub:", "local-dir:")) else source
    name = name.rstrip("/").partition("@")[0]
    name = Path(name).name or "model"
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        name = name.removesuffix(suffix)
    return Path(f"{name}-tosa")
