"""What a ToSA model did with one image: which patches each layer computed, by which scores, and what came out."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.errors import ConfigError
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import has_class_token
from tosa_cli.model.runs import Run
from tosa_cli.model.selectors import Entry
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class SelectionMap:
    """What one ToSA layer selected in one image.

    Attributes:
        layer: The layer.
        keep_rate: Its keep rate, prefix tokens included.
        kept: Share of the heads that selected each patch, (rows, columns): 0 or 1 for shared selection.
        scores: Score of each patch, (rows, columns), the higher the sooner selected; NaN where a patch has none. None
            if the selector has no scores.
    """

    layer: int
    keep_rate: float
    kept: Tensor
    scores: Tensor | None

    @property
    def kept_share(self) -> float:
        """Share of the patches that were computed."""
        return self.kept.mean().item()


@dataclass(frozen=True)
class TokenMaps:
    """Final tokens of a dense and of a converted model for one image.

    Attributes:
        dense: First three principal components of the dense model's patch tokens, (rows, columns, 3), in 0..1.
        converted: The same of the converted model's tokens, on the same axes and scale.
        cosine: Cosine of each converted patch token to its dense one, (rows, columns).
        patch_cosine: Its mean.
        class_cosine: Cosine of the class token; None without one.
    """

    dense: Tensor
    converted: Tensor
    cosine: Tensor
    patch_cosine: float
    class_cosine: float | None


@torch.no_grad()
def read_selection(model: TosaViT, images: Tensor, layers: Iterable[int] | None = None) -> list[SelectionMap]:
    """Read which patches of an image the ToSA layers select.

    Args:
        model: The model, in evaluation mode.
        images: One normalised image (1, C, height, width).
        layers: ToSA layers to read; None reads all.

    Raises:
        ConfigError: If one of them is not a ToSA layer.
    """
    wanted = set(model.keep_rates if layers is None else layers)
    check_layers(model, wanted)
    if not wanted:
        return []
    stream = Stream(*model.embed(images))
    grid, length = stream.places.grid, stream.tokens.shape[1]
    shown: Tensor | None = None

    def choose(layer: int, stream: Stream, entry: Entry) -> Choice:
        nonlocal shown
        scores = model.selector(layer).shown(entry)
        shown = None if scores is None else scores.unflatten(0, grid).float().cpu()
        return model.choose(layer, stream, entry)

    maps = []
    for layer in model.layers(stream, max(wanted), choose):
        if layer in wanted and stream.choice is not None:
            kept = kept_map(stream.choice.keep_indices, length, model.num_prefix_tokens).unflatten(0, grid).cpu()
            maps.append(SelectionMap(layer, model.keep_rates[layer], kept, shown))
    return maps


@torch.no_grad()
def compare_tokens(model: TosaViT, dense: nn.Module, images: Tensor) -> TokenMaps:
    """Set the final tokens of a converted model beside the dense model's.

    The colors are the first three principal components of the patch tokens of both models together, so that equal
    colors mean equal features; percentiles 1 and 99 of each component are its darkest and brightest value.

    Args:
        model: The converted model, in evaluation mode.
        dense: Its source, in evaluation mode.
        images: One normalised image (1, C, height, width).
    """
    grid, prefix = model.grid(images), model.num_prefix_tokens
    expected, tokens = (each.forward_features(images)[0].float() for each in (dense, model))  # type: ignore[operator]
    cosine = F.cosine_similarity(expected, tokens, dim=-1)
    colors = _principal_colors(torch.cat([expected[prefix:], tokens[prefix:]])).unflatten(0, (2, *grid)).cpu()
    return TokenMaps(
        dense=colors[0],
        converted=colors[1],
        cosine=cosine[prefix:].unflatten(0, grid).cpu(),
        patch_cosine=cosine[prefix:].mean().item(),
        class_cosine=cosine[0].item() if has_class_token(model.backbone) else None,
    )


def check_layers(model: TosaViT | Run, layers: Iterable[int]) -> None:
    """Check that these are ToSA layers of a model.

    Raises:
        ConfigError: Naming the first that is not.
    """
    for layer in sorted(layers):
        if layer not in model.keep_rates:
            known = ",".join(map(str, model.keep_rates))
            raise ConfigError(f"Layer {layer} is not a ToSA layer of this model: choose among {known}.")


def kept_map(keep_indices: Tensor, length: int, prefix: int) -> Tensor:
    """Share of the heads that selected each patch, (N - prefix), by indices (1, K) or (1, H, K)."""
    sets = keep_indices.reshape(-1, keep_indices.shape[-1])
    kept = torch.zeros(len(sets), length, device=sets.device).scatter_(1, sets, 1.0)
    return kept[:, prefix:].mean(0)


def _principal_colors(tokens: Tensor) -> Tensor:
    """First three principal components of tokens (n, D) as colors (n, 3) in 0..1."""
    centered = tokens - tokens.mean(0)
    axes = torch.linalg.svd(centered, full_matrices=False).Vh[:3]
    # An axis may point either way: the way that makes its largest entry positive is the same every time.
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    values = F.pad(centered @ (axes * largest.sign()).T, (0, 3 - len(axes)))
    low, high = values.quantile(0.01, 0), values.quantile(0.99, 0)
    return ((values - low) / (high - low).clamp_min(1e-8)).clamp(0, 1)
