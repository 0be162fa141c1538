"""How close the final tokens of a converted model are to the dense model's; needs no labels."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tosa_cli.measure.turns import Clock, run_in_turns
from tosa_cli.model.families import has_class_token
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

    @property
    def cosines(self) -> dict[str, float]:
        """The cosines that there are, by name."""
        found = {"patch_cosine": self.patch_cosine}
        return found if self.class_cosine is None else {**found, "class_cosine": self.class_cosine}

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
    forwards: dict[str, Any] = {
        "dense": dense.to(device).eval().forward_features,
        "tosa": model.to(device).eval().forward_features,
    }
    prefix = model.num_prefix_tokens
    patches = classes = 0.0
    clock = Clock()
    turns = run_in_turns(forwards, images, clock, device=device, amp=amp, strict=strict, advance=advance)
    for _, tokens in turns:
        cosine = F.cosine_similarity(tokens["dense"].float(), tokens["tosa"].float(), dim=-1)
        patches += cosine[:, prefix:].mean(dim=1).sum().item()
        classes += cosine[:, 0].sum().item()
    samples = clock.samples
    return FeatureReport(
        samples=samples,
        skipped=list(images.failed),
        patch_cosine=patches / samples,
        class_cosine=classes / samples if has_class_token(model.backbone) else None,
        images_per_second=samples / clock.seconds["tosa"],
        dense_images_per_second=samples / clock.seconds["dense"],
        data_seconds=clock.data_seconds,
    )
