"""The linear probe of DINOv2 (Oquab et al. 2023, section 7.4)."""

from torch import Tensor, cat, nn

from tosa_cli.model.decoders.base import Decoder, DecoderFeatures, resize

UPSAMPLING = 4
"""How much finer than the patches its map is."""


class LinearDecoder(Decoder):
    """A linear map of the last normalised patch tokens, each beside the class token where there is one.

    DINOv2 brings the tokens to four times as many rows and columns first, bilinearly; a linear map gives the same
    before and after that, and before is cheaper.
    """

    reads_norm = True
    depth_channels = 256  # depths among which it weighs (section 7.4)

    def __init__(self, embed_dim: int, has_class_token: bool, out_channels: int, dim: int = 0) -> None:
        super().__init__(embed_dim, has_class_token, out_channels, dim)
        self.proj = nn.Conv2d(embed_dim * (1 + has_class_token), out_channels, 1)
        nn.init.normal_(self.proj.weight, std=0.01)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, features: DecoderFeatures) -> Tensor:
        """Turn features into a map (B, out_channels, 4 * rows, 4 * columns)."""
        tokens = features.maps[-1]
        if features.class_tokens is not None:
            beside = features.class_tokens[-1][:, :, None, None].expand_as(tokens)
            tokens = cat([tokens, beside], dim=1)
        rows, columns = tokens.shape[-2:]
        return resize(self.proj(tokens), (UPSAMPLING * rows, UPSAMPLING * columns))
