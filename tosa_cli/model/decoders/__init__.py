"""What turns the tokens of a ViT into maps. A decoder takes a dense timm model and a converted one alike."""

from tosa_cli.model.decoders.base import Decoder, DecoderFeatures
from tosa_cli.model.decoders.dpt import DptDecoder
from tosa_cli.model.decoders.linear import LinearDecoder
from tosa_cli.model.decoders.newcrfs import NewcrfsDecoder

DECODERS: dict[str, type[Decoder]] = {
    "linear": LinearDecoder,
    "dpt": DptDecoder,
    "newcrfs": NewcrfsDecoder,
}

__all__ = ["DECODERS", "Decoder", "DecoderFeatures", "DptDecoder", "LinearDecoder", "NewcrfsDecoder"]
