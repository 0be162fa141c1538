"""`tosa flops`."""

from typing import TYPE_CHECKING, Annotated

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ArchitectureOption, ImgSizeOption, JsonOption, WeightsKeyOption, resolve_model
from tosa_cli.data.images import read_img_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tosa_cli.model.flops_report import FlopsReport, LayerFlops
    from tosa_cli.model.predictor_flops import PredictorFlops


def flops(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Converted model, one with a decoder, or any source that can be converted. Default: the last one "
            "converted here.",
            show_default=False,
        ),
    ] = None,
    img_size: ImgSizeOption = None,
    architecture: ArchitectureOption = None,
    weights_key: WeightsKeyOption = None,
    json: JsonOption = False,
) -> None:
    """Count the multiply-accumulates of a model, layer by layer, selectors and a decoder included."""
    name = resolve_model(model)
    size = read_img_size(img_size)

    from tosa_cli.hub.checkpoint import load
    from tosa_cli.hub.kind import find_kind
    from tosa_cli.hub.source import load_source
    from tosa_cli.model.flops import count_flops

    kind = find_kind(name)
    if kind == "whole":
        from tosa_cli.cli import whole

        whole.flops(name, json)
        return
    if kind == "predictor":
        _count_predictor(name, size, json)
        return
    if kind == "converted":
        report = count_flops(load(name, img_size=size), name=name)
    else:
        source = load_source(name, pretrained=False, img_size=size, architecture=architecture, weights_key=weights_key)
        report = count_flops(source.model, name=source.name)
    if json:
        console.print_json(report.to_dict())
    else:
        show_flops(report)


def _count_predictor(name: str, size: int | tuple[int, int] | None, json: bool) -> None:
    from tosa_cli.hub.predictor import load_predictor
    from tosa_cli.model.predictor_flops import count_predictor_flops

    model = load_predictor(name)
    report = count_predictor_flops(model, (size, size) if isinstance(size, int) else size, name)
    if json:
        console.print_json({**report.to_dict(), "task": model.config.task, "decoder": model.config.decoder})
    else:
        show_flops(report.encoder, report, model.config.decoder)


def show_flops(report: "FlopsReport", whole: "PredictorFlops | None" = None, decoder: str = "") -> None:
    """Print the table of a report.

    Args:
        report: Of a model, or of the encoder of one with a decoder.
        whole: Of the model with a decoder.
        decoder: Name of the decoder.
    """
    converted = any(layer.kind == "tosa" for layer in report.layers)
    rows = flops_rows(report.layers)
    if whole is not None:
        rows.append(["decoder", decoder, "", "", f"{whole.decoder_gmacs * 1e3:.2f}", "", "", ""])
    height, width = report.img_size
    part = "The encoder: " if whole is not None else ""
    console.print_table(
        f"{report.model} at {height}x{width}: MACs of one image, in millions",
        ["layer", "kind", "tokens", "kept", "MMACs", "selector", "bypass", "saved"],
        rows,
    )
    if converted:
        console.print_line(
            f"{part}{report.gmacs:.3f} GMACs, dense {report.dense_gmacs:.3f}: {share(report.reduction)} less, "
            f"selectors included ({report.selector_gmacs * 1e3:.2f} MMACs)."
        )
    else:
        console.print_line(f"{part}{report.gmacs:.3f} GMACs, dense.")
    params = f"{report.params / 1e6:.2f} M"
    if whole is not None:
        figures = whole.figures
        less = f", dense {figures['dense_gmacs']:.3f}: {share(figures['reduction'])} less" if converted else ""
        console.print_line(f"With the decoder: {figures['gmacs']:.3f} GMACs{less}.")
        params = f"{params} and {whole.decoder_params / 1e6:.2f} M"
    console.print_line(
        f"{params} parameters. FLOPs = 2 * MACs; timm's figure for the dense {'encoder' if part else 'model'}, "
        f"which adds the norms, is {report.dense_gmacs + report.norm_gmacs:.3f} GMACs."
    )


def share(value: float) -> str:
    """A share in percent; what rounds to nothing has no sign."""
    return f"{round(value, 3) + 0.0:.1%}"


def flops_rows(layers: "Sequence[LayerFlops]") -> list[list[str]]:
    """The rows of a table of layers."""
    rows = []
    for layer in layers:
        total = layer.macs + layer.selector_macs + layer.bypass_macs
        saved = 1 - total / layer.dense_macs
        rows.append(
            [
                str(layer.layer),
                layer.kind,
                str(layer.tokens),
                str(layer.kept),
                f"{layer.macs / 1e6:.2f}",
                f"{layer.selector_macs / 1e6:.2f}",
                f"{layer.bypass_macs / 1e6:.2f}",
                f"{saved:.1%}" if saved else "",
            ]
        )
    return rows
