"""Whole models of transformers on the disk, and commands that take them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.whole_models import (
    depth_anything,
    hf,
)

GROUPS = ["--selector", "ward", "--bypass", "mean"]


def write_depth(model: Any, folder: Path) -> Path:
    for parameter in model.parameters():  # as it is made it predicts the same everywhere
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.head.conv3.bias.data.fill_(1.0)
    model.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    hf.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return folder


@pytest.fixture(name="photos")
def write_three_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for number, size in enumerate([(60, 90), (90, 60), (70, 70)]):
        pixels = numbers.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(name="source")
def write_source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_depth(depth_anything(), tmp_path / "depth")
