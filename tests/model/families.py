"""Small models of every family and feature that converts: what each is built of is timm's, only its size is not."""

from typing import Any

from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import ParallelThingsBlock
from torch import nn

from .tiny_models import make_vit

SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 2, "img_size": (64, 96)}
"""Four layers on 4 x 6 patches of 16 pixels: a table that is read by columns instead of rows is seen."""

SMALL14: dict[str, Any] = {**SMALL, "img_size": (56, 84)}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "LayerScale, registers, average pooling": ("test_vit2", {"img_size": (64, 96)}),
    "attention pooling": ("test_vit3", {"img_size": (64, 96)}),
    "RMSNorm": ("test_vit4", {"img_size": (64, 96)}),
    "no class token": ("vit_medium_patch16_gap_256", SMALL),
    "QK-norm": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}),
    "packed SwiGLU": ("vit_tiny_patch16_224", {**SMALL, "mlp_layer": SwiGLUPacked, "init_values": 0.1}),
    "dynamic size": ("vit_tiny_patch16_224", {**SMALL, "dynamic_img_size": True}),
    "norm after": ("vit_base_patch16_rpn_224", SMALL),
    "attention beside MLP": ("vit_base_patch16_xp_224", SMALL),
    "parallel attentions": ("vit_small_patch16_18x2_224", SMALL),
    "parallel attentions with QK-norm": (
        "vit_tiny_patch16_224",
        {**SMALL, "block_fn": ParallelThingsBlock, "qk_norm": True, "init_values": 0.1},
    ),
    "EVA": ("eva_giant_patch14_224", SMALL14),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL14),
    "EVA-02, norms inside": ("eva02_base_patch14_224", SMALL14),
    "EVA-02, norm after": ("eva02_enormous_patch14_clip_224", SMALL14),
    "rotation, register": ("vit_medium_patch16_rope_reg1_gap_256", SMALL),
    "mixed rotation": ("vit_small_patch16_rope_mixed_224", SMALL),
    "mixed rotation, positions": ("vit_small_patch16_rope_mixed_ape_224", SMALL),
    "mixed rotation, dynamic size": ("vit_small_patch16_rope_mixed_224", {**SMALL, "dynamic_img_size": True}),
    "no rotation at all": ("vit_small_patch16_rope_224", {**SMALL, "use_rot_pos_emb": False}),
    "multimodal rotation": (
        "vit_small_patch16_rope_224",
        {**SMALL, "rope_type": "mrope", "rope_grid_indexing": "ij"},
    ),
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
    "DINOv3 with biases": ("vit_small_patch16_dinov3_qkvb", SMALL),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", SMALL),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", SMALL),
    "Perception Encoder, spatial": ("vit_pe_spatial_tiny_patch16_512", SMALL),
    "grouped keys": ("vit_base_patch16_sapiens2", {**SMALL, "num_kv_heads": (2, 1, 2, 1)}),
    "LingBot": ("vit_small_patch16_lingbot", SMALL),
    "BEiT": ("beit_base_patch16_224", SMALL),
    "BEiT v2": ("beitv2_base_patch16_224", SMALL),
    "BEiT, shared bias": (
        "beit_base_patch16_224",
        {**SMALL, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "BEiT, both biases": ("beit_base_patch16_224", {**SMALL, "use_shared_rel_pos_bias": True, "global_pool": "token"}),
    "BEiT without bias": ("beit_base_patch16_224", {**SMALL, "use_rel_pos_bias": False, "use_abs_pos_emb": True}),
    "relative positions": ("test_vit_relpos", {"img_size": (64, 96)}),
    "relative positions, class token": ("vit_relpos_base_patch16_cls_224", SMALL),
    "relative positions, table": ("vit_relpos_base_patch32_plus_rpn_256", {**SMALL, "patch_size": 16}),
    "relative positions, table and class token": (
        "vit_relpos_base_patch16_clsgap_224",
        {**SMALL, "rel_pos_type": "bias"},
    ),
    "relative positions of Swin v2": ("vit_relpos_small_patch16_224", {**SMALL, "rel_pos_type": "mlp-swin"}),
    "shared relative positions": ("vit_srelpos_small_patch16_224", SMALL),
    "shared relative positions, norm after": (
        "vit_relpos_small_patch16_rpn_224",
        {**SMALL, "shared_rel_pos": True, "class_token": True},
    ),
}
"""A name for what is special -> timm's architecture and what it is made small with."""

MECHANISMS = (
    "plain",
    "norm after",
    "attention beside MLP",
    "parallel attentions",
    "EVA-02",
    "EVA-02, norm after",
    "mixed rotation",
    "DINOv3",
    "grouped keys",
    "BEiT, both biases",
    "relative positions, class token",
    "shared relative positions, norm after",
)
"""One family for each way in which a block is called or its parts are found."""


def make_family(family: str, **args: Any) -> nn.Module:
    """A small dense model of a family, with weights that make every layer and every bias matter."""
    name, own = FAMILIES[family]
    settings = {**own, **args}
    if "num_kv_heads" in settings:  # one number a layer
        settings["num_kv_heads"] = settings["num_kv_heads"][: settings["depth"]]
    return make_vit(name, **settings)
