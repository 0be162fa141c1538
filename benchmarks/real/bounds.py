"""What bounds the quality at 224: photos that are all texture, and how the dense model itself answers to noise."""

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIVE
from benchmarks.real.lab import RealLab, chosen, distilled

TEXTURES = ("Dune", "grass")
"""Held-out photos that are all texture: no two patches are alike there."""
NOISE, NOISY_LAYER = 0.1, 2
"""Gaussian noise on the dense tokens after a layer, as a share of each token's norm."""


def run_bounds(lab: RealLab) -> None:
    """Texture and other crops apart: five layers at 0.8, the preset, and the dense model with noise."""
    from tosa_cli.config import TosaConfig

    source = lab.source(224)
    settings: dict[str, Any] = {
        "five at 0.8, nearest+linear": TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+linear"),
        "matched -25%": chosen(lab, 0.25),
        "matched -40%": chosen(lab, 0.4),
    }

    def one(config: Any) -> dict[str, Any]:
        model, _ = distilled(lab, source, config, calibration=126)
        return by_texture(lab, model)

    for name, config in settings.items():
        lab.measure("bounds", name, partial(one, config))
    noisy = f"dense, {NOISE:.0%} noise after layer {NOISY_LAYER}"
    lab.measure("bounds", noisy, lambda: by_texture(lab, with_noise(lab.source(224))))


def with_noise(model: Any) -> Any:
    """The model, with Gaussian noise on its tokens after a layer."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def add_noise(module: Any, inputs: Any, tokens: Any) -> Any:
        noise = torch.randn(tokens.shape, generator=generator)
        return tokens + NOISE * tokens.norm(dim=-1, keepdim=True) * noise / tokens.shape[-1] ** 0.5

    model.blocks[NOISY_LAYER - 1].register_forward_hook(add_noise)
    return model


def by_texture(lab: RealLab, model: Any) -> dict[str, Any]:
    """Mean cosine of final tokens to the dense model's, of crops that are all texture and of the others."""
    cosines = lab.cosines(model, 95)
    photos = lab.photos("held_out", model, 95).samples
    names = [Path(photos.dataset.reader.filename(index)).stem for index in photos.indices]
    texture = [name.startswith(TEXTURES) for name in names]
    found: dict[str, Any] = {"textures": sum(texture), "others": len(texture) - sum(texture)}
    for group, wanted in (("texture", True), ("other", False)):
        rows = cosines[[index for index, is_texture in enumerate(texture) if is_texture == wanted]]
        found[f"{group}_patch"], found[f"{group}_class"] = rows[:, 1:].mean().item(), rows[:, 0].mean().item()
    return found
