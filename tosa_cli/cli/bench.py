"""`tosa bench`."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, ModelArgument, resolve_model
from tosa_cli.data.images import ImgSize, both_sides, read_img_size
from tosa_cli.errors import ConfigError
from tosa_cli.progress import counted, figure

if TYPE_CHECKING:
    from tosa_cli.cli.timing import Setup
    from tosa_cli.measure.speed import SpeedReport

_T = TypeVar("_T")

KEEP_RATES = "0.9,0.8,0.7,0.6,0.5,0.4"


def bench(
    model: ModelArgument = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images a batch.")] = 16,
    img_size: ImgSizeOption = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of weights and images.")
    ] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Measure all models under torch.compile.")] = False,
    runtime: Annotated[
        Literal["torch", "onnxruntime", "openvino"],
        typer.Option(
            help="What computes; for onnxruntime and openvino both models are exported to ONNX first, for batches of "
            "just that size. openvino computes in --dtype."
        ),
    ] = "torch",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 15,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Measure token merging, EViT's pruning, IPCV's copying, a smaller input, A-MoD's routing and random "
            "selection at the same MACs; of a whole model all but pruning and copying.",
        ),
    ] = False,
    data_dir: Annotated[
        str,
        typer.Option(
            help="With --peers: photos on which to compare final tokens as well, and a whole model's outputs."
        ),
    ] = "",
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Use so many photos, evenly spread.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option("-j", "--workers", min=0, help="Processes that load photos.")] = 2,
    sweep: Annotated[bool, typer.Option("--sweep", help="Measure over keep rates, batch and image sizes.")] = False,
    keep_rates: Annotated[
        str | None,
        typer.Option(help=f"With --sweep: keep rates for all ToSA layers. [default: {KEEP_RATES}]", show_default=False),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="With --sweep: batch sizes, as in 1,8,16.", show_default=False)
    ] = None,
    img_sizes: Annotated[
        str | None, typer.Option(help="With --sweep: image sizes, as in 224,336 or 224x320.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --sweep: a PNG of speed against keep rate.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plot that exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Time the converted model against its dense source with fused attention, in turns in one process."""
    _check_together(
        peers, sweep, {"--data-dir": data_dir or None, "--max-samples": max_samples},
        {"--keep-rates": keep_rates, "--batch-sizes": batch_sizes, "--img-sizes": img_sizes, "--plot": plot},
    )  # fmt: skip
    if runtime != "torch":
        _check_onnx(
            runtime, device=device, dtype=dtype, options={"--compile": compile, "--peers": peers, "--sweep": sweep}
        )
        device = "cpu"
    rates = _parse_list(keep_rates or KEEP_RATES, float, "--keep-rates", "shares of tokens, as in 0.9,0.8")
    if not all(0 < rate <= 1 for rate in rates):
        raise ConfigError(f"--keep-rates should be above 0 and at most 1, as in 0.9,0.8; not {keep_rates!r}.")
    batches = _parse_list(batch_sizes or str(batch_size), int, "--batch-sizes", "numbers of images, as in 1,8,16")
    if min(batches) < 1:
        raise ConfigError(f"--batch-sizes should be numbers from 1 up, as in 1,8,16; not {batch_sizes!r}.")
    sizes: list[ImgSize] = [read_img_size(img_size)]
    if img_sizes is not None:
        if img_size is not None:
            raise ConfigError("--img-size and --img-sizes were given together: give one of them.")
        sizes = list(_parse_list(img_sizes, _parse_size, "--img-sizes", "sizes in pixels, as in 224,336 or 224x320"))
    name = resolve_model(model)

    # torch reads it at import: its profiler, which measures the memory, would log to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from tosa_cli.cli.timing import Setup
    from tosa_cli.device import pick_device

    setup = Setup(
        name=name,
        batch_size=batch_size,
        img_size=sizes[0],
        device=pick_device(device),
        dtype=getattr(torch, dtype),
        compile=compile,
        rounds=rounds,
        json=json,
    )
    if sweep:
        from tosa_cli.cli.bench_sweep import bench_sweep

        bench_sweep(setup, rates, batches, sizes, plot, overwrite)
    elif peers and setup.is_whole:
        from tosa_cli.cli.bench_whole_peers import bench_whole_peers

        bench_whole_peers(setup, data_dir, max_samples)
    elif peers:
        from tosa_cli.cli.bench_peers import bench_peers

        bench_peers(setup, data_dir, max_samples, workers)
    else:
        _bench_alone(setup, runtime)


def _bench_alone(setup: "Setup", runtime: Literal["torch", "onnxruntime", "openvino"]) -> None:
    import torch

    from tosa_cli.cli.timing import say_conditions, spread
    from tosa_cli.measure.speed import compare_speed

    compare: Callable[..., SpeedReport] = partial(compare_speed, compiled=setup.compile)
    version = ""
    if runtime != "torch":
        from tosa_cli.export.onnx_file import runtime_name
        from tosa_cli.export.openvino_file import default_precision, openvino_name
        from tosa_cli.export.speed import compare_onnx_speed

        precision = str(setup.dtype).removeprefix("torch.")
        compare = partial(compare_onnx_speed, runtime=runtime, precision=precision)
        version = runtime_name() if runtime == "onnxruntime" else openvino_name()
        setup = dataclasses.replace(setup, dtype=torch.float32)
        if runtime == "openvino" and default_precision() != precision:
            console.say(f"OpenVINO's default on this CPU is {default_precision()}: --dtype {default_precision()}.")

    pair = setup.pair()
    if runtime != "torch":
        compare = partial(compare, write=pair.write)
    images = torch.randn(setup.batch_size, *pair.shape, device=setup.device, dtype=setup.dtype)
    console.say(f"Timing {counted(setup.rounds, 'turn')} of each model ...")
    with console.progress("Timing") as bar:
        bar.start(2 * setup.rounds, 0)
        report = compare(
            pair.dense,
            pair.tosa,
            images,
            ideal_speedup=pair.ideal_speedup,
            rounds=setup.rounds,
            advance=bar.advance,
        )
    if setup.json:
        console.print_json(report.to_dict() | ({} if runtime == "torch" else {"runtime": version}))
        return
    rows = [
        [
            which,
            f"{timing.median_s * 1e3:.1f}",
            spread(timing),
            f"{setup.batch_size / timing.median_s:.1f}",
            figure(timing.peak_memory_mb, 0),
        ]
        for which, timing in (("dense", report.dense), ("tosa", report.tosa))
    ]
    console.print_table(
        f"{setup.name}, batch of {setup.batch_size} at {pair.shape[1]}x{pair.shape[2]}",
        ["", "median ms", "spread ms", "images/s", "peak MiB"],
        rows,
    )
    console.print_line(
        f"{report.speedup:.2f}x the speed of the dense model (turn by turn {report.speedup_min:.2f} to "
        f"{report.speedup_max:.2f}); the MACs alone would give {report.ideal_speedup:.2f}x."
    )
    say_conditions(report, version)


def _check_onnx(runtime: str, device: str, dtype: str, options: dict[str, bool]) -> None:
    """Check that what was asked for can be measured in a runtime for ONNX files.

    Raises:
        ConfigError: Naming the option that does not fit.
        InputError: If a package is missing.
    """
    from tosa_cli.export.onnx_file import check_installed
    from tosa_cli.export.openvino_file import check_openvino_installed

    for option, given in options.items():
        if given:
            raise ConfigError(f"{option} and --runtime {runtime} were given together: leave one of them out.")
    if runtime == "onnxruntime" and (device == "cuda" or dtype != "float32"):
        raise ConfigError("--runtime onnxruntime measures float32 on the CPU: leave out --device and --dtype.")
    if runtime == "openvino" and (device == "cuda" or dtype == "float16"):
        raise ConfigError("--runtime openvino measures float32 or bfloat16 on the CPU: choose one with --dtype.")
    check_installed()
    if runtime == "openvino":
        check_openvino_installed()


def _check_together(peers: bool, sweep: bool, for_peers: dict[str, Any], for_sweep: dict[str, Any]) -> None:
    """Check that options are given where they mean something.

    Raises:
        ConfigError: Naming the option that does not fit.
    """
    if peers and sweep:
        raise ConfigError("--peers and --sweep were given together: run `tosa bench` once with each.")
    for needed, given, options in (("--peers", peers, for_peers), ("--sweep", sweep, for_sweep)):
        for option, value in options.items():
            if value is not None and not given:
                raise ConfigError(f"{option} was given without {needed}: add {needed}, or leave {option} out.")
    if for_peers["--max-samples"] is not None and for_peers["--data-dir"] is None:
        raise ConfigError("--max-samples was given without --data-dir: name the folder of photos with --data-dir.")


def _parse_list(text: str, parse: Callable[[str], _T], option: str, expected: str) -> tuple[_T, ...]:
    try:
        return tuple(dict.fromkeys(parse(part) for part in text.split(",")))
    except (ValueError, ConfigError):
        raise ConfigError(f"{option} should be {expected}; not {text!r}.") from None


def _parse_size(text: str) -> tuple[int, int]:
    size = both_sides(read_img_size(text))
    if size is None:
        raise ValueError(text)
    return size
