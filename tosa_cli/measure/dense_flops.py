"""Multiply-accumulates of a dense model: encoder and decoder."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tosa_cli.measure.flops import GIGA, count_flops
from tosa_cli.model.backbone import has_class_token
from tosa_cli.model.decoders import DenseFeatures
from tosa_cli.model.dense import DensePredictor


@dataclass(frozen=True)
class DenseFlops:
    """MACs of one image, in GMACs.

    Attributes:
        img_size: Image size (height, width) in pixels, in whole patches.
        encoder_gmacs: MACs of the encoder, selectors and bypasses included.
        dense_encoder_gmacs: MACs of the encoder with every token computed.
        decoder_gmacs: MACs of the decoder.
    """

    img_size: tuple[int, int]
    encoder_gmacs: float
    dense_encoder_gmacs: float
    decoder_gmacs: float

    @property
    def figures(self) -> dict[str, float]:
        """All figures by name: sums and shares saved as well."""
        total, dense = self.encoder_gmacs + self.decoder_gmacs, self.dense_encoder_gmacs + self.decoder_gmacs
        own = {key: value for key, value in dataclasses.asdict(self).items() if key != "img_size"}
        return {
            **own,
            "gmacs": total,
            "dense_gmacs": dense,
            "encoder_reduction": 1 - self.encoder_gmacs / self.dense_encoder_gmacs,
            "reduction": 1 - total / dense,
        }


def count_dense_flops(model: DensePredictor, img_size: tuple[int, int] | None = None) -> DenseFlops:
    """Count the MACs of a dense model.

    Args:
        model: The model.
        img_size: Image size (height, width) in pixels, brought to whole patches; None is the one trained on.
    """
    model = copy.deepcopy(model).to("meta").eval()
    backbone: Any = model.backbone
    patch = backbone.patch_embed.patch_size
    size = [max(p, round(s / p) * p) for s, p in zip(img_size or model.img_size, patch, strict=True)]
    backbone.set_input_size((size[0], size[1]))
    encoder = count_flops(model.encoder)
    grid = [extent // side for extent, side in zip(size, patch, strict=True)]
    maps = [torch.empty(1, backbone.embed_dim, *grid, device="meta") for _ in model.feature_indices]
    tokens = [torch.empty(1, backbone.embed_dim, device="meta") for _ in maps] if has_class_token(backbone) else None
    with FlopCounterMode(display=False) as counter:
        model.decoder(DenseFeatures(maps, tokens))
    return DenseFlops((size[0], size[1]), encoder.gmacs, encoder.dense_gmacs, counter.get_total_flops() / 2 / GIGA)
