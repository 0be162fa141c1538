"""What `export_model` tells of a file that it wrote."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from tosa_cli.export.check import CheckReport
from tosa_cli.export.openvino_file import OpenVinoReport
from tosa_cli.export.quantize import QuantizeReport


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the model.

    Attributes:
        file: The file.
        data_file: Weights beside it, of an ONNX file that would be too large; else None.
        size_mb: Size of both in MB (10^6 bytes).
        format: `onnx` or `pt2`.
        runtime: What ran the file for the check, with its version.
        inputs: Shape of each input by name; a number that is free is a string.
        outputs: Names of the outputs, in their order.
        opset: Opset of an ONNX file, else None.
        check: How the file, or before quantisation the float32 one, compares with the model.
        quantized: What quantisation costs and brings; None without.
        openvino: How the file, or before quantisation the float32 one, does in OpenVINO; None where that is not there.
    """

    file: str
    data_file: str | None
    size_mb: float
    format: str
    runtime: str
    inputs: dict[str, list[int | str]]
    outputs: list[str]
    opset: int | None
    check: CheckReport
    quantized: QuantizeReport | None
    openvino: OpenVinoReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)
