"""What an export does, as one frozen object. Imports no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from tosa_cli.errors import ConfigError

Format = Literal["onnx", "pt2"]
Output = Literal["logits", "pooler_output", "last_hidden_state"]

OPSETS = (18, 23)
"""Least and greatest ONNX opset; PyTorch's exporter begins with the first."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of an export.

    Attributes:
        format: `onnx`, or `pt2` for `torch.export`.
        outputs: What comes out, by Optimum's names: `logits`; `pooler_output`, the pooled features before the
            classifier; `last_hidden_state`, all final normalised tokens, prefix tokens first. Empty for `logits`, or of
            a model without a head for the last and then the pooled features.
        batch_size: Number of images that the file takes; None for any.
        opset: Opset of the ONNX file.
        atol: Largest accepted difference from the model, absolute, of outputs whose largest value is above 1 relative
            to that.
        quantize: `int8` quantises the weights of an ONNX file, and its activations as it runs; None does not.
    """

    format: Format = "onnx"
    outputs: tuple[Output, ...] = ()
    batch_size: int | None = None
    opset: int = 20
    atol: float = 1e-4
    quantize: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ConfigError(f"format must be onnx or pt2, not {self.format!r}.")
        object.__setattr__(self, "outputs", tuple(self.outputs))
        for name in self.outputs:
            if name not in get_args(Output):
                raise ConfigError(f"outputs must be among {', '.join(get_args(Output))}; not {name!r}.")
        if len(set(self.outputs)) < len(self.outputs):
            raise ConfigError(f"outputs names one twice: {', '.join(self.outputs)}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, not {self.batch_size}.")
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise ConfigError(f"opset must be from {OPSETS[0]} to {OPSETS[1]}, not {self.opset}.")
        if not self.atol > 0:
            raise ConfigError(f"atol must be above 0, not {self.atol}.")
        if self.quantize not in (None, "int8"):
            raise ConfigError(f"quantize must be int8, not {self.quantize!r}.")
        if self.quantize and self.format != "onnx":
            raise ConfigError("quantize is for ONNX files: leave it out, or choose the format onnx.")
