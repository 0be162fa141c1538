"""Whole models of transformers on the disk, and commands that take them."""

from pathlib import Path
from typing import Any

import torch

from tests.model.whole_models import (
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
