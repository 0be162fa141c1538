"""`tosa flops`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, parse_img_size, resolve_model
from tosa_cli.errors import TosaError

if TYPE_CHECKING:
    from tosa_cli.measure.flops import FlopsReport


def flops(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Converted model, or any source that can be converted. Default: the last one converted here.",
            show_default=False,
        ),
    ] = None,
    img_size: ImgSizeOption = None,
    json: JsonOption = False,
) -> None:
    """Count the multiply-accumulates of a model, layer by layer, selectors included."""
    name = resolve_model(model)
    size = parse_img_size(img_size)

    from tosa_cli.hub.checkpoint import load
    from tosa_cli.hub.source import load_source
    from tosa_cli.measure.flops import count_flops

    if _is_converted(name):
        report = count_flops(load(name, img_size=size), name=name)
    else:
        source = load_source(name, pretrained=False, img_size=size)
        report = count_flops(source.model, name=source.name)
    if json:
        console.print_json(report.to_dict())
    else:
        show_flops(report)


def _is_converted(name: str) -> bool:
    from tosa_cli.hub.download import fetch_file
    from tosa_cli.hub.folder import CONFIG, is_model_folder

    folder = Path(name.removeprefix("local-dir:"))
    if folder.exists() or "/" not in name:
        return is_model_folder(folder)
    repo_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        return is_model_folder(fetch_file(repo_id, CONFIG, revision=revision or None).parent)
    except TosaError:
        return False  # whoever loads it tells why it cannot be loaded


def show_flops(report: "FlopsReport") -> None:
    """Print the table of a report."""
    converted = any(layer.kind == "tosa" for layer in report.layers)
    rows = []
    for layer in report.layers:
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
    height, width = report.img_size
    console.print_table(
        f"{report.model} at {height}x{width}: MACs of one image, in millions",
        ["layer", "kind", "tokens", "kept", "MMACs", "selector", "bypass", "saved"],
        rows,
    )
    if converted:
        console.print_line(
            f"{report.gmacs:.3f} GMACs, dense {report.dense_gmacs:.3f}: {report.reduction:.1%} less, "
            f"selectors included ({report.selector_gmacs:.4f} GMACs)."
        )
    else:
        console.print_line(f"{report.gmacs:.3f} GMACs, dense.")
    console.print_line(
        f"{report.params / 1e6:.2f} M parameters. FLOPs = 2 * MACs; timm's figure for the dense model, "
        f"which adds the norms, is {report.dense_gmacs + report.norm_gmacs:.2f} GMACs."
    )
