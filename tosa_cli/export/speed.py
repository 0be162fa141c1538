"""Speed in ONNX Runtime and OpenVINO: the converted model against its dense source, both exported in the same way."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from tosa_cli.export.onnx_file import OnnxModule
from tosa_cli.export.openvino_file import OpenVinoModule
from tosa_cli.measure.speed import SpeedReport, compare_speed

Runtime = Literal["onnxruntime", "openvino"]

Write = Callable[[nn.Module, Path], object]
"""Writes a model as an ONNX file."""


def compare_onnx_speed(
    dense: nn.Module,
    tosa: nn.Module,
    images: Tensor,
    *,
    write: Write,
    ideal_speedup: float,
    runtime: Runtime = "onnxruntime",
    precision: str = "float32",
    rounds: int = 15,
    seconds: float = 0.5,
    advance: Callable[[int], None] = lambda num_images: None,
) -> SpeedReport:
    """Export both models in the same way, and time the files in turns in one process.

    Args:
        dense: The source model, in evaluation mode on the CPU.
        tosa: The converted model, likewise.
        images: A batch (B, C, height, width) in float32.
        write: Writes either of them.
        ideal_speedup: Ratio of the MACs.
        runtime: What runs them.
        precision: Type of numbers that OpenVINO computes in.
        rounds: Turns of each model.
        seconds: Least time of a turn.
        advance: Told after each turn how many images it computed.

    Raises:
        ExportError: If a model cannot be exported, or the runtime does not take the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name, model in {"dense": dense, "tosa": tosa}.items():
            path = Path(folder) / f"{name}.onnx"
            write(model, path)
            sessions[name] = OnnxModule(path) if runtime == "onnxruntime" else OpenVinoModule(path, precision)
        report = compare_speed(
            sessions["dense"],
            sessions["tosa"],
            images,
            ideal_speedup=ideal_speedup,
            rounds=rounds,
            seconds=seconds,
            advance=advance,
        )
        return dataclasses.replace(report, dtype=precision)
