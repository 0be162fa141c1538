"""How close the final tokens of a converted model are to the dense model's; needs no labels."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.measure.speed import synchronize
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class FeatureReport:
    """Final tokens beside the dense model's, on the same images.

    Attributes:
        samples: Images that were read and measured.
        skipped: Images that could not be read, with the reason.
        patch_cosine: Mean cosine of patch tokens.
        class_cosine: Mean cosine of class tokens; None without one.
        images_per_second: Images a second of the converted model alone, without loading.
        dense_images_per_second: The same of the dense model.
        data_seconds: Time that loading took beyond the models'.
    """

    samples: int
    skipped: list[str]
    patch_cosine: float
    class_cosine: float | None
    images_per_second: float
    dense_images_per_second: float
    data_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def measure_features(
    model: TosaViT,
    dense: nn.Module,
    images: Any,
    *,
    device: torch.device | str = "cpu",
    amp: str = "no",
    strict: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> FeatureReport:
    """Compare final tokens with the dense model's.

    Args:
        model: The converted model.
        dense: Its source.
        images: `Images` to read once, in order.
        device: Where to compute.
        amp: Mixed precision: `no`, `bf16` or `fp16`.
        strict: Stop at an image that cannot be read.
        advance: Told how many images are done.

    Raises:
        DataError: If no image could be read, or one could not and `strict` is set.
    """
    device = torch.device(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    model.to(device).eval()
    dense.to(device).eval()
    prefix = model.num_prefix_tokens
    seconds = {"dense": 0.0, "tosa": 0.0}
    patches = classes = 0.0
    samples = 0
    start = time.perf_counter()
    for batch in images.batches(strict):
        inputs = batch.images.to(device)
        tokens: dict[str, Tensor] = {}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if not samples:
                warm = time.perf_counter()
                dense.forward_features(inputs)  # type: ignore[operator]
                model.forward_features(inputs)  # the first pass of a process is slow and not counted
                start += time.perf_counter() - warm
            for name, forward in (("dense", dense.forward_features), ("tosa", model.forward_features)):
                synchronize(device)
                began = time.perf_counter()
                tokens[name] = forward(inputs)  # type: ignore[operator]
                synchronize(device)
                seconds[name] += time.perf_counter() - began
        cosine = F.cosine_similarity(tokens["dense"].float(), tokens["tosa"].float(), dim=-1)
        patches += cosine[:, prefix:].mean(dim=1).sum().item()
        classes += cosine[:, 0].sum().item()
        samples += len(inputs)
        advance(len(inputs))
    return FeatureReport(
        samples=samples,
        skipped=list(images.failed),
        patch_cosine=patches / samples,
        class_cosine=classes / samples if model.backbone.has_class_token else None,
        images_per_second=samples / seconds["tosa"],
        dense_images_per_second=samples / seconds["dense"],
        data_seconds=time.perf_counter() - start - sum(seconds.values()),
    )
