"""Models as PyTorch's counter sees them run."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tosa_cli.model.flops_report import FlopsReport

from ..model.tiny_models import make_images


def count(module: Callable[..., Any], *inputs: Tensor) -> int:
    """MACs that PyTorch counts while a module runs: attention as plain products, which no version of it leaves out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def run_and_count(model: nn.Module) -> int:
    """MACs that PyTorch counts while the model runs on one image."""
    model.requires_grad_(False)  # under no_grad the counter fails on attention pooling
    return count(model, make_images(1, model.patch_embed.img_size))


def macs(report: FlopsReport) -> int:
    return round(report.gmacs * 1e9)
