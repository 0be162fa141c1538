"""A whole model as one ONNX file, run and compared with the model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tosa_cli.errors import ExportError
from tosa_cli.export.program import decompose
from tosa_cli.export.quiet import quiet
from tosa_cli.hub.writing import write_file
from tosa_cli.model.runs.calls import Call, tensors_of
from tosa_cli.model.runs.find import converted_runs

INPUT = "pixel_values"


@dataclass(frozen=True)
class WholeExportReport:
    """What was written, and how it agrees with the model.

    Attributes:
        file: The file.
        size_mb: Its size in megabytes.
        input: Shape of the images that it takes.
        outputs: Names of what it gives.
        difference: Largest difference of an output from the model's, as a share of the output's largest value.
    """

    file: str
    size_mb: float
    input: tuple[int, ...]
    outputs: tuple[str, ...]
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


class _Outputs(nn.Module):
    """A model that takes images and gives its outputs one by one."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The outputs by their names."""
        found = tensors_of(self.model(pixel_values))
        return tuple(found[name] for name in self.names)


@torch.no_grad()
def export_whole(model: nn.Module, path: Path, atol: float) -> WholeExportReport:
    """Write a whole model as an ONNX file for one image of its own size, run it, and compare.

    Args:
        model: The converted model, or the part of it that takes images, in evaluation mode.
        path: The file; it is written only if it agrees.
        atol: Largest accepted difference, as a share of the largest value of an output.

    Raises:
        ExportError: If PyTorch's exporter cannot say the model in ONNX, or the file does not agree with it.
    """
    import onnxruntime

    found = converted_runs(model)[0]
    assert found.run is not None
    shape = (1, found.patches.in_channels, *found.run.patch_embed.img_size)
    generator = torch.Generator().manual_seed(0)
    images, other = (torch.randn(shape, generator=generator) for _ in range(2))
    names = tuple(Call(model, (images,), {}).outputs())
    try:
        program = decompose(torch.export.export(_Outputs(model, names).eval(), (images,), strict=False))
        with quiet():
            written: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=list(names)
            )
        content = written.model_proto.SerializeToString()
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ExportError(
            f"PyTorch {torch.__version__} could not say this model in ONNX ({type(error).__name__}: {reason}): "
            f"call torch.export or torch.jit.trace on it from Python."
        ) from error
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (images, other):
        expected = Call(model, (batch,), {}).outputs()
        for name, value in zip(names, session.run(list(names), {INPUT: batch.numpy()}), strict=True):
            truth = expected[name].numpy()
            worst = max(worst, float(np.abs(value - truth).max() / max(1.0, float(np.abs(truth).max()))))
    if not worst <= atol:
        raise ExportError(
            f"The outputs of the ONNX file differ from the model's by {worst:.2g} of their largest value, more than "
            f"--atol {atol:g}: nothing was written."
        )
    write_file(path, content)
    return WholeExportReport(str(path), len(content) / 1e6, shape, names, worst)
