"""`tosa export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tosa_cli.cli import console, whole
from tosa_cli.cli.options import ImgSizeOption, JsonOption, ModelArgument, resolve_model, with_settings
from tosa_cli.data.images import read_img_size
from tosa_cli.errors import ConfigError
from tosa_cli.export.config import ExportConfig
from tosa_cli.hub.names import stem_of
from tosa_cli.progress import counted

if TYPE_CHECKING:
    from tosa_cli.export.check import CheckReport
    from tosa_cli.export.openvino_file import OpenVinoReport
    from tosa_cli.export.quantize import QuantizeReport


@with_settings(ExportConfig)
def export(
    settings: dict[str, Any],
    model: ModelArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write. Default: the model's name here.", show_default=False),
    ] = None,
    format: Annotated[
        Literal["onnx", "pt2"] | None,
        typer.Option(
            help="onnx, or pt2 for torch.export. Default: by the ending of --output, else onnx.", show_default=False
        ),
    ] = None,
    img_size: ImgSizeOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Export a model to ONNX or torch.export, run the file, and compare it with the model.

    Input: pixel_values, normalised images (batch, channels, height, width).
    """
    chosen = format or ("pt2" if output is not None and output.suffix.lower() == ".pt2" else "onnx")
    config = ExportConfig.from_dict({**settings, "format": chosen})
    size = read_img_size(img_size)
    name = resolve_model(model)
    stem = stem_of(name)
    path = output or Path(f"{stem}{'.int8' if config.quantize else ''}.{chosen}")

    from tosa_cli.export.export import check_target, export_model
    from tosa_cli.export.onnx_file import check_installed

    if chosen == "onnx":
        check_installed()
    check_target(path, chosen, overwrite)

    if whole.is_whole(name):
        if chosen != "onnx":
            raise ConfigError("A whole model is written as ONNX alone: leave out --format.")
        taken = ("atol", "batch_size", "opset", "quantize", "data_dir", "max_samples")
        whole.check_given("export", {**settings, "img_size": img_size}, *taken)
        whole.export(name, path, config, json)
        return

    from tosa_cli.hub.checkpoint import load

    report = export_model(load(name, img_size=size), path, config, name=stem, overwrite=overwrite, say=console.say)
    if json:
        console.print_json(report.to_dict())
        return
    takes = "any number of images"
    if config.batch_size is not None:
        takes = f"{counted(config.batch_size, 'image')} at a time"
    shape = "x".join(str(extent) for extent in report.inputs["pixel_values"][1:])
    console.print_line(
        f"{report.file}: {report.size_mb:.1f} MB; takes {takes}, {shape}; gives {', '.join(report.outputs)}."
    )
    if report.data_file:
        console.print_line(f"Its weights are in {report.data_file}: keep both in one folder.")
    for line in describe_check(report.check, report.runtime, quantized=report.quantized is not None):
        console.print_line(line)
    if report.openvino is not None:
        for line in describe_openvino(report.openvino):
            console.print_line(line)
    if report.quantized is not None:
        for line in describe_quantized(report.quantized):
            console.print_line(line)
        _show_rows(report.quantized)
    if chosen == "onnx":
        console.next_command("tosa", "bench", name, "--runtime", "onnxruntime")


def describe_check(check: "CheckReport", runtime: str, quantized: bool = False) -> list[str]:
    """Tell in sentences what was compared, and what came of it."""
    batches = ", ".join(dict.fromkeys(map(str, check.batch_sizes)))
    lines = [
        f"{'Before quantisation it was' if quantized else 'It was'} run with {runtime} on {check.images} pieces of "
        f"photos, in batches of {batches}, and compared with the model (--atol {check.atol:g})."
    ]
    if check.random:
        lines.append(
            f"Tokens are selected at random, differently in each run. With the same tokens the model's outputs differ "
            f"by {check.tied_difference:.2g} at most; another seed's cannot be compared."
        )
        return lines
    if check.same_difference is not None:
        lines.append(
            f"{check.same_choices} of {check.images} images: the same tokens in every ToSA layer; outputs differ by "
            f"{check.same_difference:.2g} at most."
        )
    if check.tied_choices:
        lines.append(
            f"{check.tied_choices} of {check.images} images: other tokens among ties, whose scores differ by "
            f"{check.tied_margin:.1g} of a usual score at most. Outputs differ by {check.tied_difference:.2g} from the "
            f"model's with these tokens, by {check.tied_difference_own:.2g} from those with its own."
        )
    return lines


def describe_openvino(report: "OpenVinoReport") -> list[str]:
    """Tell in sentences how the file does in OpenVINO."""
    lines = [] if report.check is None else describe_check(report.check, f"{report.runtime} in float32")
    told = ", ".join(f"{name} {cosine:.4f}" for name, cosine in report.cosine.items())
    if told and not report.not_finite and report.default_precision != "float32":
        lines.append(
            f"In {report.default_precision}, which {report.runtime} computes in by default on this CPU, cosines to the "
            f"model's outputs are: {told}."
        )
    if report.problem is not None:
        lines.append(f"Do not use it in {report.runtime} as it is. {report.problem}")
    return lines


def describe_quantized(report: "QuantizeReport") -> list[str]:
    """Tell in sentences what quantisation costs and brings."""
    agreement = report.agreement
    told = [
        f"{name} have a cosine of {cosine:.4f} to float32's, and differ by {agreement.max_difference[name]:.2g} at most"
        for name, cosine in agreement.cosine.items()
    ]
    if agreement.top1 is not None:
        told.append(f"the first class is the same for {agreement.top1:.1%}")
    return [
        f"int8 on {report.images} pieces of photos: {'; '.join(told)}; {agreement.same_tokens:.1%} of the selected "
        f"tokens are the same.",
        f"{report.size_mb:.1f} MB against {report.float32_size_mb:.1f}; {report.speedup:.2f}x the speed of float32 "
        f"(turn by turn {report.speedup_min:.2f} to {report.speedup_max:.2f}; "
        f"{counted(report.threads, 'thread')}, batch of {report.batch_size}).",
    ]


def _show_rows(report: "QuantizeReport") -> None:
    names = list(report.rows[0].cosine)
    console.print_table(
        f"Against the dense model in float32, on {report.images} pieces of photos",
        ["", *(f"{name} cosine" for name in names), "speed", "turn by turn"],
        [
            [
                f"{row.tokens} {row.dtype}",
                *(f"{row.cosine[name]:.4f}" for name in names),
                f"{row.speedup:.2f}x",
                f"{row.speedup_min:.2f} to {row.speedup_max:.2f}",
            ]
            for row in report.rows
        ],
    )
