"""`tosa inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tosa_cli.cli import budget, console
from tosa_cli.cli.options import ImgSizeOption, JsonOption
from tosa_cli.config import Method, TosaConfig
from tosa_cli.data.images import read_img_size
from tosa_cli.errors import ConfigError, InputError
from tosa_cli.methods import Bypass, Selection, Selector

if TYPE_CHECKING:
    from tosa_cli.fit.budget import ErrorCurve

KEEP_RATES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
TARGETS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)


def inspect(
    source: Annotated[str, typer.Argument(help="timm name, Hub id, folder or weights file.")],
    img_size: ImgSizeOption = None,
    data_dir: Annotated[
        str, typer.Option(help="Images on which to measure what each layer can spare; no labels are read.")
    ] = "",
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Measure on so many of them. [default: 32]", show_default=False)
    ] = None,
    selector: Annotated[Selector, typer.Option(help="What ranks the tokens, in the measurement.")] = "similarity",
    bypass: Annotated[
        Bypass, typer.Option(help="What a skipped token becomes, in the measurement.")
    ] = "nearest+linear",
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
    measured = Method(selector=selector, bypass=bypass)

    from tosa_cli.hub.source import load_source
    from tosa_cli.model.families import is_supported, num_heads
    from tosa_cli.model.flops import count_flops

    if data_dir:
        measured.check_measurable()
    loaded = load_source(source, pretrained=bool(data_dir), img_size=size)
    for note in loaded.notes:
        console.say(note)
    model: Any = loaded.model
    depth = len(model.blocks)
    block = model.blocks[0]
    dense = count_flops(model, name=loaded.name)
    choices = layer_choices(depth)
    selections: list[Selection] = [selection for selection in get_args(Selection) if is_supported(model, selection)]
    savings = [
        {
            "layers": list(layers),
            "selection": selection,
            "keep_rate": rate,
            "reduction": count_flops(model, TosaConfig(layers=layers, keep_rate=rate, selection=selection)).reduction,
        }
        for layers in choices
        for selection in selections
        for rate in KEEP_RATES
    ]
    report = {
        "model": loaded.name,
        "convertible": True,
        "architecture": type(model).__name__,
        "block": type(block).__name__,
        "depth": depth,
        "embed_dim": model.embed_dim,
        "num_heads": num_heads(block),
        "num_prefix_tokens": model.num_prefix_tokens,
        "tokens": dense.layers[0].tokens,
        "img_size": list(dense.img_size),
        "num_classes": model.num_classes,
        "dense_gmacs": dense.gmacs,
        "params": dense.params,
        "savings": savings,
    }
    curves = budget.measure(model, measured, data_dir, max_samples) if data_dir else []
    choices_by_target = _allocations(model, measured, curves) if curves else {}
    if curves:
        report["curves"] = [curve.to_dict() for curve in curves]
        report["allocations"] = [
            {"reduction": target, "layers": list(config.layers), "keep_rate": list(config.keep_rates.values())}
            for target, config in choices_by_target.items()
        ]
    if plot is not None:
        budget.plot_curves(curves, plot)
    if json:
        console.print_json(report)
        return
    console.print_line(
        f"{loaded.name} can be converted: {depth} layers of {report['block']}, "
        f"{report['tokens']} tokens ({report['num_prefix_tokens']} of them prefix tokens) of width "
        f"{report['embed_dim']}, {report['num_heads']} heads, {dense.gmacs:.3f} GMACs at "
        f"{dense.img_size[0]}x{dense.img_size[1]}."
    )
    rows = [
        [
            ",".join(map(str, layers)),
            selection,
            *(f"{s['reduction']:.1%}" for s in savings if s["layers"] == list(layers) and s["selection"] == selection),
        ]
        for layers in choices
        for selection in selections
    ]
    if rows:
        console.print_table(
            "MACs saved, selectors included, by keep rate",
            ["layers", "selection", *(str(rate) for rate in KEEP_RATES)],
            rows,
        )
    if curves:
        budget.show_curves(curves)
        console.print_table(
            "Keep rates that convert --layers auto would choose, by --target-reduction",
            ["layer", *(f"{target:.0%}" for target in choices_by_target)],
            [
                [curve.name, *(str(c.keep_rates.get(curve.layers[0], "-")) for c in choices_by_target.values())]
                for curve in curves
            ],
        )
        how = ["--selector", selector, "--bypass", bypass, "--layers", "auto", "--target-reduction", "0.25"]
        console.next_command("tosa", "convert", source, *how, "--data-dir", data_dir)
        return
    how = ["--layers", ",".join(map(str, choices[0]))] if choices else ["--layers", "1", "--selector", "similarity"]
    console.next_command("tosa", "convert", source, *how)


def layer_choices(depth: int) -> list[tuple[int, ...]]:
    """ToSA layers to propose for a model of `depth` layers: every other one, and those of its second half.

    The first layer is never among them, as a selector that reads maps needs a layer before its own; so a model of one
    layer has no such choice.
    """
    every_other = tuple(range(2, depth, 2)) or tuple(range(2, depth + 1))
    second_half = tuple(range(depth // 2 // 2 * 2 + 2, depth, 2))
    return list(filter(None, dict.fromkeys((every_other, second_half))))


def _allocations(model: Any, method: Method, curves: "list[ErrorCurve]") -> dict[float, TosaConfig]:
    """What would be chosen for each target that can be reached."""
    from tosa_cli.fit.budget import allocate

    found = {}
    for target in TARGETS:
        try:
            found[target] = allocate(model, method, curves, target)
        except ConfigError:
            break
    return found
