"""What bounds the clock: the dense layers on as many tokens as a ToSA model computes, with nothing chosen or merged."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tosa_cli.model.selection import num_kept


class CutTokens(nn.Module):
    """A dense timm ViT whose layers compute the first so many tokens, which are repeated at the end to be all.

    It answers nothing: what it takes is what choosing tokens and putting them back cannot go below.

    Args:
        dense: The model, which is shared.
        keep_rates: Keep rate of each layer that computes fewer tokens, by its number; none rises with the depth.
    """

    def __init__(self, dense: nn.Module, keep_rates: Mapping[int, float]) -> None:  # noqa: D107
        super().__init__()
        self.dense = dense
        self.keep_rates = dict(keep_rates)

    def forward(self, images: Tensor) -> Tensor:
        """What the dense model's head makes of the repeated tokens of images (B, C, height, width)."""
        return self.dense.forward_head(self.forward_features(images))  # type: ignore[operator, no-any-return]

    def forward_features(self, images: Tensor) -> Tensor:
        """The repeated tokens (B, N, D) of images (B, C, height, width), normalised."""
        dense = self.dense
        tokens = dense.norm_pre(dense.patch_drop(dense._pos_embed(dense.patch_embed(images))))  # type: ignore[operator]
        length = tokens.shape[1]
        for layer, block in enumerate(dense.blocks, start=1):  # type: ignore[arg-type, var-annotated]
            count = num_kept(length, self.keep_rates.get(layer, 1.0), dense.num_prefix_tokens)  # type: ignore[arg-type]
            tokens = block(tokens[:, :count])
        tokens = tokens.index_select(1, torch.arange(length, device=tokens.device) % tokens.shape[1])
        return dense.norm(tokens)  # type: ignore[operator, no-any-return]
