"""Multiply-accumulates of a predictor: encoder and decoder."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tosa_cli.model.decoders import DecoderFeatures
from tosa_cli.model.families import has_class_token
from tosa_cli.model.flops import count_flops
from tosa_cli.model.flops_report import GIGA, FlopsReport
from tosa_cli.model.predictor import Predictor, whole_patches


@dataclass(frozen=True)
class PredictorFlops:
    """MACs of one image, in GMACs.

    Attributes:
        img_size: Image size (height, width) in pixels, in whole patches.
        encoder_gmacs: MACs of the encoder, selectors and bypasses included.
        dense_encoder_gmacs: MACs of the encoder with every token computed.
        decoder_gmacs: MACs of the decoder.
        encoder: The encoder layer by layer.
        decoder_params: Number of parameters of the decoder.
    """

    img_size: tuple[int, int]
    encoder_gmacs: float
    dense_encoder_gmacs: float
    decoder_gmacs: float
    encoder: FlopsReport
    decoder_params: int

    @property
    def figures(self) -> dict[str, float]:
        """All figures by name: sums and shares saved as well."""
        total, dense = self.encoder_gmacs + self.decoder_gmacs, self.dense_encoder_gmacs + self.decoder_gmacs
        return {
            "encoder_gmacs": self.encoder_gmacs,
            "dense_encoder_gmacs": self.dense_encoder_gmacs,
            "decoder_gmacs": self.decoder_gmacs,
            "gmacs": total,
            "dense_gmacs": dense,
            "encoder_reduction": 1 - self.encoder_gmacs / self.dense_encoder_gmacs,
            "reduction": 1 - total / dense,
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values: that of the encoder, with the figures of both together and of each."""
        encoder = self.encoder.to_dict()
        return {**encoder, **self.figures, "params": self.encoder.params + self.decoder_params} | {
            "encoder_params": self.encoder.params,
            "decoder_params": self.decoder_params,
        }


def count_predictor_flops(model: Predictor, img_size: tuple[int, int] | None = None, name: str = "") -> PredictorFlops:
    """Count the MACs of a predictor.

    Args:
        model: The model.
        img_size: Image size (height, width) in pixels, brought to whole patches; None is the one trained on.
        name: Name for the report.
    """
    model = copy.deepcopy(model).to("meta").eval()
    backbone: Any = model.backbone
    patch = backbone.patch_embed.patch_size
    size = whole_patches(img_size or model.img_size, patch)
    backbone.set_input_size(size)
    encoder = count_flops(model.encoder, name=name)
    grid = [extent // side for extent, side in zip(size, patch, strict=True)]
    maps = [torch.empty(1, backbone.embed_dim, *grid, device="meta") for _ in model.feature_indices]
    tokens = [torch.empty(1, backbone.embed_dim, device="meta") for _ in maps] if has_class_token(backbone) else None
    with FlopCounterMode(display=False) as counter:
        model.decoder(DecoderFeatures(maps, tokens))
    return PredictorFlops(
        size,
        encoder.gmacs,
        encoder.dense_gmacs,
        counter.get_total_flops() / 2 / GIGA,
        encoder,
        sum(parameter.numel() for parameter in model.decoder.parameters()),
    )
