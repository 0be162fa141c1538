"""Why models are not converted: one clause for each of timm's model files, in words that follow "because"."""

_WINDOWS = "its attention runs in windows of the image, which a selection of its tokens does not fill"
_STAGES = "its stages shrink the grid of tokens, so not all tokens are there at the end"
_ENCODER = "it is the image tower of a language model with positions and a head of its own, which tosa does not know"

_BY_MODULE = {
    "cait": "its attention mixes the heads before and after the softmax, and the class token enters in layers apart",
    "coat": "its attention is factorised over channels, with convolutions among the tokens",
    "convit": "its attention mixes in a map of positions that is made for the whole grid",
    "crossvit": "it runs two streams of tokens that exchange their class tokens",
    "davit": _WINDOWS,
    "deepseek_vit": _ENCODER,
    "gcvit": _WINDOWS,
    "gemma4_vit": _ENCODER,
    "hiera": _WINDOWS,
    "hieradet_sam2": _WINDOWS,
    "levit": _STAGES,
    "maxxvit": "its attention runs in windows or grids of the image between convolutions",
    "mvitv2": _STAGES,
    "naflexvit": "it is made for batches of images of several sizes, padded and masked, and tosa needs one whole grid",
    "nest": _WINDOWS,
    "pit": _STAGES,
    "pvt_v2": _STAGES,
    "qwen3_vit": _ENCODER,
    "swin_transformer": _WINDOWS,
    "swin_transformer_v2": _WINDOWS,
    "swin_transformer_v2_cr": _WINDOWS,
    "tiny_vit": _WINDOWS,
    "tnt": "each of its tokens has tokens of its own inside, which its layers compute as well",
    "twins": _WINDOWS,
    "vision_transformer_sam": _WINDOWS,
    "visformer": _STAGES,
    "volo": "its first layers attend within neighbourhoods, and the class token enters in layers apart",
    "xcit": "its attention runs over channels and convolutions mix the tokens, so no token can be left out",
}

_OTHER = "it is not built of transformer blocks that all work on one grid of tokens"


def reason_against(module: str) -> str:
    """Why the models of one of timm's files are not converted.

    Args:
        module: Name of the file, as in `timm.models.swin_transformer`.
    """
    return _BY_MODULE.get(module.rpartition(".")[2], _OTHER)
