"""lightly: it runs a ViT's blocks itself, so that a converted model computes every token in it, as its source does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT

modules: Any = pytest.importorskip("lightly.models.modules")


@torch.no_grad()
def test_its_masked_transformer_runs_every_token(model: TosaViT, images: Tensor) -> None:
    dense = model.backbone.forward_features(images)
    # Left to itself it draws the weights anew, those of a dense model as well.
    kept = {"weight_initialization": "skip", "pos_embed_initialization": "skip"}
    masked = modules.MaskedVisionTransformerTIMM(vit=model, **kept).eval()
    assert torch.allclose(masked.encode(images), dense, atol=1e-5)


def test_a_projection_head_on_it_trains(model: TosaViT, images: Tensor) -> None:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    model.train().reset_classifier(0)
    head = SimCLRProjectionHead(64, 64, 16)
    views = [head(model(view)) for view in (images, images.flip(-1))]
    NTXentLoss()(*views).backward()
    assert all(weight.grad is not None for weight in model.blocks.parameters())
