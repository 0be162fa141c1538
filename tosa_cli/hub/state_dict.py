"""The one file that renames keys, and long for its tables: what others call a ViT's tensors, in timm's names.

A `Naming` is driven by the target: each key of the timm model is looked up in the table and must be found, and each key
of the source must be used or be on the list of what is dropped knowingly.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from tosa_cli.errors import CheckpointError

Take = Callable[[str], Tensor | None]
"""Gives a tensor of the source by its name, or None if there is no such tensor."""

Make = Callable[[Take], Tensor | None]
"""Makes a target tensor of the source's."""


@dataclass(frozen=True)
class Naming:
    """How a family of models names its tensors.

    The values of the tables are the source's names, the first that is there is taken. A name stands for a tensor, or
    for a module with its weight and bias, as the key does. `{a,b}` stands for several, joined along their rows:
    `self_attn.{q,k,v}_proj` is timm's `attn.qkv`.

    Attributes:
        prefixes: What may stand in front of every name but the head's.
        layers: What may stand in front of the number of a layer.
        model: Source names by timm's, outside the layers.
        layer: Source names by timm's, in a layer.
        dropped: Patterns of names that are left out knowingly, without the prefix or with it.
    """

    prefixes: tuple[str, ...]
    layers: tuple[str, ...]
    model: Mapping[str, tuple[str, ...] | Make]
    layer: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...] = ()

    @property
    def parts(self) -> set[str]:
        """First words of the source's names, with the prefix and without."""
        names = [name for value in self.model.values() if isinstance(value, tuple) for name in value]
        return {name.partition(".")[0] for name in (*self.prefixes, *self.layers, *names, *self.dropped)}

    def drops(self, key: str, also: Iterable[str] = ()) -> bool:
        """Whether a key of the source is left out knowingly."""
        names = {key, *(key.removeprefix(prefix) for prefix in self.prefixes)}
        return any(fnmatchcase(name, pattern) for name in names for pattern in (*self.dropped, *also))


@dataclass
class _Source:
    """A state dict to take tensors from, and the names of those that were taken."""

    state: Mapping[str, Tensor]
    prefixes: tuple[str, ...]
    taken: set[str] = field(default_factory=set)

    def take(self, name: str) -> Tensor | None:
        for key in (*(prefix + name for prefix in self.prefixes), name):
            if key in self.state:
                self.taken.add(key)
                return self.state[key]
        return None


# ---------------------------------------------------------------------- tensors that are more than renamed


def _class_token_with_position(take: Take) -> Tensor | None:
    # timm adds no position to class and register tokens of such models, so that of the class token goes into it.
    token, positions = take("embeddings.cls_token"), take("embeddings.position_embeddings")
    return None if token is None or positions is None else token.float() + positions[:, :1].float()


def _positions_of_patches(take: Take) -> Tensor | None:
    positions = take("embeddings.position_embeddings")
    return None if positions is None else positions[:, 1:]


def _rows(name: str, first: int, last: int) -> Make:
    """Some thirds of the rows of a tensor that holds queries, keys and values."""

    def make(take: Take) -> Tensor | None:
        value = take(name)
        return None if value is None else torch.cat(value.chunk(3)[first:last])

    return make


def _clip_head_bias(take: Take) -> Tensor | None:
    # CLIP's projection has no bias; that of a classifier has.
    projection = take("visual_projection.weight")
    return take("classifier.bias") if projection is None else projection.new_zeros(len(projection))


# ---------------------------------------------------------------------- the tables

# Where two names stand, the second is that of transformers 5 in memory, which `save_original_format=False` writes.
_VIT_MODEL = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "norm": ("layernorm",),
    "head": ("classifier",),
}
_VIT_LAYER = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.{query,key,value}", "attention.{q,k,v}_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
_VIT_LAYERS = ("encoder.layer.", "layers.")
_VIT_DROPPED = ("pooler.*", "embeddings.mask_token", "decoder.*")

VIT = Naming(("vit.",), _VIT_LAYERS, _VIT_MODEL, _VIT_LAYER, _VIT_DROPPED)

DEIT = Naming(
    ("deit.",),
    _VIT_LAYERS,
    {
        **_VIT_MODEL,
        "dist_token": ("embeddings.distillation_token",),
        "reg_token": ("embeddings.distillation_token",),
        "head": ("cls_classifier", "classifier"),
        "head_dist": ("distillation_classifier",),
    },
    _VIT_LAYER,
    _VIT_DROPPED,
)

_DINOV2_LAYER = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.attention.{query,key,value}", "attention.{q,k,v}_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1", "mlp.weights_in", "mlp.{gate,up}_proj"),
    "mlp.fc2": ("mlp.fc2", "mlp.weights_out", "mlp.down_proj"),
    "ls2.gamma": ("layer_scale2.lambda1",),
}

DINOV2 = Naming(("dinov2.",), ("encoder.layer.",), _VIT_MODEL, _DINOV2_LAYER, ("embeddings.mask_token",))

DINOV2_WITH_REGISTERS = Naming(
    ("dinov2_with_registers.",),
    ("encoder.layer.",),
    {
        **_VIT_MODEL,
        "cls_token": _class_token_with_position,
        "reg_token": ("embeddings.register_tokens",),
        "pos_embed": _positions_of_patches,
    },
    _DINOV2_LAYER,
    ("embeddings.mask_token",),
)

_TOWER_MODEL: dict[str, tuple[str, ...] | Make] = {
    "pos_embed": ("embeddings.position_embedding.weight",),
    "patch_embed.proj": ("embeddings.patch_embedding",),
    "norm": ("post_layernorm",),
}
_TOWER_LAYER = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.{q,k,v}_proj",),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_TOWER_DROPPED = ("embeddings.position_ids", "text_model.*", "text_projection.*", "logit_scale", "logit_bias")

CLIP = Naming(
    ("vision_model.",),
    ("encoder.layers.",),
    {
        **_TOWER_MODEL,
        "cls_token": ("embeddings.class_embedding",),
        "norm_pre": ("pre_layrnorm",),
        "head.weight": ("visual_projection.weight", "classifier.weight"),
        "head.bias": _clip_head_bias,
    },
    _TOWER_LAYER,
    _TOWER_DROPPED,
)

SIGLIP = Naming(
    ("vision_model.",),
    ("encoder.layers.",),
    {
        **_TOWER_MODEL,
        "attn_pool.latent": ("head.probe",),
        "attn_pool.q.weight": _rows("head.attention.in_proj_weight", 0, 1),
        "attn_pool.q.bias": _rows("head.attention.in_proj_bias", 0, 1),
        "attn_pool.kv.weight": _rows("head.attention.in_proj_weight", 1, 3),
        "attn_pool.kv.bias": _rows("head.attention.in_proj_bias", 1, 3),
        "attn_pool.proj": ("head.attention.out_proj",),
        "attn_pool.norm": ("head.layernorm",),
        "attn_pool.mlp.fc1": ("head.mlp.fc1",),
        "attn_pool.mlp.fc2": ("head.mlp.fc2",),
        "head": ("classifier",),
    },
    _TOWER_LAYER,
    _TOWER_DROPPED,
)


def to_timm(
    state: Mapping[str, Tensor], naming: Naming, target: Mapping[str, Tensor], shown: str, dropped: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Rename and join the tensors of a source.

    Args:
        state: The source's tensors.
        naming: How it names them.
        target: State dict of the timm model; only keys and shapes are read, so it may be on the meta device.
        shown: What to call the source in an error.
        dropped: Patterns that are left out besides the naming's own.

    Returns:
        Tensors under timm's keys: all of the target's, and no others.

    Raises:
        CheckpointError: If the source lacks a tensor, has one of another shape, or one that is not known.
    """
    source = _Source(state, naming.prefixes)
    result = {}
    for key, wanted in target.items():
        value = _make(key, naming, source.take)
        if value is None:
            name = _source_names(key, naming)[0]
            raise CheckpointError(f"The weights of {shown} do not fit: they lack the key {name!r}.")
        # transformers has some tokens and position embeddings without timm's leading dimension of size 1.
        value = value.reshape((1,) * (wanted.ndim - value.ndim) + tuple(value.shape))
        if value.shape != wanted.shape:
            raise CheckpointError(
                f"The weights of {shown} do not fit its configuration: {_source_names(key, naming)[0]} has shape "
                f"{list(value.shape)}, expected {list(wanted.shape)}."
            )
        result[key] = value
    unknown = sorted(key for key in state if key not in source.taken and not naming.drops(key, dropped))
    if unknown:
        raise CheckpointError(f"The weights of {shown} do not fit: they have the unknown key {unknown[0]!r}.")
    return result


def is_named_by_transformers(state: Iterable[str]) -> bool:
    """Whether keys are those of one of the families above."""
    return any("embeddings.patch_embedding" in key for key in state)


def _make(key: str, naming: Naming, take: Take) -> Tensor | None:
    own = naming.model.get(key)
    if own is not None and not isinstance(own, tuple):
        return own(take)
    for name in _source_names(key, naming):
        parts = [take(part) for part in _expand(name)]
        found = [part for part in parts if part is not None]
        if len(found) == len(parts):
            return found[0] if len(found) == 1 else torch.cat(found)
    return None


def _source_names(key: str, naming: Naming) -> list[str]:
    """The names that the source may have for a key of timm's, in the order in which they are tried."""
    in_layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    fronts = [f"{front}{in_layer[1]}." for front in naming.layers] if in_layer else [""]
    table: Mapping[str, Any] = naming.layer if in_layer else naming.model
    name = in_layer[2] if in_layer else key
    module, _, leaf = name.rpartition(".")
    if isinstance(table.get(name), tuple):
        names = table[name]
    elif isinstance(table.get(module), tuple):
        names = tuple(f"{other}.{leaf}" for other in table[module])
    else:
        names = (name,)
    return [front + other for front in fronts for other in names]


def _expand(name: str) -> list[str]:
    """`a.{x,y}.b` as `a.x.b` and `a.y.b`."""
    front, brace, rest = name.partition("{")
    choices, _, back = rest.partition("}")
    return [front + choice + back for choice in choices.split(",")] if brace else [name]
