"""Pruning by the class token's attention as a peer to measure against, from the paper (EViT, arXiv 2202.07800).

In a few layers the patches that the class token attends to most go on from the attention to the MLP; the inattentive
ones are fused into one token. The functions are pure; `PrunedViT` runs a timm ViT with them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.families import Backbone, has_class_token
from tosa_cli.model.selection import choose_tokens, gather_tokens
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.peers.block_halves import check_blocks, run_attention, run_mlp


def paper_layers(depth: int) -> tuple[int, ...]:
    """The layers that prune in a model of so many: after each quarter, as 4, 7 and 10 of 12 (EViT 4)."""
    return tuple(sorted({depth * quarter // 4 + 1 for quarter in (1, 2, 3)}))


def num_attentive(num_patches: int, keep_rate: float) -> int:
    """How many patch tokens stay as they are: K = ceil(keep_rate * patches)."""
    # Rounded first, as 0.07 * 100 is a little more than 7.
    return min(num_patches, math.ceil(round(keep_rate * num_patches, 6)) or 1)


def num_left(num_tokens: int, keep_rate: float, num_prefix_tokens: int) -> int:
    """How many tokens leave a layer that prunes: prefix and attentive tokens and one fused, or all of them."""
    patches = num_tokens - num_prefix_tokens
    attentive = num_attentive(patches, keep_rate)
    return num_tokens if attentive == patches else num_prefix_tokens + attentive + 1


def class_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention that the class token pays, mean over the heads (EViT 3.2); only its row of the maps is computed.

    Args:
        queries: Queries (B, H, N, head_dim), that of the class token first.
        keys: Keys (B, H, N, head_dim).

    Returns:
        Attention to each token, (B, N), in float32; it sums to 1.
    """
    logits = (queries[:, :, :1] * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    return logits.softmax(dim=-1, dtype=torch.float32).mean(dim=1).squeeze(1)


def prune_tokens(tokens: Tensor, attention: Tensor, attentive: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Keep the attentive patch tokens and fuse the others into one, their sum weighted by attention (EViT 3.2).

    Args:
        tokens: Tokens (B, N, D).
        attention: The class token's attention to each, (B, N), in float32.
        attentive: Number of patch tokens K that stay, less than there are.
        num_prefix_tokens: Number of class, distillation and register tokens, which come first and always stay.

    Returns:
        Tokens (B, P + K + 1, D): prefix tokens, attentive tokens in their order, the fused token; and where each of
        the N tokens is found among them, (B, N).
    """
    keep_indices = choose_tokens(attention.detach(), num_prefix_tokens + attentive, num_prefix_tokens)
    weights = attention.scatter(1, keep_indices, 0.0)
    # A product over all tokens costs less than taking the inattentive ones out.
    fused = weights.to(tokens.dtype).unsqueeze(1) @ tokens
    kept = keep_indices.shape[1]
    order = torch.arange(kept, device=tokens.device).expand_as(keep_indices)
    position = torch.full_like(attention, kept, dtype=torch.long).scatter(1, keep_indices, order)
    return torch.cat([gather_tokens(tokens, keep_indices), fused.to(tokens.dtype)], dim=1), position


def run_block_and_prune(block: Any, tokens: Tensor, attentive: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Run a timm `Block` that prunes tokens between attention and MLP (EViT 3.2).

    Args:
        block: The block.
        tokens: Tokens (B, N, D), the class token first.
        attentive: Number of patch tokens K that stay, less than there are.
        num_prefix_tokens: Number of tokens P at the start that always stay.

    Returns:
        Tokens (B, P + K + 1, D), and where each of the N tokens is found among them, (B, N).

    Raises:
        UnsupportedModelError: If the block does not use PyTorch's fused attention function.
    """
    attended = run_attention(block, tokens)
    attention = class_attention(attended.queries, attended.keys)
    pruned, position = prune_tokens(attended.tokens, attention, attentive, num_prefix_tokens)
    return run_mlp(block, pruned), position


class PrunedViT(FinetunableViT):
    """A timm ViT that prunes patches by the class token's attention, with the backbone's own weights.

    The number of tokens falls in each layer that prunes. A fused token goes on as one more patch token, and a later
    layer may keep it or fuse it again; behind the last layer it stands in every place that it was fused from. Selection
    has no gradient; the weights that tokens are fused with have one. A head that pools patches pools those that are
    left.

    Args:
        backbone: A timm ViT with blocks of type `Block` and a class token; it is shared, and changed by training only.
        keep_rate: Share of the patch tokens that each of the layers keeps.
        layers: The layers that prune, numbered from 1.

    Raises:
        UnsupportedModelError: If the blocks are of another type, or there is no class token.
        ConfigError: If the keep rate is not above 0 and at most 1, or the model does not have the layers.
    """

    added: ClassVar[tuple[str, ...]] = ("bypasses",)

    def __init__(self, backbone: Backbone, keep_rate: float, layers: Sequence[int]) -> None:
        check_prunable(backbone)
        check_pruning(keep_rate, layers, len(backbone.blocks))
        super().__init__(backbone)
        self.keep_rate = keep_rate
        self.layers = tuple(sorted(layers))
        self.bypasses = nn.ModuleDict()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.forward_head(self.norm(self.run_layers(self.embed(images)[0])[0]))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their order."""
        tokens, position = self.run_layers(self.embed(images)[0])
        tokens = self.norm(tokens)
        return tokens if position is None else gather_tokens(tokens, position)

    def run_layers(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the layers on embedded tokens (B, N, D).

        Returns:
            The tokens that are left behind the last layer, (B, K, D), prefix tokens first, and where each of the N
            tokens is found among them, (B, N); None where none was pruned.
        """
        prefix = self.num_prefix_tokens
        position: Tensor | None = None
        for layer, block in enumerate(self.blocks, start=1):
            patches = tokens.shape[1] - prefix
            attentive = num_attentive(patches, self.keep_rate) if layer in self.layers else patches
            if attentive == patches:
                tokens = self.run(block, tokens)
            else:
                prune = partial(run_block_and_prune, block, attentive=attentive, num_prefix_tokens=prefix)
                tokens, found = self.run(prune, tokens)
                position = found if position is None else found.gather(1, position)
        return tokens, position

    @property
    def settings(self) -> dict[str, Any]:
        """Keep rate and layers."""
        return {"keep_rate": self.keep_rate, "layers": list(self.layers)}


def check_prunable(backbone: Backbone) -> None:
    """Check that a model has a class token, and blocks of a kind that is known.

    Raises:
        UnsupportedModelError: Saying what it has instead.
    """
    check_blocks(backbone, "pruned", "pruning by the class token's attention")
    if not has_class_token(backbone):
        raise UnsupportedModelError(
            "The model has no class token, by whose attention tokens are pruned: use token merging, which needs none."
        )


def check_keep_rate(keep_rate: float) -> None:
    """Check the share of the patches that a layer keeps.

    Raises:
        ConfigError: If it is not above 0 and at most 1.
    """
    if not 0 < keep_rate <= 1:
        raise ConfigError(f"The keep rate is {keep_rate}, but must be above 0 and at most 1, as 0.7.")


def check_pruning(keep_rate: float, layers: Sequence[int], depth: int) -> None:
    """Check a keep rate, and layers against the number that a model has.

    Raises:
        ConfigError: Saying what was given and what is possible.
    """
    check_keep_rate(keep_rate)
    listed = ",".join(map(str, layers))
    if not layers or len(set(layers)) < len(layers) or not all(1 <= layer <= depth for layer in layers):
        raise ConfigError(f"The layers to prune in are {listed or 'none'}, but must be different ones of 1 to {depth}.")
