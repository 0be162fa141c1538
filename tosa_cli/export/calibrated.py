"""Static int8 quantisation of an ONNX file: the ranges of activations are taken from photos."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tosa_cli.data.photos import find_photos, photo_transform, read_photo
from tosa_cli.errors import DataError
from tosa_cli.export.onnx_file import data_file
from tosa_cli.export.program import INPUT
from tosa_cli.export.quiet import quiet
from tosa_cli.model.tosa_vit import TosaViT


def calibration_batches(model: TosaViT, data_dir: str, max_samples: int, batch_size: int) -> list[Tensor]:
    """Photos of a folder, evenly spread, as `tosa eval` shows them to a model.

    Returns:
        Batches (B, C, height, width) of one size.

    Raises:
        DataError: If the folder holds too few images, or one cannot be read.
    """
    photos = find_photos([Path(data_dir)])
    count = min(max_samples, len(photos))
    if count < batch_size:
        raise DataError(
            f"{data_dir} holds {len(photos)} images and {count} are used, but one batch is {batch_size}: add images, "
            f"or raise --max-samples."
        )
    transform = photo_transform(model)
    chosen = [photos[number * len(photos) // count] for number in range(count)]
    images = torch.cat([read_photo(path, model, transform) for path in chosen])
    return [batch for batch in images.split(batch_size) if len(batch) == batch_size]


def quantize_static(path: Path, target: Path, batches: Sequence[Tensor]) -> None:
    """Quantise weights and activations of an ONNX file's linear layers; ranges of activations are those of photos.

    Products of activations with each other, the attention's and the distances by which tokens are chosen, stay float.

    Args:
        path: The float32 file, without shapes of what is between its nodes.
        target: The file to write; with weights beside it where the float32 one has them there.
        batches: Images (B, C, height, width).
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    linear = [
        node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and weights.intersection(node.input)
    ]
    with quiet():
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
        from onnxruntime.quantization import quantize_static as quantize

        class Photos(CalibrationDataReader):
            def __init__(self) -> None:
                self.left: Iterator[Tensor] = iter(batches)

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.left, None)
                return None if batch is None else {INPUT: batch.numpy()}

        quantize(
            path,
            target,
            Photos(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=linear,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=data_file(path).exists(),
        )
