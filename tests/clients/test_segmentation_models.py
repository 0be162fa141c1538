"""segmentation_models_pytorch: a converted folder as the encoder of DPT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT

smp: Any = pytest.importorskip("segmentation_models_pytorch")


def test_dpt_reads_a_converted_encoder(folder: Path, model: TosaViT, images: Tensor) -> None:
    dpt = smp.DPT(f"tu-local-dir:{folder}", encoder_weights=True, encoder_depth=4, classes=3).eval()
    assert isinstance(dpt.encoder.model, TosaViT)
    with torch.no_grad():
        maps, prefix = dpt.encoder(images)
        expected = model.forward_intermediates(
            images, indices=dpt.encoder._output_indices, intermediates_only=True, return_prefix_tokens=True
        )
        assert all(torch.equal(a, b) for a, (b, _) in zip(maps, expected, strict=True))
        assert all(torch.equal(a, b) for a, (_, b) in zip(prefix, expected, strict=True))
        assert dpt(images).shape == (2, 3, 160, 160)
    dpt.train()(images).mean().backward()
    trained = {name for name, weight in dpt.encoder.model.named_parameters() if weight.grad is not None}
    assert "blocks.0.attn.qkv.weight" in trained and not any("selectors" in name for name in trained)
