"""pytorch-grad-cam: `outputs` has a module behind each layer that sees all tokens, also where the block does not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT

cam: Any = pytest.importorskip("pytorch_grad_cam")


def patches(tokens: Tensor) -> Tensor:
    """Maps (B, D, 10, 10) of tokens (B, 101, D)."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (10, 10))


def maps(model: Any, layer: Any, images: Tensor) -> Any:
    targets = [cam.utils.model_targets.ClassifierOutputTarget(1)] * len(images)
    with cam.GradCAM(model=model, target_layers=[layer], reshape_transform=patches) as grad_cam:
        return torch.from_numpy(grad_cam(input_tensor=images, targets=targets))


@pytest.mark.parametrize("layer", range(1, 6))
def test_maps_of_every_layer_have_every_patch(model: TosaViT, images: Tensor, layer: int) -> None:
    found = maps(model, model.outputs[str(layer)], images)
    assert found.shape == (2, 160, 160) and found.isfinite().all() and found.std() > 0


def test_with_every_token_kept_they_are_the_dense_models(model: TosaViT, images: Tensor) -> None:
    dense = model.backbone
    expected = maps(dense, dense.blocks[4], images)
    model.keep_rates = dict.fromkeys(model.keep_rates, 1.0)
    assert torch.allclose(maps(model, model.outputs["5"], images), expected, atol=1e-3)
