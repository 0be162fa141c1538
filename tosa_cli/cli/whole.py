"""What commands do with a whole model of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tosa_cli.cli import console
from tosa_cli.cli.curves import show_search
from tosa_cli.cli.flops import flops_rows, share
from tosa_cli.cli.options import remember_model
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.errors import ConfigError
from tosa_cli.settings import option_name

if TYPE_CHECKING:
    from tosa_cli.model.runs.flops import WholeFlops


def is_whole(name: str) -> bool:
    """Whether a folder or Hub repository holds a whole model that tosa converted."""
    from tosa_cli.hub.kind import find_kind

    return find_kind(name) == "whole"


def check_given(command: str, given: Mapping[str, Any], *taken: str) -> None:
    """Check that a command was given nothing that it does not take for a whole model.

    Raises:
        ConfigError: Naming what was given.
    """
    names = [option_name(name) for name, value in given.items() if name not in taken and value is not None]
    if names:
        raise ConfigError(
            f"`tosa {command}` of a whole model takes {', '.join(option_name(name) for name in taken)}: leave out "
            f"{' and '.join(names)}."
        )


def convert(config: ConvertConfig, folder: Path, overwrite: bool, dry_run: bool, json: bool) -> None:
    """`tosa convert` of a model of transformers."""
    from tosa_cli.workflow import whole_folder

    report = whole_folder.convert(config, name=folder.name, listener=console)
    kind = type(report.whole.model).__name__
    console.say(f"Checked: with every token kept, the converted {kind} equals its source.")
    if not dry_run:
        whole_folder.save(report.whole, folder, overwrite)
        remember_model(folder)
    if json:
        found = {"search": report.search.to_dict()} if report.search is not None else {}
        console.print_json({**report.flops.to_dict(), "kind": kind, **found})
    else:
        if report.search is not None:
            show_search(report.search)
        show_flops(report.flops)
    if dry_run:
        console.say("Dry run: nothing was written.")
        return
    console.say(f"Wrote {folder}: after `import tosa_cli`, {kind}.from_pretrained({str(folder)!r}) loads it.")
    console.next_command("tosa", "distill" if report.config.is_fitted else "eval", "--data-dir", "PHOTOS")


def flops(name: str, json: bool) -> None:
    """`tosa flops` of a whole model."""
    from tosa_cli.model.runs.flops import count_whole
    from tosa_cli.workflow.whole_folder import load_converted

    report = count_whole(load_converted(name).model, name=name)
    if json:
        console.print_json(report.to_dict())
    else:
        show_flops(report)


def distill(name: str, given: Mapping[str, Any], output: Path | None, overwrite: bool, json: bool) -> None:
    """`tosa distill` of a whole model."""
    check_given("distill", given, "data_dir", "max_samples")

    from tosa_cli.hub.folder import check_output
    from tosa_cli.workflow import whole_folder

    folder = output or Path(name.removeprefix("local-dir:"))
    if output is not None:
        check_output(folder, overwrite)
    whole, reports = whole_folder.distill(name, given.get("data_dir", ""), given.get("max_samples"), console)
    whole_folder.save(whole, folder, overwrite=output is None or overwrite)
    if json:
        console.print_json({"runs": [vars(report) for report in reports]})
    for report in reports:
        if report.errors and not json:
            console.print_table(
                "Error of the bypass, as a share of the true update",
                ["layer", "error"],
                [[str(layer), f"{error:.1%}"] for layer, error in report.errors.items()],
            )
        if not report.errors:
            console.say("There was nothing to fit: selector and bypass have no parameters.")
    console.say(f"Wrote {folder}.")
    console.next_command("tosa", "eval", folder, "--data-dir", "PHOTOS")


def evaluate(name: str, given: Mapping[str, Any], update_card: bool, json: bool) -> None:
    """`tosa eval` of a whole model: how near its outputs are to those with every token computed."""
    check_given("eval", given, "data_dir", "max_samples")

    from tosa_cli.workflow import whole_folder

    report = whole_folder.evaluate(name, given.get("data_dir", ""), given.get("max_samples"), console)
    if json:
        console.print_json(report.to_dict())
    else:
        console.print_table(
            f"Outputs of {name} against those with every token computed, {report.samples} images",
            ["output", "figure", "mean"],
            [
                [output, figure, f"{value:.4f}"]
                for output, figures in report.outputs.items()
                for figure, value in figures.items()
            ],
        )
    if update_card:
        folder = Path(name.removeprefix("local-dir:"))
        whole_folder.record(name, folder, report)
        console.say(f"Wrote the result into {folder}.")


def export(name: str, path: Path, atol: float, json: bool) -> None:
    """`tosa export` of a whole model: one ONNX file for one image of its own size."""
    from tosa_cli.export.whole import export_whole
    from tosa_cli.workflow.whole_folder import image_part, load_converted

    model = load_converted(name).model
    part = image_part(model)
    report = export_whole(part, path, atol)
    if json:
        console.print_json(report.to_dict())
        return
    shape = "x".join(map(str, report.input))
    console.print_line(
        f"{report.file}: {report.size_mb:.1f} MB; {type(part).__name__}, takes {shape}; gives "
        f"{', '.join(report.outputs)}."
    )
    console.print_line(f"It was run on random images: outputs differ by {report.difference:.2g} at most.")


def show_flops(report: "WholeFlops") -> None:
    """Print the table of a report."""
    rows = flops_rows(report.layers)
    around = (report.gmacs - report.encoder_gmacs) * 1e3
    rows.append(["the rest", "", "", "", f"{around:.2f}", "", "", ""])
    height, width = report.img_size
    console.print_table(
        f"{report.model} at {height}x{width}: MACs of one image, in millions",
        ["layer", "kind", "tokens", "kept", "MMACs", "selector", "bypass", "saved"],
        rows,
    )
    console.print_line(
        f"{report.counted}: {report.gmacs:.3f} GMACs, dense {report.dense_gmacs:.3f}: {share(report.reduction)} less; "
        f"in the layers {share(report.encoder_reduction)} less, which are "
        f"{share(report.encoder_dense_gmacs / report.dense_gmacs)} of the dense model."
    )
    console.print_line(f"{report.params / 1e6:.2f} M parameters. FLOPs = 2 * MACs.")
