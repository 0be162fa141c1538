"""`tosa export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, ModelArgument, parse_img_size, resolve_model
from tosa_cli.export.config import OPSETS, ExportConfig, Output

if TYPE_CHECKING:
    from tosa_cli.export.check import CheckReport
    from tosa_cli.export.quantize import QuantizeReport

DEFAULTS = ExportConfig()


def export(
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
    outputs: Annotated[
        str | None,
        typer.Option(
            help="What comes out, with commas: logits, pooler_output (pooled features), last_hidden_state (all final "
            "tokens, for dense tasks). Default: logits, or of a model without a head the others.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "-b", "--batch-size", min=1, help="Fix the batch to so many images. Default: any.", show_default=False
        ),
    ] = None,
    img_size: ImgSizeOption = None,
    opset: Annotated[
        int, typer.Option(help=f"Opset of the ONNX file, from {OPSETS[0]} to {OPSETS[1]}.")
    ] = DEFAULTS.opset,
    atol: Annotated[
        float,
        typer.Option(help="Largest accepted difference from the model; of values above 1, relative to the largest."),
    ] = DEFAULTS.atol,
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(help="int8: dynamic quantisation of the ONNX file; what it costs is told.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Export a model to ONNX or torch.export, run the file, and compare it with the model.

    Input: pixel_values, normalised images (batch, channels, height, width).
    """
    chosen = format or ("pt2" if output is not None and output.suffix.lower() == ".pt2" else "onnx")
    config = ExportConfig(
        format=cast(Literal["onnx", "pt2"], chosen),
        outputs=cast(tuple[Output, ...], tuple(outputs.split(",")) if outputs is not None else ()),
        batch_size=batch_size,
        opset=opset,
        atol=atol,
        quantize=quantize,
    )
    size = parse_img_size(img_size)
    name = resolve_model(model)
    stem = name.removeprefix("local-dir:").removeprefix("hf-hub:").rstrip("/").split("/")[-1].split("@")[0]
    path = output or Path(f"{stem}{'.int8' if quantize else ''}.{chosen}")

    from tosa_cli.export.export import check_target, export_model
    from tosa_cli.export.onnx_file import check_installed

    if chosen == "onnx":
        check_installed()
    check_target(path, chosen, overwrite)

    from tosa_cli.hub.checkpoint import load

    report = export_model(load(name, img_size=size), path, config, name=stem, overwrite=overwrite, say=console.say)
    if json:
        console.print_json(report.to_dict())
        return
    takes = "any number of images" if batch_size is None else f"{batch_size} image{'s' * (batch_size > 1)} at a time"
    shape = "x".join(str(extent) for extent in report.inputs["pixel_values"][1:])
    console.print_line(
        f"{report.file}: {report.size_mb:.1f} MB; takes {takes}, {shape}; gives {', '.join(report.outputs)}."
    )
    if report.data_file:
        console.print_line(f"Its weights are in {report.data_file}: keep both in one folder.")
    for line in describe_check(report.check, report.runtime, quantized=report.quantized is not None):
        console.print_line(line)
    if report.quantized is not None:
        for line in describe_quantized(report.quantized):
            console.print_line(line)
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
        f"(turn by turn {report.speedup_min:.2f} to {report.speedup_max:.2f}; {report.threads} threads, batch of "
        f"{report.batch_size}).",
    ]
