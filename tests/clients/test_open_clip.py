"""open_clip: a converted folder as the image tower."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT

timm_model: Any = pytest.importorskip("open_clip.timm_model")


def tower(name: str) -> Any:
    return timm_model.TimmModel(name, embed_dim=32, image_size=160, pool="token", pretrained="dir" in name).eval()


@torch.no_grad()
def test_the_tower_computes_the_models_features(folder: Path, model: TosaViT, images: Tensor) -> None:
    image_tower = tower(f"local-dir:{folder}")
    assert isinstance(image_tower.trunk, TosaViT)
    model.reset_classifier(0)
    assert torch.equal(image_tower.trunk(images), model(images))
    assert image_tower(images).shape == (2, 32)


@pytest.mark.parametrize("unlocked", [0, 1, 3])
def test_locking_all_but_the_last_groups_locks_what_it_locks_of_the_dense_model(folder: Path, unlocked: int) -> None:
    def locked(name: str) -> set[str]:
        image_tower = tower(name)
        image_tower.lock(unlocked_groups=unlocked)
        return {key for key, weight in image_tower.trunk.named_parameters() if not weight.requires_grad}

    dense, tosa = locked("test_vit"), locked(f"local-dir:{folder}")
    assert {key for key in tosa if not key.startswith(("selectors.", "bypasses."))} == dense
    assert not unlocked or len(dense) < len(dict(tower("test_vit").trunk.named_parameters()))
