"""What the ways of `tosa bench` share: what is measured and how, and what is said of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tosa_cli.cli import console
from tosa_cli.data.images import ImgSize
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.original import dense_model
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class Setup:
    """What is measured and how, whatever it is measured against."""

    name: str
    batch_size: int
    img_size: ImgSize
    device: torch.device
    dtype: torch.dtype
    compile: bool
    rounds: int
    json: bool

    def load(self, img_size: ImgSize) -> tuple[nn.Module, TosaViT]:
        """The dense and the converted model, as they are measured."""
        converted = load(self.name, img_size=img_size)
        dense = dense_model(converted, img_size)
        if dense.note:
            console.say(dense.note)
        return dense.model.to(self.device, self.dtype).eval(), converted.to(self.device, self.dtype).eval()


def spread(timing: Any) -> str:
    """Least and greatest time of a batch, in milliseconds."""
    return f"{timing.min_s * 1e3:.1f} to {timing.max_s * 1e3:.1f}"


def say_conditions(report: Any) -> None:
    """Tell what a report was measured under."""
    console.say(
        f"{report.device}, {report.dtype}, {report.threads} threads, torch {report.torch}, "
        f"{'compiled' if report.compile else 'eager'}."
    )
