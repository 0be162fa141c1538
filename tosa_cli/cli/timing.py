"""What the ways of `tosa bench` share: what is measured and how, and what is said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tosa_cli.cli import console
from tosa_cli.data.images import ImgSize
from tosa_cli.errors import ConfigError
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.onnx_file import write_onnx
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.kind import find_kind
from tosa_cli.hub.original import dense_model
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import counted


@dataclass(frozen=True)
class Pair:
    """A dense and a converted model, as they are measured.

    Attributes:
        dense: The dense one.
        tosa: The converted one.
        shape: Channels, height and width of an image.
        ideal_speedup: Ratio of the MACs.
        write: Writes either of them as an ONNX file.
    """

    dense: nn.Module
    tosa: nn.Module
    shape: tuple[int, int, int]
    ideal_speedup: float
    write: Callable[[nn.Module, Path], object]


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

    def pair(self) -> Pair:
        """Both models, whatever they are.

        Raises:
            ConfigError: If another image size is asked for than a whole model is made for.
        """
        if self.is_whole:
            return self._whole_pair()
        dense, tosa = self.load(self.img_size)
        flops = count_flops(tosa)
        outputs = ["logits"] if tosa.num_classes else ["last_hidden_state"]
        shape = (tosa.in_chans, *flops.img_size)
        sample = torch.zeros(self.batch_size, *shape)  # shapes that are all known let a runtime plan ahead
        opset = ExportConfig().opset
        write = partial(write_onnx, outputs=outputs, images=sample, dynamic_batch=False, opset=opset)
        return Pair(dense, tosa, shape, flops.dense_gmacs / flops.gmacs, write)

    @property
    def is_whole(self) -> bool:
        """Whether what is measured is a whole model."""
        return find_kind(self.name) == "whole"

    def load_whole(self) -> tuple[nn.Module, Any]:
        """The part of a whole model that takes images, as it is measured, and what prepares these.

        Raises:
            ConfigError: If another image size is asked for than it is made for.
        """
        if self.img_size is not None:
            raise ConfigError("A whole model is timed at its own image size: leave out --img-size and --img-sizes.")
        from tosa_cli.workflow.whole_folder import image_part, load_converted

        whole = load_converted(self.name)
        return image_part(whole.model.to(self.device, self.dtype)), whole.processor

    def _whole_pair(self) -> Pair:
        from tosa_cli.export.whole import write_whole
        from tosa_cli.model.runs.find import own_shape
        from tosa_cli.model.runs.flops import count_whole
        from tosa_cli.model.runs.insert import dense_copy

        part, _ = self.load_whole()
        flops, shape = count_whole(part), own_shape(part)
        write = partial(write_whole, batch_size=self.batch_size, opset=ExportConfig().opset, shape=shape)
        return Pair(dense_copy(part), part, shape, flops.dense_gmacs / flops.gmacs, write)


def spread(timing: Any) -> str:
    """Least and greatest time of a batch, in milliseconds."""
    return f"{timing.min_s * 1e3:.1f} to {timing.max_s * 1e3:.1f}"


def say_conditions(report: Any, runtime: str = "") -> None:
    """Tell what a report was measured under: in PyTorch, or in a runtime of that name and version."""
    computed = f"torch {report.torch}, {'compiled' if report.compile else 'eager'}."
    if runtime:
        computed = f"{runtime}, by which both were run once they were exported to ONNX in the same way."
    console.say(f"{report.device}, {report.dtype}, {counted(report.threads, 'thread')}, {computed}")
