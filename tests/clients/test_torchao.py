"""torchao: weights in eight bits, in place."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.model.tosa_vit import TosaViT

quantization: Any = pytest.importorskip("torchao.quantization")


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@torch.no_grad()
def test_linear_layers_are_quantised_and_outputs_stay_near(model: TosaViT, images: Tensor, name: str) -> None:
    expected, dense = model(images), model.backbone(images)
    plain = type(model.blocks[0].attn.qkv.weight)  # type: ignore[union-attr]
    quantization.quantize_(model, getattr(quantization, name)())
    assert type(model.blocks[0].attn.qkv.weight) is not plain  # type: ignore[union-attr]
    assert F.cosine_similarity(model.backbone(images), dense).min() > 0.99
    assert F.cosine_similarity(model(images), expected).min() > 0.95
