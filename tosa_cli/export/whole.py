"""A whole model as one ONNX file, run and compared with the model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tosa_cli.errors import ExportError
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.export import move_files
from tosa_cli.export.masks import MaskedCalls, drop_idle_masks
from tosa_cli.export.onnx_file import OnnxModule, write_program
from tosa_cli.export.photos import photo_pieces
from tosa_cli.export.program import BATCH, INPUT, TRACED_BATCH
from tosa_cli.export.quantize import quantize_file
from tosa_cli.export.quiet import quiet
from tosa_cli.hub.writing import staging_folder
from tosa_cli.measure.agreement import compare_outputs
from tosa_cli.measure.speed import time_in_turns
from tosa_cli.model.runs.calls import Call, tensors_of
from tosa_cli.model.runs.find import own_shape

CHECKED_BATCHES = (1, 2, 3)
"""Images a batch to check a file with that takes any number."""

COMPARED = 8
"""Pieces of photos on which an int8 file is compared with the float32 one, batch by batch."""

ROUNDS = 7
"""Turns of each file, where both are timed."""


@dataclass(frozen=True)
class QuantizedWhole:
    """What quantisation to int8 costs and brings.

    Attributes:
        images: Pieces of photos that were compared.
        outputs: How near the outputs are to the float32 file's, by their names and figures, as `tosa eval` has them.
        size_mb: Size of the file in MB (10^6 bytes).
        speedup: Times as fast as the float32 file, median of turns in one process; with the spread.
        speedup_min: The least of the turns.
        speedup_max: The greatest.
        threads: Threads that computed.
    """

    images: int
    outputs: dict[str, dict[str, float]]
    size_mb: float
    speedup: float
    speedup_min: float
    speedup_max: float
    threads: int


@dataclass(frozen=True)
class WholeExportReport:
    """What was written, and how it agrees with the model.

    Attributes:
        file: The file.
        size_mb: Size of the float32 file in MB (10^6 bytes).
        input: Shape of the images that it takes; a number that is free is a word.
        outputs: Names of what it gives.
        difference: Largest difference of an output from the model's, as a share of the output's largest value; of a
            quantised file, before that.
        quantized: What quantisation costs and brings; None without.
    """

    file: str
    size_mb: float
    input: tuple[int | str, ...]
    outputs: tuple[str, ...]
    difference: float
    quantized: QuantizedWhole | None = None

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
def write_whole(
    model: nn.Module, path: Path, *, batch_size: int | None, opset: int, shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """Write a model that takes images as an ONNX file; weights beyond 2 GB go beside it.

    Args:
        model: The model, or the part of it that takes images, in evaluation mode on the CPU.
        path: The file.
        batch_size: Images a batch; None leaves it open.
        opset: Opset of the file.
        shape: Channels, height and width of an image.

    Returns:
        Names of the outputs.

    Raises:
        ExportError: If PyTorch's exporter cannot say the model in ONNX.
    """
    images = torch.randn((batch_size or TRACED_BATCH, *shape), generator=torch.Generator().manual_seed(0))
    with MaskedCalls() as calls:
        names = tuple(Call(model, (images,), {}).outputs())
    free = {INPUT: {0: Dim(BATCH, min=1)}} if batch_size is None else None
    try:
        with quiet():
            traced = torch.export.export(_Outputs(model, names).eval(), (images,), strict=False, dynamic_shapes=free)
            drop_idle_masks(traced, calls.masked)
        write_program(traced, path, names, opset=opset)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        many = " for any number of images" if batch_size is None else ""
        instead = "pass --batch-size 1" if batch_size is None else "call torch.export or torch.jit.trace on it"
        raise ExportError(
            f"PyTorch {torch.__version__} could not say this model in ONNX{many} ({type(error).__name__}: {reason}): "
            f"{instead}."
        ) from error
    return names


def export_whole(
    model: nn.Module,
    path: Path,
    config: ExportConfig,
    *,
    photos: Sequence[Tensor] = (),
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    say: Callable[[str], None] = lambda message: None,
) -> WholeExportReport:
    """Write a whole model as an ONNX file for images of its own size, run it, compare, and only then let it appear.

    Args:
        model: The converted model, or the part of it that takes images, in evaluation mode on the CPU.
        path: The file.
        config: What to write.
        photos: Images (B, C, height, width) of that size, from which static quantisation takes ranges of activations.
        mean: Mean of each channel by which the model's images are normalised, for the comparison of an int8 file.
        std: Likewise the standard deviation.
        say: Told what is being done.

    Raises:
        ExportError: If PyTorch's exporter cannot say the model in ONNX, or the file does not agree with it.
    """
    shape, batch = own_shape(model), config.batch_size
    with staging_folder(path) as folder:
        exported = folder / path.name
        say("Writing the ONNX file ...")
        names = write_whole(model, exported, batch_size=batch, opset=config.opset, shape=shape)
        float32, size = OnnxModule(exported), _size(exported)
        worst = _difference(model, float32, shape, (batch, batch) if batch else CHECKED_BATCHES)
        if not worst <= config.atol:
            raise ExportError(
                f"The outputs of the ONNX file differ from the model's by {worst:.2g} of their largest value, more "
                f"than --atol {config.atol:g}. Nothing was written: pass a greater --atol if that is accurate enough "
                f"for you."
            )
        quantized = None
        if config.quantize is not None:
            say("Quantising it to int8 ...")
            small = folder / "int8" / path.name
            small.parent.mkdir()
            quantize_file(exported, small, photos)
            exported = small
            pieces = (photo_pieces(shape, COMPARED) - _channels(mean)) / _channels(std)
            quantized = _compare_quantized(float32, OnnxModule(small), pieces, batch or 1, _size(small), say)
        move_files(exported, path)
    return WholeExportReport(str(path), size, (batch or BATCH, *shape), names, worst, quantized)


def _difference(model: nn.Module, exported: OnnxModule, shape: tuple[int, int, int], batches: Sequence[int]) -> float:
    """Largest difference of an output on random images, as a share of the output's largest value, at least 1."""
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for count in batches:
        images = torch.randn((count, *shape), generator=generator)
        expected, made = Call(model, (images,), {}).outputs(), exported(images)
        for name, value in made.items():
            truth = expected[name]
            difference = (value - truth).abs().max() / truth.abs().max().clamp_min(1.0)
            worst = max(worst, float(difference) if difference == difference else float("inf"))
    return worst


def _compare_quantized(
    float32: OnnxModule, int8: OnnxModule, images: Tensor, batch: int, size_mb: float, say: Callable[[str], None]
) -> QuantizedWhole:
    batches = [each for each in images.repeat(-(-batch // len(images)), 1, 1, 1).split(batch) if len(each) == batch]
    agreement = compare_outputs(float32, int8, batches)
    for note in agreement.notes:
        say(note)
    turns = time_in_turns({"float32": float32, "int8": int8}, batches[0], rounds=ROUNDS, seconds=0.2)
    return QuantizedWhole(
        images=agreement.samples,
        outputs=agreement.outputs,
        size_mb=size_mb,
        **vars(turns.speedups["int8"]),
        threads=turns.conditions.threads,
    )


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _size(path: Path) -> float:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6
