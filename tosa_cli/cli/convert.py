"""`tosa convert`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tosa_cli.cli import console
from tosa_cli.cli.curves import show_curves, show_search
from tosa_cli.cli.flops import show_flops
from tosa_cli.cli.options import (
    JsonOption,
    OutputOption,
    OverwriteOption,
    PresetOption,
    RecipeOption,
    preset_recipe,
    remember_model,
    settings_from,
    with_settings,
)
from tosa_cli.convert_config import AUTO, WISHES, ConvertConfig
from tosa_cli.data.images import COLOR_MODES
from tosa_cli.errors import ConfigError
from tosa_cli.hub.names import stem_of
from tosa_cli.settings import option_name

ABOUT_IMAGES = ("data_dir", "dataset", "split", "image_column", "label_column", "class_map", "max_samples")
"""Settings that say what is read where layers are chosen by measurement."""


@with_settings(ConvertConfig)
def convert(
    settings: dict[str, Any],
    source: Annotated[
        str | None,
        typer.Argument(help=ConvertConfig.help_of("source"), show_default=False),
    ] = None,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole/--encoder",
            help="Of a model in transformers' format, convert the whole and stay in that format, or take the encoder "
            "as a timm model. Default: the encoder of ViT, DeiT, DINOv2, CLIP and SigLIP, of all others the whole.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, but write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Insert selectors into a pretrained ViT and write a ToSA model.

    With every token kept the new model equals its source; this is checked on a real forward pass every time.
    """
    values = settings_from("convert", preset_recipe(preset, recipe), {**settings, "source": source})
    if "source" not in values:
        raise _no_source(preset, recipe)
    if "layers" not in values:
        raise ConfigError(
            "Nothing says which layers become ToSA layers: pass --layers, as 2,4,6,8,10, or a preset that finds them "
            "on your photos, as --preset calibrated --data-dir PHOTOS."
        )
    _drop_overruled(values, settings)
    if values.get("layers") != AUTO:
        _check_no_images(settings)
    config = ConvertConfig.from_dict(values)
    _check_read(config, settings)
    _convert(config, output, overwrite, dry_run, json, whole)


def _convert(
    config: ConvertConfig, output: Path | None, overwrite: bool, dry_run: bool, json: bool, whole: bool | None
) -> None:
    folder = output or Path(f"{stem_of(config.source)}-tosa")
    _check_kind(config, whole)

    from tosa_cli.hub.folder import check_output
    from tosa_cli.hub.whole import is_whole_source
    from tosa_cli.workflow.convert import convert
    from tosa_cli.workflow.save import save

    if not dry_run:
        check_output(folder, overwrite)
    if whole is not False and is_whole_source(config.source, asked=bool(whole)):
        from tosa_cli.cli import whole as whole_model

        whole_model.convert(config, folder, overwrite, dry_run, json)
        return
    if whole:
        raise ConfigError(f"{config.source} is no model in transformers' format: leave out --whole.")
    report = convert(config, name=folder.name, listener=console)
    model, curves, search = report.model, report.measured.curves, report.measured.search
    for image in report.measured.skipped:
        console.warn(f"Skipped {image}.")
    console.say("Checked: with every token kept, the converted model equals its source.")
    if not dry_run:
        save(model, folder, overwrite=overwrite)
        remember_model(folder)
    if json:
        found = {"search": search.to_dict()} if search is not None else {}
        console.print_json({**report.flops.to_dict(), "curves": [curve.to_dict() for curve in curves], **found})
    else:
        if curves:
            show_curves(curves, model.config)
        if search is not None:
            show_search(search)
        show_flops(report.flops)
    if dry_run:
        console.say("Dry run: nothing was written.")
    else:
        console.say(f"Wrote {folder}.")
        if model.in_chans in COLOR_MODES:
            step = ["distill", "--data-dir", "PHOTOS"] if config.needs_distill else ["eval", "--data-dir", "IMAGES"]
        else:
            step = ["bench"]  # what reads image files would refuse the model
        console.next_command("tosa", *step)


def _check_kind(config: ConvertConfig, whole: bool | None) -> None:
    """Check what can be known of the settings before the source is read.

    Raises:
        ConfigError: If images are missing, or a whole model is given what it does not have.
    """
    from tosa_cli.hub.kind import find_config, is_transformers

    if whole:
        config.check_whole()
    elif whole is False or config.groups_tokens or not is_transformers(find_config(config.source)):
        config.check_images()


def _no_source(preset: str | None, recipe: str | None) -> ConfigError:
    if preset is None and recipe is None:
        return ConfigError("No model was named: run `tosa convert deit_tiny --layers 2,4,6,8,10`, or pass --recipe.")
    given = f"--recipe {recipe}" if preset is None else f"--preset {preset}"
    return ConfigError(f"No model was named, and {given} names none: run `tosa convert deit_tiny {given}`.")


def _drop_overruled(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out what a recipe says of keep rate, target or what is to hold where the command line says another of them.

    Raises:
        ConfigError: If the command line says two.
    """
    told = [name for name in ("keep_rate", *WISHES) if name in given]
    if len(told) > 1:
        raise ConfigError(f"Both {' and '.join(map(option_name, told[:2]))} were given: pass one of them.")
    dropped = {"keep_rate", *WISHES} - {*told} if told else set()
    if not told and given.get("layers", AUTO) != AUTO:
        dropped = {*WISHES}
    for name in dropped:
        values.pop(name, None)


def _check_no_images(given: Mapping[str, Any]) -> None:
    """Check that nothing is said of images where none are read.

    Raises:
        ConfigError: If an option about images was given.
    """
    names = [option_name(name) for name in ABOUT_IMAGES if name in given]
    if names:
        wish = "" if any(name in given for name in WISHES) else " with --target-reduction 0.25"
        raise ConfigError(
            f"No images are read without --layers auto: pass that{wish}, or leave out {' and '.join(names)}."
        )


def _check_read(config: ConvertConfig, given: Mapping[str, Any]) -> None:
    """Check that selector and bypass read what was given on the command line; a recipe may say more.

    Raises:
        ConfigError: If one of the values given would change nothing.
    """
    for name, reason in config.unread.items():
        if name in given:
            raise ConfigError(f"{option_name(name)} changes nothing, as {reason}: leave it out.")
