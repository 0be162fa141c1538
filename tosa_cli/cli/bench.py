"""`tosa bench`."""

import os
from typing import Annotated, Literal

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, ModelArgument, parse_img_size, resolve_model


def bench(
    model: ModelArgument = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images a batch.")] = 16,
    img_size: ImgSizeOption = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of weights and images.")
    ] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Measure both models under torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 15,
    json: JsonOption = False,
) -> None:
    """Time the converted model against its dense source with fused attention, in turns in one process."""
    name = resolve_model(model)
    size = parse_img_size(img_size)

    # torch reads it at import: its profiler, which measures the memory, would log to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from tosa_cli.cli.evaluate import dense_model
    from tosa_cli.hub.checkpoint import load
    from tosa_cli.measure.flops import count_flops
    from tosa_cli.measure.speed import compare_speed
    from tosa_cli.train.config import TrainConfig
    from tosa_cli.train.loop import make_accelerator

    place = make_accelerator(TrainConfig(device=device)).device
    converted = load(name, img_size=size)
    flops = count_flops(converted)
    kind = getattr(torch, dtype)
    dense = dense_model(converted, size).to(place, kind)
    converted = converted.to(place, kind)
    images = torch.randn(batch_size, converted.in_chans, *flops.img_size, device=place, dtype=kind)
    console.say(f"Timing {rounds} turns of each model ...")
    report = compare_speed(
        dense, converted, images, ideal_speedup=flops.dense_gmacs / flops.gmacs, rounds=rounds, compiled=compile
    )
    if json:
        console.print_json(report.to_dict())
        return
    rows = [
        [
            which,
            f"{timing.median_s * 1e3:.1f}",
            f"{timing.min_s * 1e3:.1f} to {timing.max_s * 1e3:.1f}",
            f"{batch_size / timing.median_s:.1f}",
            f"{timing.peak_memory_mb:.0f}",
        ]
        for which, timing in (("dense", report.dense), ("tosa", report.tosa))
    ]
    console.print_table(
        f"{name}, batch of {batch_size} at {flops.img_size[0]}x{flops.img_size[1]}",
        ["", "median ms", "spread ms", "images/s", "peak MiB"],
        rows,
    )
    console.print_line(
        f"{report.speedup:.2f}x the speed of the dense model (turn by turn {report.speedup_min:.2f} to "
        f"{report.speedup_max:.2f}); the MACs alone would give {report.ideal_speedup:.2f}x."
    )
    console.say(
        f"{report.device}, {report.dtype}, {report.threads} threads, torch {report.torch}, "
        f"{'compiled' if report.compile else 'eager'}."
    )
