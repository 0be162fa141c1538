"""From the config.json of a transformers model to the same model of timm; half of this long file is tables of data.

Imports no transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import timm
from timm.layers import get_act_layer
from torch import nn

from tosa_cli.errors import CheckpointError, UnsupportedModelError
from tosa_cli.hub.state_dict import CLIP, DEIT, DINOV2, DINOV2_WITH_REGISTERS, SIGLIP, VIT, Naming
from tosa_cli.model.meta import create_on_meta

if TYPE_CHECKING:
    from tosa_cli.hub.files import Files

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""timm's names of activations, by transformers'."""

REFUSED = {
    "beit": "its relative position bias is not read from this format",
    "data2vec-vision": "its relative position bias is not read from this format",
    "dinov3_vit": "its rotary position embedding is not read from this format",
    "siglip2": "it takes images of any shape as lists of patches (NaFlex)",
    "swin": "it attends in windows",
    "swinv2": "it attends in windows",
}
"""Model types that are asked for, and why they are not read."""

_VIT_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_DINOV2_DEFAULTS = {**_VIT_DEFAULTS, "mlp_ratio": 4, "layer_norm_eps": 1e-6}
_SIZES = {192: "tiny", 384: "small", 512: "medium", 768: "base", 1024: "large", 1280: "huge"}
_CLASSIFIER = "ForImageClassification"


@dataclass(frozen=True)
class Head:
    """What stands behind the layers, by the class that the checkpoint was saved from.

    Attributes:
        args: Arguments of the timm model.
        classes: Its number of outputs: that of the labels, of the projection, or none.
        dropped: What of the source the timm model has no use for.
        distilled: Two heads, for the class and the distillation token.
        refused: Why timm cannot express the head; empty where it can.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    classes: str = ""
    dropped: tuple[str, ...] = ()
    distilled: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    Attributes:
        naming: How it names its tensors.
        template: timm's name, from size, patch and image.
        base: timm's model for configurations that have no name of their own.
        defaults: What transformers takes where the configuration is silent.
        processor: What its images are put through where no file tells; see `image_processor.DEFAULTS`.
        heads: Heads by the end of the name of the class that was saved; "" for all others.
        sizes: timm's words for the widths.
        antialias: Whether transformers smooths position embeddings when it resamples them.
    """

    naming: Naming
    template: str
    base: str
    defaults: Mapping[str, Any]
    processor: str
    heads: Mapping[str, Head]
    sizes: Mapping[int, str] = field(default_factory=lambda: _SIZES)
    antialias: bool = False


_PLAIN_HEADS = {_CLASSIFIER: Head(classes="labels"), "": Head()}
_DINOV2_HEADS = {
    _CLASSIFIER: Head(
        dropped=("classifier.*",),
        refused="its head reads the class token and the mean of the patch tokens side by side, as no timm model does",
    ),
    "": Head(),
}
_CLIP_HEADS = {
    _CLASSIFIER: Head({"global_pool": "avg", "final_norm": False}, "labels", ("post_layernorm.*",)),
    "CLIPVisionModel": Head(),
    "": Head(classes="projection"),
}
_SIGLIP_HEADS = {
    _CLASSIFIER: Head({"global_pool": "avg", "fc_norm": False}, "labels", ("head.*",)),
    "": Head(),
}
_VIT = Family(VIT, "vit_{size}_patch{patch}_{image}", "vit_base_patch16_224", _VIT_DEFAULTS, "ViT", _PLAIN_HEADS)
_CLIP = Family(
    CLIP,
    "vit_{size}_patch{patch}_clip_{quickgelu}{image}",
    "vit_base_patch32_clip_224",
    {**_VIT_DEFAULTS, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32, "projection_dim": 512},
    "CLIP",
    _CLIP_HEADS,
    {**_SIZES, 256: "xsmall", 1408: "giant", 1664: "gigantic"},
)
_SIGLIP = Family(
    SIGLIP,
    "vit_{size}_patch{patch}_siglip_{image}",
    "vit_base_patch16_siglip_224",
    {**_VIT_DEFAULTS, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True},
    "Siglip",
    _SIGLIP_HEADS,
    {**_SIZES, 1152: "so400m", 1536: "giantopt"},
)

FAMILIES: dict[str, Family] = {
    "vit": _VIT,
    "vit_mae": replace(_VIT, processor="published MAE"),
    "deit": Family(
        DEIT,
        "deit_{size}_{distilled}patch{patch}_{image}",
        "deit_base_patch16_224",
        _VIT_DEFAULTS,
        "published DeiT",
        {
            # One head and two tokens in front: the second is what timm calls a register.
            _CLASSIFIER: Head({"reg_tokens": 1}, "labels"),
            "WithTeacher": Head(classes="labels", distilled=True),
            "": Head(distilled=True),
        },
    ),
    "dinov2": Family(
        DINOV2,
        "vit_{size}_patch{patch}_dinov2",
        "vit_base_patch14_dinov2",
        {**_DINOV2_DEFAULTS, "patch_size": 14},
        "published DINOv2",
        _DINOV2_HEADS,
    ),
    "dinov2_with_registers": Family(
        DINOV2_WITH_REGISTERS,
        "vit_{size}_patch{patch}_reg4_dinov2",
        "vit_base_patch14_reg4_dinov2",
        {**_DINOV2_DEFAULTS, "num_register_tokens": 4},
        "published DINOv2",
        _DINOV2_HEADS,
        antialias=True,
    ),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}


@dataclass(frozen=True)
class Plan:
    """Which timm model to build for a transformers configuration, and how to fill it.

    Attributes:
        architecture: timm's name of the architecture.
        args: Arguments for timm's `create_model` by which the model differs from it.
        norm_eps: What its layer norms add to the variance.
        family: The model type's entry.
        dropped: Patterns of tensors that the timm model has no use for, besides the naming's.
        label_names: Names of the classes; empty where they have none.
        refused: Why the head cannot be expressed; empty where it can, or there is none.
    """

    architecture: str
    args: dict[str, Any]
    norm_eps: float
    family: Family
    dropped: tuple[str, ...]
    label_names: tuple[str, ...]
    refused: str


def unwrap_model(config: Mapping[str, Any], files: "Files") -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of timm's `create_model` that build the model in a `TimmWrapper`, and its `pretrained_cfg`.

    Args:
        config: Its config.json.
        files: Files of the source.

    Raises:
        CheckpointError: If a value is of the wrong kind.
    """
    has_head = str((config.get("architectures") or [""])[0]).endswith(_CLASSIFIER)
    classes, names = config.get("num_classes") if has_head else 0, config.get("label_names") or ()
    args, cfg = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    if not (isinstance(args, Mapping) and isinstance(cfg, Mapping) and type(classes) is int):
        raise CheckpointError(
            f"config.json of {files.shown} should have a number under 'num_classes', and objects under 'model_args' "
            f"and 'pretrained_cfg'."
        )
    names = None if len(names) != classes or _are_numbers(tuple(map(str, names))) else list(names)
    own = {"architecture": config["architecture"], "num_classes": classes, "label_names": names}
    return {**args, "num_classes": classes}, {"license": files.license(), **cfg, **own}


def plan_model(config: Mapping[str, Any], shown: str) -> Plan:
    """Find the timm model for a configuration of transformers'.

    Args:
        config: What config.json holds.
        shown: What to call the source in an error.

    Raises:
        UnsupportedModelError: If no timm model expresses it; names the field.
        CheckpointError: If a field is missing or of the wrong kind.
    """
    kind = config["model_type"]
    family = FAMILIES.get(kind)
    if family is None and kind not in REFUSED and config.get("architectures"):
        raise UnsupportedModelError(
            f"{shown} is a transformers model of type {kind!r}, of which no encoder is taken alone: convert the whole, "
            f"with `tosa convert {shown} --preset calibrated --data-dir PHOTOS`."
        )
    if family is None:
        reason = f": {REFUSED[kind]}" if kind in REFUSED else ""
        raise UnsupportedModelError(
            f"{shown} is a transformers model of type {kind!r}, which cannot be converted{reason}. Types that can: "
            f"{', '.join(FAMILIES)}. If timm has the model, name it as timm does."
        )
    try:
        return _plan(config, family, shown)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"config.json of {shown} has a value of the wrong shape ({type(error).__name__}: {error}): correct it, or "
            f"download it again."
        ) from error


def _plan(config: Mapping[str, Any], family: Family, shown: str) -> Plan:
    values = _vision_values(config, family)
    saved_as = str((config.get("architectures") or [""])[0])
    head = next(head for end, head in family.heads.items() if saved_as.endswith(end))
    dropped = head.dropped
    args = dict(head.args)
    if not values.get("vision_use_head", True):
        args.update(global_pool="avg", fc_norm=False)
    labels = _label_names(config)
    args["num_classes"] = {"labels": len(labels), "projection": int(values.get("projection_dim", 0)), "": 0}[
        head.classes
    ]
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise _refuse(shown, "position_embedding_type", values["position_embedding_type"])
    if values["hidden_act"] not in ACTIVATIONS:
        instead = f" Convert it as a whole, with `tosa convert {shown} --whole`."
        raise _refuse(shown, "hidden_act", values["hidden_act"], instead)
    if values["hidden_size"] % values["num_attention_heads"]:
        raise _refuse(shown, "num_attention_heads", values["num_attention_heads"])
    architecture = _name(values, family, head)
    args.update(_differences(create_on_meta(architecture, {"num_classes": 0}), values))
    named = labels if head.classes == "labels" and not _are_numbers(labels) else ()
    return Plan(architecture, args, float(values["layer_norm_eps"]), family, dropped, named, head.refused)


def _vision_values(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The image tower's settings, with transformers' defaults where the configuration is silent."""
    own: dict[str, Any] = dict(config)
    if config["model_type"] in ("clip", "siglip"):
        own = {**(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
        own["projection_dim"] = config.get("projection_dim") or own.get("projection_dim")
    values = {**family.defaults, **{key: value for key, value in own.items() if value is not None}}
    if "mlp_ratio" in family.defaults:
        values["intermediate_size"] = int(values["hidden_size"] * values["mlp_ratio"])
    return values


def _name(values: Mapping[str, Any], family: Family, head: Head) -> str:
    if values.get("use_swiglu_ffn"):
        return family.base.replace("base", "giant")  # timm's one size with gated layers
    height, _ = _pair(values["image_size"])
    patch, _ = _pair(values["patch_size"])
    distilled = "distilled_" if head.distilled else ""
    name = family.template.format(
        size=family.sizes.get(values["hidden_size"], ""),
        patch=patch,
        image=height,
        distilled=distilled,
        quickgelu="quickgelu_" if values["hidden_act"] == "quick_gelu" else "",
    )
    return name if timm.is_model(name) else family.base.replace("deit_base_", f"deit_base_{distilled}")


def _differences(model: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by which a configuration differs from a timm model on the meta device."""
    block = model.blocks[0]
    hidden = _mlp_width(values)
    wanted: dict[str, tuple[Any, Any]] = {
        "img_size": (tuple(model.patch_embed.img_size), _pair(values["image_size"])),
        "patch_size": (tuple(model.patch_embed.patch_size), _pair(values["patch_size"])),
        "in_chans": (model.patch_embed.proj.in_channels, int(values["num_channels"])),
        "embed_dim": (model.embed_dim, int(values["hidden_size"])),
        "depth": (len(model.blocks), int(values["num_hidden_layers"])),
        "num_heads": (block.attn.num_heads, int(values["num_attention_heads"])),
        "qkv_bias": (block.attn.qkv.bias is not None, bool(values["qkv_bias"])),
    }
    if values.get("num_register_tokens") is not None:
        wanted["reg_tokens"] = (model.num_reg_tokens, int(values["num_register_tokens"]))
    args = {name: _plain(new) for name, (old, new) in wanted.items() if old != new}
    if (block.mlp.fc1.out_features, model.embed_dim) != (hidden, values["hidden_size"]):
        args["mlp_ratio"] = _ratio(hidden, values["hidden_size"])
    activation = ACTIVATIONS[values["hidden_act"]]
    if not values.get("use_swiglu_ffn") and not _is_activation(block.mlp.act, activation):
        args["act_layer"] = activation
    return args


def _mlp_width(values: Mapping[str, Any]) -> int:
    """Outputs of the first linear map of the MLP; gated ones have the gate in it too."""
    if not values.get("use_swiglu_ffn"):
        return int(values["intermediate_size"])
    # transformers takes two thirds, rounded up to a multiple of eight.
    return 2 * ((int(values["intermediate_size"] * 2 / 3) + 7) // 8 * 8)


def _ratio(hidden: int, width: int) -> float:
    """An `mlp_ratio` from which timm, which rounds down, gets exactly this width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _is_activation(module: nn.Module, name: str) -> bool:
    kinds: tuple[Callable[..., Any], ...] = (get_act_layer(name), *((nn.GELU,) if name == "gelu" else ()))
    return type(module) in kinds


def _label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of the outputs; numbers where they have none."""
    names = config.get("id2label")
    if not names:
        return tuple(map(str, range(int(config.get("num_labels") or 2))))
    by_index = {int(index): str(name) for index, name in names.items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError("id2label does not number the classes from 0")
    return tuple(by_index[index] for index in range(len(by_index)))


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.removeprefix("LABEL_") == str(index) for index, name in enumerate(names))


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def _plain(value: Any) -> Any:
    """A value as JSON has it: of two equal numbers one, of others a list."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(set(value)) == 1 else list(value)


def _refuse(shown: str, name: str, value: Any, instead: str = "") -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{shown} cannot be converted: no timm ViT expresses {name} = {value!r} of its config.json.{instead}"
    )
