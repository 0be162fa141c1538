"""Copying what neighbours change by as a peer to measure against, from the paper (IPCV, arXiv 2512.18747).

Behind one layer the patches that it changed least are taken out. A token that is out is taken to change as its nearest
kept tokens do on average: so it is attended to in the next few layers, and so it is put back at the end. The functions
are pure; `CopiedViT` runs a timm ViT with them.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tosa_cli.errors import ConfigError
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import Backbone
from tosa_cli.model.matching import mean_of_partners, nearest_of, other_indices
from tosa_cli.model.selection import choose_tokens, gather_tokens, merge_tokens
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.peers.block_halves import check_blocks, run_attention, run_mlp
from tosa_cli.peers.pruning import check_keep_rate, num_attentive

NEIGHBORS = 10
"""How many kept tokens a token copies, in the scripts that the paper comes with."""

ATTENDED = 3
"""In how many layers tokens that are out are attended to, in the same scripts."""


def paper_layer(depth: int) -> int:
    """The layer of so many behind which tokens are taken out: the 7th of 24 in the paper's scripts."""
    return max(1, round(depth * 7 / 24))


def num_changed(num_tokens: int, keep_rate: float, num_prefix_tokens: int) -> int:
    """How many tokens stay: the prefix tokens and a share of the patches, rounded up."""
    return num_prefix_tokens + num_attentive(num_tokens - num_prefix_tokens, keep_rate)


@torch.no_grad()
def choose_by_change(before: Tensor, after: Tensor, num_kept: int, num_prefix_tokens: int) -> Choice:
    """Keep the patches that a layer changed most, and find the neighbours of the others.

    Args:
        before: Tokens that entered the layer, (B, N, D).
        after: Tokens behind it, (B, N, D).
        num_kept: Number of tokens K to keep, the prefix tokens among them.
        num_prefix_tokens: Number of prefix tokens, which come first and are kept.

    Returns:
        The choice, with the nearest kept tokens by the distance of whole tokens; all count alike.
    """
    change = torch.linalg.vector_norm(after - before, dim=-1, dtype=torch.float32)
    keep_indices = choose_tokens(change, num_kept, num_prefix_tokens)
    skip_indices = other_indices(keep_indices, after.shape[1])
    kept, skipped = gather_tokens(after, keep_indices), gather_tokens(after, skip_indices)
    partners = nearest_of(skipped, kept, min(NEIGHBORS, num_kept)).indices
    weights = torch.full(partners.shape, 1 / partners.shape[-1], device=after.device)
    return Choice(keep_indices, skip_indices, partners, weights)


def put_back(entered: Tensor, kept: Tensor, choice: Choice) -> Tensor:
    """All tokens (B, N, D): the kept ones (B, K, D), and the others changed by the mean change of their neighbours.

    Args:
        entered: All tokens when the choice was made, (B, N, D).
        kept: The kept ones now, (B, K, D).
        choice: The choice.
    """
    assert choice.skip_indices is not None and choice.partners is not None and choice.weights is not None
    change = kept - gather_tokens(entered, choice.keep_indices)
    others = gather_tokens(entered, choice.skip_indices) + mean_of_partners(change, choice.partners, choice.weights)
    return merge_tokens(choice.keep_indices, kept, choice.skip_indices, others)


class CopiedViT(FinetunableViT):
    """A timm ViT that takes patches out behind one layer, and copies what their neighbours change by.

    The choice has no gradient.

    Args:
        backbone: A timm ViT with blocks of type `Block`; it is shared, and changed by training only.
        keep_rate: Share of the patch tokens that is kept.
        layer: The layer behind which they are taken out, numbered from 1.

    Raises:
        UnsupportedModelError: If the blocks are of another type.
        ConfigError: If the keep rate is not above 0 and at most 1, or the model has no layer behind this one.
    """

    added: ClassVar[tuple[str, ...]] = ("bypasses",)

    def __init__(self, backbone: Backbone, keep_rate: float, layer: int) -> None:
        check_copying(backbone, keep_rate, layer)
        super().__init__(backbone)
        self.keep_rate = keep_rate
        self.layer = layer
        self.bypasses = nn.ModuleDict()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their order."""
        return self.norm(self.run_layers(self.embed(images)[0]))

    def run_layers(self, tokens: Tensor) -> Tensor:
        """Run the layers on embedded tokens (B, N, D): tokens (B, N, D) behind the last."""
        for block in self.blocks[: self.layer]:
            before, tokens = tokens, self.run(block, tokens)
        num_kept = num_changed(tokens.shape[1], self.keep_rate, self.num_prefix_tokens)
        if num_kept == tokens.shape[1]:
            for block in self.blocks[self.layer :]:
                tokens = self.run(block, tokens)
            return tokens
        choice = choose_by_change(before, tokens, num_kept, self.num_prefix_tokens)
        kept = gather_tokens(tokens, choice.keep_indices)

        def attend(block: Any, kept: Tensor) -> Tensor:
            attended = run_attention(block, put_back(tokens, kept, choice)).tokens
            return run_mlp(block, gather_tokens(attended, choice.keep_indices))

        for number, block in enumerate(self.blocks[self.layer :]):
            run: Any = (lambda kept, block=block: attend(block, kept)) if number < ATTENDED else block
            kept = self.run(run, kept)
        return put_back(tokens, kept, choice)

    @property
    def settings(self) -> dict[str, Any]:
        """Keep rate and layer."""
        return {"keep_rate": self.keep_rate, "layer": self.layer}


def check_copying(backbone: Backbone, keep_rate: float, layer: int) -> None:
    """Check that a model's blocks are of a kind that is known, and a keep rate and a layer.

    Raises:
        UnsupportedModelError: Naming the type of block that is not supported.
        ConfigError: Saying what was given and what is possible.
    """
    check_blocks(backbone, "taken out", "copying of neighbours")
    check_keep_rate(keep_rate)
    if not 1 <= layer < len(backbone.blocks):
        raise ConfigError(
            f"Tokens cannot be taken out behind layer {layer} of {len(backbone.blocks)}, but behind 1 to "
            f"{len(backbone.blocks) - 1}."
        )
