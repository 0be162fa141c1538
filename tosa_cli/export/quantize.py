"""Int8 quantisation of an ONNX file, and what it costs in agreement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.export.check import Run
from tosa_cli.export.onnx_file import data_file
from tosa_cli.export.photos import sample_images
from tosa_cli.export.program import choosing
from tosa_cli.export.quiet import quiet
from tosa_cli.measure.speed import time_in_turns
from tosa_cli.model.tosa_vit import TosaViT

IMAGES, BATCH_SIZE, ROUNDS = 32, 8, 7
"""Images that are compared, how many a batch where any number goes, and turns of each file."""


@dataclass(frozen=True)
class Agreement:
    """How the outputs of a quantised file agree with those of the float32 one.

    Attributes:
        cosine: Mean cosine of an output's rows (of logits an image's, of tokens a token's), by the output's name.
        max_difference: Largest absolute difference, by the output's name.
        top1: Share of images with the same first class; None without logits.
        same_tokens: Share of the selected tokens that both select, mean over the ToSA layers.
    """

    cosine: dict[str, float]
    max_difference: dict[str, float]
    top1: float | None
    same_tokens: float


@dataclass(frozen=True)
class QuantizeRow:
    """What one file costs and brings.

    Attributes:
        tokens: `dense` or `converted`.
        dtype: `float32` or `int8`.
        cosine: Mean cosine of an output's rows to those of the dense float32 file, by the output's name.
        speedup: Times as fast as that file, median of turns in one process; with the spread.
    """

    tokens: str
    dtype: str
    cosine: dict[str, float]
    speedup: float
    speedup_min: float
    speedup_max: float


@dataclass(frozen=True)
class QuantizeReport:
    """What quantisation costs and brings.

    Attributes:
        images: Images that were compared: pieces of photos.
        agreement: With the float32 file.
        size_mb: Size of the quantised file in MB (10^6 bytes).
        float32_size_mb: Size of the float32 one.
        speedup: Times as fast as the float32 file, median of turns in one process; with the spread.
        speedup_min: The least of the turns.
        speedup_max: The greatest.
        batch_size: Images a batch in these turns.
        threads: Threads that computed.
        rows: The dense and the converted model, float32 and quantised in the same way, side by side.
    """

    images: int
    agreement: Agreement
    size_mb: float
    float32_size_mb: float
    speedup: float
    speedup_min: float
    speedup_max: float
    batch_size: int
    threads: int
    rows: tuple[QuantizeRow, ...] = ()


def quantize_file(path: Path, target: Path, batches: Sequence[Tensor] = ()) -> None:
    """Quantise the weights of an ONNX file's linear layers channel by channel; activations as it runs, or by photos.

    Args:
        path: The float32 file.
        target: The file to write; with weights beside it where the float32 one has them there.
        batches: Images (B, C, height, width) to take the ranges of activations from; none takes them as it runs.
    """
    import onnx

    from tosa_cli.export.calibrated import quantize_static

    # Quantisers turn weights round, and stumble over the shapes that the file tells of them.
    bare = onnx.load(path, load_external_data=False)
    del bare.graph.value_info[:]
    shapeless = path.with_name(f"shapeless-{path.name}")
    onnx.save(bare, shapeless)
    if batches:
        quantize_static(shapeless, target, batches)
        return
    with quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            shapeless,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=data_file(path).exists(),
        )


@dataclass(frozen=True)
class Quantization:
    """The files that are compared: as written, with choices as outputs, and the dense model's; each in two types."""

    float32: nn.Module
    quantized: nn.Module
    float32_choices: Run
    quantized_choices: Run
    dense: nn.Module
    dense_quantized: nn.Module


@torch.no_grad()
def measure_quantized(
    model: TosaViT, files: Quantization, outputs: Sequence[str], *, batch_size: int | None, sizes: tuple[int, int]
) -> QuantizeReport:
    """Compare a quantised file with the float32 one on pieces of photos, and time both in turns.

    Args:
        model: The original, for the images' size and normalisation.
        files: What is compared.
        outputs: Names of the outputs.
        batch_size: Images a batch; None where any number goes.
        sizes: Bytes of the float32 and the quantised file.
    """
    batch_size = batch_size or BATCH_SIZE
    images = sample_images(model, batch_size * math.ceil(IMAGES / batch_size), seed=1)
    agreement = _agreement(model, files, outputs, images.split(batch_size))
    turns = time_in_turns(
        {"float32": files.float32, "int8": files.quantized}, images[:batch_size], rounds=ROUNDS, seconds=0.2
    )
    rows = _rows(files, outputs, images.split(batch_size))
    return QuantizeReport(
        images=len(images),
        agreement=agreement,
        size_mb=sizes[1] / 1e6,
        float32_size_mb=sizes[0] / 1e6,
        **vars(turns.speedups["int8"]),
        batch_size=batch_size,
        threads=turns.conditions.threads,
        rows=rows,
    )


def _rows(files: Quantization, outputs: Sequence[str], batches: Sequence[Tensor]) -> tuple[QuantizeRow, ...]:
    modules = {
        ("dense", "float32"): files.dense,
        ("dense", "int8"): files.dense_quantized,
        ("converted", "float32"): files.float32,
        ("converted", "int8"): files.quantized,
    }
    named = {" ".join(key): module for key, module in modules.items()}
    turns = time_in_turns(named, batches[0], rounds=ROUNDS, seconds=0.2)
    expected = [files.dense(batch) for batch in batches]
    rows = []
    for (tokens, dtype), module in modules.items():
        actual = [module(batch) for batch in batches]
        cosines = {
            name: torch.cat(
                [
                    F.cosine_similarity(mine[name], dense[name], dim=-1).flatten()
                    for mine, dense in zip(actual, expected, strict=True)
                ]
            )
            for name in outputs
        }
        mean = {name: values.mean().item() for name, values in cosines.items()}
        rows.append(QuantizeRow(tokens, dtype, mean, **vars(turns.speedups[f"{tokens} {dtype}"])))
    return tuple(rows)


def _agreement(model: TosaViT, files: Quantization, outputs: Sequence[str], batches: Sequence[Tensor]) -> Agreement:
    cosines: dict[str, list[Tensor]] = {name: [] for name in outputs}
    largest = dict.fromkeys(outputs, 0.0)
    shared: list[Tensor] = []
    top1: list[Tensor] = []
    for batch in batches:
        expected, actual = files.float32_choices(batch), files.quantized_choices(batch)
        for name in outputs:
            cosines[name].append(F.cosine_similarity(expected[name], actual[name], dim=-1).flatten())
            largest[name] = max(largest[name], (expected[name] - actual[name]).abs().max().item())
        if "logits" in outputs:
            top1.append(expected["logits"].argmax(-1) == actual["logits"].argmax(-1))
        for layer in choosing(model):
            name = f"keep_indices_{layer}"
            shared.append(_shared(expected[name], actual[name]).flatten())
    return Agreement(
        cosine={name: torch.cat(values).mean().item() for name, values in cosines.items()},
        max_difference=largest,
        top1=torch.cat(top1).float().mean().item() if top1 else None,
        same_tokens=torch.cat(shared).mean().item(),
    )


def _shared(first: Tensor, second: Tensor) -> Tensor:
    """Share of the indices (..., K) that stand in both, (...)."""
    length = int(torch.maximum(first.max(), second.max())) + 1
    flags = [torch.zeros(*indices.shape[:-1], length).scatter(-1, indices, 1.0) for indices in (first, second)]
    return (flags[0] * flags[1]).sum(-1) / first.shape[-1]
