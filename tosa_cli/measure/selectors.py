"""How well selectors predict: KL divergence, and the share of the true top-K that they find."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.methods import SELECTORS
from tosa_cli.model.selection import choose_tokens, column_sum, num_kept, take_query_rows
from tosa_cli.model.selectors.attention import attention_kl
from tosa_cli.model.tosa_layers import TosaLayers
from tosa_cli.model.tosa_vit import TosaViT

ALIKE = 1e-6
"""Scores that differ by less, as a share of the largest, differ by rounding alone."""


@dataclass(frozen=True)
class SelectorQuality:
    """One selector on held-out images.

    Attributes:
        layer: The ToSA layer.
        kl: KL divergence of the true maps from the predicted ones, summed over heads (paper Eq. 5), in nats.
        kl_previous: The same with the feeding layer's own map as the prediction.
        found: Share of the true top-K patch tokens that the selector selects; true is the column sum of the dense
            model's map of this layer over all query rows, the heads summed. With per-head selection each head's
            selection is held against the top-K of its own map, and this is the mean over the heads.
        found_previous: The same for the feeding layer's own map.
        found_random: The same for a random choice, by arithmetic.
        is_level: Whether it gives all patch tokens of each image one score, and so ranks none.
    """

    layer: int
    kl: float
    kl_previous: float
    found: float
    found_previous: float
    found_random: float
    is_level: bool = False


@dataclass(frozen=True)
class SelectorReport:
    """All selectors of a model on held-out images."""

    samples: int
    layers: list[SelectorQuality]

    @property
    def is_finite(self) -> bool:
        """Whether all that they predict are finite numbers."""
        return all(math.isfinite(layer.kl) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@torch.no_grad()
def measure_selectors(model: TosaViT, batches: Iterable[Tensor], device: torch.device | str = "cpu") -> SelectorReport:
    """Compare what the selectors predict with the maps of the dense model.

    Args:
        model: A ToSA model whose selectors read maps.
        batches: Images (B, C, height, width), one batch at least.
        device: Where to compute.
    """
    model.to(device).eval()
    logits = (model.dense_logits(images.to(device), model.map_layers, query_rows="all") for images in batches)
    return compare_maps(model, logits)


@torch.no_grad()
def compare_maps(model: TosaLayers, batches: Iterable[Mapping[int, Tensor]]) -> SelectorReport:
    """Compare what selectors predict from maps with the maps of the layers that they are for.

    Args:
        model: The layers, whose selectors read maps.
        batches: Scaled logits (B, H, N, N) of its `map_layers`, of one batch at least. All query rows of the true map
            are needed to rank the tokens; a selector reads its own few of them.
    """
    layers = list(model.keep_rates)
    samples = 0
    sums = {layer: torch.zeros(5, dtype=torch.float64) for layer in layers}
    shares: dict[int, float] = {}
    for logits in batches:
        count = len(logits[layers[0]])
        for layer in layers:
            values, shares[layer] = _compare(model, layer, logits[layer - 1], logits[layer])
            sums[layer] += values.cpu().double() * count
        samples += count
    qualities = []
    for layer in layers:
        kl, kl_previous, found, found_previous, ranked = (sums[layer] / samples).tolist()
        qualities.append(SelectorQuality(layer, kl, kl_previous, found, found_previous, shares[layer], not ranked))
    return SelectorReport(samples, qualities)


def describe_undone(before: float, after: float, level: Sequence[int], measured_on: str, remedy: str) -> str:
    """That selectors are of no use once they are trained, and what to do, in sentences; empty if they are of use.

    A learning rate that is far too large may leave a selector whose hidden units are all 0: the map that it predicts is
    flat, which may be nearer to the true ones than what it predicted before, and ranks no token.

    Args:
        before: KL divergence to the true maps before the training, of all layers together.
        after: The same after it.
        level: Layers whose selectors rank no token.
        measured_on: On what that was measured, in words.
        remedy: What to do, as a sentence.
    """
    told = []
    if not after <= before:
        told.append(
            f"The selectors are worse than before they were trained: on {measured_on} their KL divergence to the true "
            f"maps was {before:.4g} in all layers together, and is {after:.4g}."
        )
    if level:
        layers = f"layer{'s' if len(level) > 1 else ''} {' and '.join(map(str, level))}"
        told.append(
            f"In {layers} the trained selector tells no token from another: on {measured_on} all tokens of an image "
            f"have the same score."
        )
    return " ".join([*told, remedy]) if told else ""


def _compare(model: TosaLayers, layer: int, feeding: Tensor, true: Tensor) -> tuple[Tensor, float]:
    """KL of selector and previous map, share of the true top-K that each finds, and share of images whose tokens the
    selector ranks, as a tensor of 5; chance."""
    prefix, length = model.num_prefix_tokens, true.shape[-1]
    kept = num_kept(length, model.keep_rates[layer], prefix)
    rows = model.config.query_rows
    feeding_rows, true_rows = take_query_rows(feeding, rows), take_query_rows(true, rows)
    previous = F.log_softmax(feeding_rows.float(), dim=-1)
    selector = model.selector(layer)
    predicted = selector(feeding_rows) if SELECTORS[model.config.selector].is_trained else previous
    per_head = model.config.selection == "per-head"

    def importance(maps: Tensor) -> Tensor:
        found = column_sum(maps)
        return found if per_head else found.sum(dim=1)

    def chosen(maps: Tensor) -> Tensor:
        return _mask(importance(maps), kept, prefix)

    wanted = chosen(true.softmax(dim=-1, dtype=torch.float32))
    values = [attention_kl(predicted, true_rows), attention_kl(previous, true_rows)]
    for log_maps in (predicted, previous):
        values.append((chosen(log_maps.exp()) & wanted).sum() / wanted.sum())
    patches = importance(predicted.exp())[..., prefix:]
    ranked = patches.amax(-1) - patches.amin(-1) > ALIKE * patches.amax(-1)
    values.append(ranked.view(len(ranked), -1).any(1).float().mean())
    return torch.stack(values), (kept - prefix) / (length - prefix)


def _mask(importance: Tensor, kept: int, prefix: int) -> Tensor:
    """Which patch tokens importance (..., N) chooses: a mask (..., N - prefix)."""
    indices = choose_tokens(importance, kept, prefix)
    return torch.zeros_like(importance, dtype=torch.bool).scatter_(-1, indices, True)[..., prefix:]
