"""Token merging as a peer to measure against, written from the paper (ToMe, arXiv 2210.09461).

Tokens are split into two alternating sets; those of the first set that are most similar to a token of the second
are averaged into it. Prefix tokens take no part. The functions are pure; `MergedViT` runs a timm ViT with them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone, mean_key_projection
from tosa_cli.model.keys import MatchingKeys
from tosa_cli.model.selection import gather_tokens
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.peers.block_halves import check_blocks, run_attention, run_mlp

MergeMode = Literal["merge", "merge-unmerge"]


class Matching(NamedTuple):
    """Which tokens are merged into which; r tokens go, K = N - r stay.

    As in the paper the sets are put one behind the other: prefix tokens, what is left of the first set, the second
    set. So the next layer splits them in another way, which is better than keeping them in the order of the image.

    Attributes:
        stay: Indices of the tokens that stay, (B, K), in their new order.
        go: Indices of the tokens that are merged, (B, r).
        position: Where each of the N tokens is found among the K that stay, (B, N).
    """

    stay: Tensor
    go: Tensor
    position: Tensor


def num_mergeable(num_tokens: int, num_prefix_tokens: int) -> int:
    """How many tokens one matching can merge at most: half of the patch tokens (ToMe 3.1)."""
    return (num_tokens - num_prefix_tokens) // 2


@torch.no_grad()
def match_tokens(metric: Tensor, num_merged: int, num_prefix_tokens: int) -> Matching:
    """Bipartite soft matching (ToMe 3.1): the r closest pairs between the two alternating sets of patch tokens.

    Args:
        metric: What tokens are compared by, with the cosine, (B, N, d).
        num_merged: Number of tokens r to merge; from 1 to half of the patch tokens.
        num_prefix_tokens: Number of class, distillation and register tokens, which come first and always stay.

    Returns:
        The matching.
    """
    batch, length, _ = metric.shape
    patches = F.normalize(metric[:, num_prefix_tokens:], dim=-1)
    similarity, partner = (patches[:, ::2] @ patches[:, 1::2].transpose(1, 2)).max(dim=-1)
    order = similarity.argsort(dim=-1, descending=True)
    closest, others = order[:, :num_merged], order[:, num_merged:]
    everyone = torch.arange(length, device=metric.device).expand(batch, -1)
    prefix, second = everyone[:, :num_prefix_tokens], everyone[:, num_prefix_tokens + 1 :: 2]
    stay = torch.cat([prefix, 2 * others + num_prefix_tokens, second], dim=1)
    go = 2 * closest + num_prefix_tokens
    into = partner.gather(1, closest) + num_prefix_tokens + others.shape[1]
    position = torch.zeros_like(everyone).scatter(1, stay, everyone[:, : stay.shape[1]]).scatter(1, go, into)
    return Matching(stay, go, position)


def merge_tokens(tokens: Tensor, sizes: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Average merged tokens, weighted by size (ToMe 3.1).

    Args:
        tokens: Tokens (B, N, D).
        sizes: How many original tokens each stands for, (B, N), float32; None is one each.
        matching: Which tokens are merged into which.

    Returns:
        Tokens (B, K, D), and their sizes (B, K).
    """
    stay, go, position = matching
    if sizes is None:
        sizes = torch.ones(tokens.shape[:2], device=tokens.device)
    into = position.gather(1, go)
    gone = sizes.gather(1, go)
    total = sizes.gather(1, stay).scatter_add(1, into, gone)
    share = (sizes / total.gather(1, position)).to(tokens.dtype).unsqueeze(-1)
    kept = gather_tokens(tokens, stay) * gather_tokens(share, stay)
    added = gather_tokens(tokens, go) * gather_tokens(share, go)
    # Whole rows into (B * K, D): many times faster than scattering element by element.
    rows = into + torch.arange(len(tokens), device=tokens.device)[:, None] * kept.shape[1]
    return kept.flatten(0, 1).index_add(0, rows.flatten(), added.flatten(0, 1)).view_as(kept), total


def unmerge_tokens(merged: Tensor, position: Tensor) -> Tensor:
    """Copy merged tokens (B, K, D) back to all places they stand for, `position` (B, N): tokens (B, N, D)."""
    return gather_tokens(merged, position)


def size_bias(sizes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What proportional attention adds to the logits (ToMe 3.2): log sizes (B, 1, 1, K) of sizes (B, K)."""
    return None if sizes is None else sizes.log().to(dtype)[:, None, None, :]


def run_block_and_merge(
    block: Any, tokens: Tensor, sizes: Tensor | None, num_merged: int, num_prefix_tokens: int
) -> tuple[Tensor, Tensor, Matching]:
    """Run a timm `Block` that merges tokens between attention and MLP, by the attention's own keys (ToMe 3.1).

    Args:
        block: The block.
        tokens: Tokens (B, N, D).
        sizes: How many original tokens each stands for, (B, N); None is one each.
        num_merged: Number of tokens r to merge, at least 1.
        num_prefix_tokens: Number of tokens at the start that always stay.

    Returns:
        Tokens (B, N - r, D), their sizes (B, N - r), and the matching.

    Raises:
        UnsupportedModelError: If the block does not use PyTorch's fused attention function.
    """
    tokens, _, keys = run_attention(block, tokens, size_bias(sizes, tokens.dtype))
    matching = match_tokens(keys.mean(dim=1), num_merged, num_prefix_tokens)
    tokens, sizes = merge_tokens(tokens, sizes, matching)
    return run_mlp(block, tokens), sizes, matching


def run_block_on_merged(block: Any, tokens: Tensor, keys: nn.Module, num_merged: int, num_prefix_tokens: int) -> Tensor:
    """Run a timm `Block` on merged tokens, and copy each back to all the places that it stands for.

    Args:
        block: The block.
        tokens: Tokens (B, N, D).
        keys: Gives what tokens are compared by, (B, N, head_dim), of normalised tokens (B, N, D).
        num_merged: Number of tokens r to merge, at least 1.
        num_prefix_tokens: Number of tokens at the start that always stay.

    Returns:
        Tokens (B, N, D) in their old order.
    """
    matching = match_tokens(keys(block.norm1(tokens)), num_merged, num_prefix_tokens)
    merged, sizes = merge_tokens(tokens, None, matching)
    return unmerge_tokens(block(merged, attn_mask=size_bias(sizes, tokens.dtype)), matching.position)


class MergedViT(FinetunableViT):
    """A timm ViT that merges tokens, with the backbone's own weights and untouched parts.

    Two modes. `merge` is ToMe: tokens are merged between attention and MLP of each layer and stay merged, so fewer
    and fewer go through the layers; behind the last each is copied back to all the places that it stands for.
    `merge-unmerge` works in the way of tomesd and ALGM: each layer merges before its attention, runs as a whole on the
    merged tokens, and unmerges at once, so that all N tokens are there after every layer; copies then are equal, and
    the next layer matches afresh. (tomesd copies a layer's update onto each token's own stream
    instead; on DINOv2 ViT-S/14 that was the worse of the two.) The attention's keys are not known before it runs, so
    a projection of its own gives them averaged over the heads, without the query-key norm that some models have; it
    stays as it is when the model is finetuned. Matching has no gradient.

    Args:
        backbone: A timm ViT with blocks of type `Block`; it is shared, and changed by training only.
        mode: `merge` or `merge-unmerge`.
        num_merged: Number of tokens to merge in each layer.

    Raises:
        UnsupportedModelError: If the blocks are of another type.
        ConfigError: If there is not one number a layer, or a layer does not have as many tokens to merge.
    """

    added: ClassVar[tuple[str, ...]] = ("bypasses", "keys")

    def __init__(self, backbone: Backbone, mode: MergeMode, num_merged: Sequence[int]) -> None:
        check_mergeable(backbone)
        super().__init__(backbone)
        self.mode: MergeMode = mode
        self.num_merged = tuple(num_merged)
        self._check_schedule()
        self.bypasses = nn.ModuleDict()
        self.keys = nn.ModuleList(
            MatchingKeys(*mean_key_projection(block)) for block in backbone.blocks if mode == "merge-unmerge"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head.

        Merged tokens are unmerged for a head that pools them all, so that each counts as often as its size says.
        """
        tokens, position = self.run_layers(self.embed(images)[0])
        if self.global_pool != "token" and position is not None:
            tokens = unmerge_tokens(tokens, position)
        return self.forward_head(self.norm(tokens))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their order."""
        tokens, position = self.run_layers(self.embed(images)[0])
        tokens = self.norm(tokens)
        return tokens if position is None else unmerge_tokens(tokens, position)

    def run_layers(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the layers on embedded tokens (B, N, D).

        Returns:
            The last layer's tokens, (B, N, D) or (B, K, D), and where each of the N tokens is found among the K
            merged ones, (B, N); None where nothing stays merged.
        """
        prefix: int = self.num_prefix_tokens
        sizes: Tensor | None = None
        position: Tensor | None = None
        for i, (block, merged) in enumerate(zip(self.blocks, self.num_merged, strict=True)):
            reduced: dict[str, Any] = {"num_merged": merged, "num_prefix_tokens": prefix}
            if not merged:
                tokens = self.run(partial(block, attn_mask=size_bias(sizes, tokens.dtype)), tokens)
            elif self.mode == "merge-unmerge":
                tokens = self.run(partial(run_block_on_merged, block, keys=self.keys[i], **reduced), tokens)
            else:
                layer = partial(run_block_and_merge, block, sizes=sizes, **reduced)
                tokens, sizes, matching = self.run(layer, tokens)
                position = matching.position if position is None else matching.position.gather(1, position)
        return tokens, position

    @property
    def settings(self) -> dict[str, Any]:
        """Mode and number of merged tokens of each layer."""
        return {"mode": self.mode, "num_merged": list(self.num_merged)}

    def _check_schedule(self) -> None:
        depth, prefix = len(self.blocks), self.num_prefix_tokens
        if len(self.num_merged) != depth:
            raise ConfigError(
                f"{len(self.num_merged)} numbers of merged tokens were given for {depth} layers: give one a layer."
            )
        tokens = int(self.patch_embed.num_patches) + prefix
        for layer, merged in enumerate(self.num_merged, start=1):
            most = num_mergeable(tokens, prefix)
            if not 0 <= merged <= most:
                raise ConfigError(f"Layer {layer} cannot merge {merged} of its {tokens} tokens, but 0 to {most}.")
            tokens -= merged if self.mode == "merge" else 0


def check_mergeable(backbone: Backbone) -> None:
    """Check that token merging knows how a model's blocks are put together.

    Raises:
        UnsupportedModelError: Naming the type that is not supported.
    """
    check_blocks(backbone, "merged", "token merging")
