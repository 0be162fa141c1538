"""`tosa inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tosa_cli.cli import console, whole
from tosa_cli.cli.curves import show_curves
from tosa_cli.cli.options import ArchitectureOption, ImgSizeOption, JsonOption, WeightsKeyOption
from tosa_cli.config import Method
from tosa_cli.data.images import read_img_size
from tosa_cli.errors import InputError
from tosa_cli.methods import Bypass, Selector


def inspect(
    source: Annotated[str, typer.Argument(help="timm name, Hub id, folder or weights file.")],
    img_size: ImgSizeOption = None,
    architecture: ArchitectureOption = None,
    weights_key: WeightsKeyOption = None,
    data_dir: Annotated[
        str, typer.Option(help="Images on which to measure what each layer can spare; no labels are read.")
    ] = "",
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Measure on so many of them. [default: 32]", show_default=False)
    ] = None,
    selector: Annotated[
        Selector | None,
        typer.Option(help="What ranks the tokens, in the measurement. [default: similarity]", show_default=False),
    ] = None,
    bypass: Annotated[
        Bypass | None,
        typer.Option(
            help="What a skipped token becomes, in the measurement. [default: nearest+linear]", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the measured curves into this PNG.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Tell whether a model can be converted, which layers it has, and what each setting would save.

    With --data-dir it measures what selecting tokens in each layer alone does to the final tokens, and shows which
    layers and keep rates `convert --layers auto` would choose.
    """
    size = read_img_size(img_size)
    if plot is not None:
        from tosa_cli.draw.plot import check_can_plot

        if not data_dir:
            raise InputError("--plot draws what is measured on images: pass --data-dir PHOTOS too.")
        check_can_plot(plot, overwrite)
    given = {
        "img_size": img_size, "architecture": architecture, "weights_key": weights_key, "data_dir": data_dir or None,
        "max_samples": max_samples, "selector": selector, "bypass": bypass,
    }  # fmt: skip
    if whole.is_source(source):
        whole.inspect(source, given, json)
        return
    if not data_dir:
        for name, value in (("selector", selector), ("bypass", bypass), ("max-samples", max_samples)):
            if value is not None:
                raise InputError(f"--{name} was given without --data-dir: name the folder of photos with --data-dir.")
    selector, bypass = selector or "similarity", bypass or "nearest+linear"
    method = Method(selector=selector, bypass=bypass)

    from tosa_cli.workflow.inspect import KEEP_RATES, inspect

    report = inspect(
        source,
        method,
        img_size=size,
        data_dir=data_dir,
        max_samples=max_samples,
        architecture=architecture,
        weights_key=weights_key,
        listener=console,
    )
    for image in report.measured.skipped:
        console.warn(f"Skipped {image}.")
    if plot is not None:
        from tosa_cli.draw.plot import plot_error_curves

        plot_error_curves(list(report.measured.curves), plot)
        console.say(f"Wrote {plot}.")
    if json:
        console.print_json(report.to_dict())
        return
    facts, dense = report.facts, report.dense
    console.print_line(
        f"{facts['model']} can be converted: {facts['depth']} layers of {facts['block']}, "
        f"{facts['tokens']} tokens ({facts['num_prefix_tokens']} of them prefix tokens) of width "
        f"{facts['embed_dim']}, {facts['num_heads']} heads, {dense.gmacs:.3f} GMACs at "
        f"{dense.img_size[0]}x{dense.img_size[1]}."
    )
    if len(report.eligible) < facts["depth"]:
        console.print_line(f"Layers that can be ToSA layers: {_joined(report.eligible)}.")
    rows: dict[tuple[str, str], list[str]] = {}
    for saving in report.savings:
        rows.setdefault((_joined(saving.layers), saving.selection), []).append(f"{saving.reduction:.1%}")
    if rows:
        console.print_table(
            "MACs saved, selectors included, by keep rate",
            ["layers", "selection", *map(str, KEEP_RATES)],
            [[*labels, *shares] for labels, shares in rows.items()],
        )
    if report.measured.curves:
        show_curves(report.measured.curves)
        console.print_table(
            "Keep rates that convert --layers auto would choose, by --target-reduction",
            ["layer", *(f"{target:.0%}" for target in report.allocations)],
            [
                [curve.name, *(str(c.keep_rates.get(curve.layers[0], "-")) for c in report.allocations.values())]
                for curve in report.measured.curves
            ],
        )
        how = ["--selector", selector, "--bypass", bypass, "--layers", "auto", "--target-reduction", "0.25"]
        console.next_command("tosa", "convert", source, *how, "--data-dir", data_dir)
        return
    how = ["--layers", _joined(report.eligible[:1]), "--selector", "similarity"]
    if report.savings:
        how = ["--layers", _joined(report.savings[0].layers)]
    console.next_command("tosa", "convert", source, *how)


def _joined(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
