"""Folders in transformers' format, changed on the way, and what is said of broken ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tosa_cli.hub.source import load_source

from .transformers_models import make, make_pixels, output_of, published, tokens_of

TOLERANCE = 1e-5

WITH_TOKENS = (
    "ViTModel",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
    "DeiTModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
)
"""Classes whose last hidden state is timm's final tokens; CLIP's is before the last norm, which timm's is behind."""


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_equal_outputs(theirs: nn.Module, folder: Path) -> None:
    images = make_pixels(theirs)
    expected = output_of(theirs, images)
    assert expected.std() > 0.05
    ours = load_source(str(folder)).model
    assert not ours.training
    with torch.no_grad():
        assert ours(images).shape == expected.shape
        assert (ours(images) - expected).abs().max() <= TOLERANCE
        if type(theirs).__name__ in WITH_TOKENS:
            assert (ours.forward_features(images) - tokens_of(theirs, images)).abs().max() <= TOLERANCE


@pytest.fixture(name="vit", scope="module")
def make_their_vit() -> nn.Module:
    return make(published("google/vit-base-patch16-224"), "ViTModel")
