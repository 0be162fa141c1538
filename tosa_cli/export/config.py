"""What an export does, as one frozen object. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tosa_cli.errors import ConfigError
from tosa_cli.settings import CommandSettings, Setting

Format = Literal["onnx", "pt2"]
Output = Literal["logits", "pooler_output", "last_hidden_state"]

OPSETS = (18, 23)
"""Least and greatest ONNX opset; PyTorch's exporter begins with the first."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommandSettings):
    """Settings of an export.

    Raises:
        ConfigError: If a value is out of range, or settings do not go with each other.
    """

    format: Annotated[Format, Setting("onnx, or pt2 for torch.export.")] = "onnx"
    outputs: Annotated[
        tuple[Output, ...],
        Setting(
            "What comes out, by Optimum's names and with commas: logits; pooler_output, the pooled features before the "
            "classifier; last_hidden_state, all final normalised tokens, prefix tokens first. Default: logits, or of a "
            "model without a head the last and then the pooled features."
        ),
    ] = ()
    batch_size: Annotated[int | None, Setting("Fix the batch to so many images. Default: any.", flag="-b", ge=1)] = None
    opset: Annotated[int, Setting("Opset of the ONNX file.", ge=OPSETS[0], le=OPSETS[1])] = 20
    atol: Annotated[
        float,
        Setting(
            "Largest accepted difference from the model, absolute; of outputs whose largest value is above 1 relative "
            "to that.",
            gt=0,
        ),
    ] = 1e-4
    quantize: Annotated[
        Literal["int8", "static"] | None,
        Setting(
            "int8: quantise the weights of an ONNX file, and its activations as it runs. static: the same, with the "
            "ranges of activations taken from the photos of --data-dir. What it costs is told."
        ),
    ] = None
    data_dir: Annotated[str, Setting("With --quantize static: a folder of photos.")] = ""
    max_samples: Annotated[int, Setting("With --quantize static: use so many photos, evenly spread.", ge=1)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.outputs)) < len(self.outputs):
            raise ConfigError(f"--outputs names one twice, in {','.join(self.outputs)}: name each once.")
        if self.quantize and self.format != "onnx":
            raise ConfigError("--quantize is for ONNX files: leave it out, or choose the format onnx.")
        if self.quantize == "static" and not self.data_dir:
            raise ConfigError("--quantize static needs photos: name a folder with --data-dir, or pass --quantize int8.")
        if self.data_dir and self.quantize != "static":
            raise ConfigError("--data-dir is for --quantize static: add that, or leave it out.")
