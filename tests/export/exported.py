"""Small models and images for exports, and what ONNX Runtime makes of a file."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from tests.model.tiny_models import make_images
from tosa_cli.export import export as export_module
from tosa_cli.export import onnx_file, program
from tosa_cli.model.tosa_vit import TosaViT


def run_onnx(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {
        name: torch.from_numpy(value)
        for name, value in zip(names, session.run(None, {"pixel_values": images.numpy()}), strict=True)
    }


def trace_once(monkeypatch: pytest.MonkeyPatch, model: TosaViT) -> None:
    """Trace a model once, with its choices, for all that is exported: tracing takes long."""
    images = torch.zeros(program.TRACED_BATCH, 3, 32, 32)
    traced = program.trace(model, ["logits"], images, dynamic_batch=True, with_choices=True)
    monkeypatch.setattr(export_module, "trace", lambda *_, **__: traced)
    monkeypatch.setattr(onnx_file, "trace", lambda *_, **__: traced)


def images_of(count: int) -> Tensor:
    return make_images(count, size=32, seed=3)
