"""A predictor: a ViT, converted or not, with a decoder that turns its tokens into a map."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.model.decoders import DECODERS, Decoder, DecoderFeatures
from tosa_cli.model.decoders.base import resize
from tosa_cli.model.families import has_class_token
from tosa_cli.model.families.backbone import PatchEmbed
from tosa_cli.model.timm_interface import with_input_size
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance
from tosa_cli.task import TaskConfig

_ENCODER = "encoder."

BIN_EPS = 0.1
"""Added to the weight of each depth, so that no pixel is without any."""


class Predictor(nn.Module):
    """An encoder and a decoder: depth in metres, or class logits, for every pixel.

    In a file the encoder's weights have its own names, and the decoder's are under `decoder.`: see `to_file_names`.

    Args:
        encoder: A dense timm ViT or a `TosaViT`, which becomes part of the new model; what classifies is taken off.
        config: What is predicted, and with which decoder.
    """

    def __init__(self, encoder: nn.Module, config: TaskConfig) -> None:
        super().__init__()
        self.encoder: Any
        self.encoder = encoder
        self.config = config
        _take_off_head(encoder)
        self.has_class_token = has_class_token(self.backbone)
        kind = DECODERS[config.decoder]
        self.feature_indices = kind.indices(len(self.blocks))
        self.decoder: Decoder = kind(
            self.encoder.embed_dim, self.has_class_token, _out_channels(config), config.decoder_dim
        )
        self.provenance = Provenance()

    @property
    def backbone(self) -> Any:
        """The encoder with every token computed; it shares all weights with this model."""
        return self.encoder.backbone if isinstance(self.encoder, TosaViT) else self.encoder

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Image size, crop, mean, standard deviation and license, as timm has them: the encoder's."""
        return self.encoder.pretrained_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        # timm sets it when it builds this model; the encoder keeps the name of its own architecture.
        own = with_input_size(cfg, self.encoder)
        self.encoder.pretrained_cfg = {**own, "architecture": self.pretrained_cfg.get("architecture")}

    @property
    def _traits(self) -> dict[str, Any]:
        # Image size and channels that timm resolves transforms from.
        return getattr(self.encoder, "_traits", {})

    @_traits.setter
    def _traits(self, traits: dict[str, Any]) -> None:
        self.encoder._traits = traits

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.encoder.in_chans

    @property
    def num_classes(self) -> int:
        """Number of classes of images as a whole: 0, as the encoder has no head."""
        return self.encoder.num_classes

    @property
    def blocks(self) -> nn.Sequential:
        """The encoder's transformer blocks."""
        return self.encoder.blocks

    @property
    def patch_embed(self) -> PatchEmbed:
        """The encoder's patch embedding."""
        return self.encoder.patch_embed

    @property
    def img_size(self) -> tuple[int, int]:
        """The image size (height, width) in pixels that it was trained on; it takes any."""
        height, width = self.encoder.patch_embed.img_size
        return height, width

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Change the image size (height, width) in pixels; position embeddings are resampled as timm does."""
        self.encoder.set_input_size(img_size=img_size)
        self.pretrained_cfg = self.pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer of the encoder in the backward pass instead of keeping its activations."""
        self.encoder.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> Tensor:
        """Predict a map of the size of the images.

        Where that is no multiple of the patch, the images are brought to the nearest one first.

        Args:
            images: Images (B, C, height, width).

        Returns:
            Depth in metres (B, 1, height, width), or class logits (B, num_labels, height, width).
        """
        size = images.shape[-2:]
        maps = self.decoder(self.forward_features(_to_whole_patches(images, self.encoder.patch_embed.patch_size)))
        if self.config.task == "depth":
            maps = self._depth(maps.float())
        return resize(maps, size)

    def forward_features(self, images: Tensor) -> DecoderFeatures:
        """What the decoder reads of images (B, C, height, width), whose size is a multiple of the patch."""
        taken = self.encoder.forward_intermediates(
            images,
            indices=self.feature_indices,
            return_prefix_tokens=True,
            norm=self.decoder.reads_norm,
            intermediates_only=True,
        )
        if not self.encoder.num_prefix_tokens:
            return DecoderFeatures(taken, None)
        maps = [spatial for spatial, _ in taken]
        return DecoderFeatures(maps, [prefix[:, 0] for _, prefix in taken] if self.has_class_token else None)

    def with_dense_encoder(self) -> "Predictor":
        """This model with every token computed in every layer; it shares all weights with this one."""
        dense = Predictor.__new__(Predictor)
        nn.Module.__init__(dense)
        dense.encoder, dense.config, dense.decoder = self.backbone, self.config, self.decoder
        dense.feature_indices, dense.has_class_token = self.feature_indices, self.has_class_token
        dense.provenance = self.provenance
        return dense

    def _depth(self, maps: Tensor) -> Tensor:
        """Turn a decoder's map (B, channels, h, w) into depth in metres (B, 1, h, w)."""
        low, high = self.config.min_depth, self.config.max_depth
        if maps.shape[1] == 1:
            return low + (high - low) * maps.sigmoid()
        # The linear normalisation of AdaBins (Bhat et al. 2021), with bins of one width.
        weights = maps.relu() + BIN_EPS
        depths = torch.linspace(low, high, maps.shape[1], device=maps.device).view(1, -1, 1, 1)
        return (weights * depths).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)


def to_file_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a predictor as its file has it, from which any timm tool reads the encoder."""
    return {name.removeprefix(_ENCODER): value for name, value in state.items()}


def from_file_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a predictor from what its file has."""
    return {name if name.startswith("decoder.") else _ENCODER + name: value for name, value in state.items()}


def _out_channels(config: TaskConfig) -> int:
    if config.task == "segmentation":
        return config.num_labels
    return DECODERS[config.decoder].depth_channels


def _take_off_head(encoder: Any) -> None:
    """Take off what only classification reads."""
    encoder.reset_classifier(0)
    if getattr(encoder, "attn_pool", None) is not None:
        encoder.attn_pool = None
    if getattr(encoder, "fc_norm", None) is not None:
        encoder.fc_norm = nn.Identity()


def whole_patches(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """The image size (height, width) in whole patches (height, width) that is nearest to `size`, all in pixels."""
    height, width = (max(side, round(extent / side) * side) for extent, side in zip(size, patch, strict=True))
    return height, width


def _to_whole_patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    size = whole_patches((images.shape[-2], images.shape[-1]), patch)
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
