"""Which of the tensors in a weights file are a ViT's.

People nest weights beside optimizers and settings, keep several of them side by side (trained and averaged, student and
teacher), and put names in front of theirs. All these are names of tensors to us, joined by dots: wherever the name of a
patch embedding ends, what stands before it names a set of weights.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from tosa_cli.errors import CheckpointError, ConfigError
from tosa_cli.hub.adapters import check_no_adapter_among

PREFERRED = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "encoder", "module")
"""Names of sets of weights, those before the others that are taken if a file has several: averages as in timm, and of
two networks the teacher, which is what DINO publishes."""

_TIMM = "patch_embed.proj.weight"
_ANCHORS = (
    _TIMM,
    "visual.conv1.weight",
    "preprocessor.patchifier.proj.weight",
    "beit3.vision_embed.proj.weight",
    "radio_model.model.patch_generator.embedder.weight",
)
"""Names of the patch embedding: timm's, and open_clip's, AIMv2's, BEiT-3's and RADIO's, which timm renames itself."""

_OPEN_CLIP, _TRUNK = "visual.", "visual.trunk."

_PRETRAINING_HEADS = (
    *("head.mlp.*", "head.last_layer*", "head.mlp2.*", "dino_head.*", "ibot_head.*", "decoder_*"),
    "masked_embed",
)
"""Heads and decoders that only pretraining uses: DINO's, iBOT's, DINOv2's and MAE's; and iBOT's token for what is
masked."""

_TEXT_TOWER = (
    *("text.*", "text_model.*", "transformer.*", "token_embedding.*", "ln_final.*"),
    *("positional_embedding", "text_projection*", "logit_scale", "logit_bias"),
)
"""What models of images and text have beside their image tower."""

_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""What `torch.compile`, checkpointed activations and FSDP put into the names of weights."""

_HEAD = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")


@dataclass(frozen=True)
class WeightSet:
    """The weights of one model.

    Attributes:
        tensors: By the names of the model's own code, which are timm's or such as timm reads.
        front: What stands before these names in the file, with its dot.
        left_out: What the file holds beside them, by the first parts of its names.
        others: Names of the other sets of the file.
    """

    tensors: dict[str, Tensor]
    front: str = ""
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the set is called."""
        return self.front.removesuffix(".")

    def notes(self, shown: str) -> list[str]:
        """What the user should know about which weights of a file were taken, which is called so."""
        told = []
        if self.others:
            others = " and ".join(map(repr, self.others))
            told.append(
                f"Of {shown} the weights {self.name!r} are taken, not {others}: --weights-key {self.others[0]} takes "
                f"those."
            )
        if self.left_out:
            after = f"outside of {self.name!r}" if self.name else "no part of the model"
            told.append(f"Left out of {shown}, as {after}: {', '.join(map(repr, self.left_out))}.")
        return told

    def named(self, key: str) -> str:
        """A key of the model as the file would have it."""
        return self.front + key


def choose_weights(checkpoint: Any, wanted: str | None, shown: str) -> WeightSet:
    """Find the weights of a ViT in what a file holds.

    Args:
        checkpoint: What the file holds.
        wanted: Name of the set to take, or what it begins with; None takes the one by `PREFERRED`.
        shown: What to call the file in an error.

    Raises:
        ConfigError: If it has no such set.
        CheckpointError: If it holds no tensors with names, or an adapter was not merged into the weights.
    """
    if not isinstance(checkpoint, Mapping):
        raise _without_names(shown, f"a {type(checkpoint).__name__}")
    # The name of each tensor, with the dictionary in which it stands.
    found = {name: (place, tensor) for name, place, tensor in flat_tensors(checkpoint)}
    if not found:
        raise _without_names(shown, "a dictionary without any")
    found = _merged(found, shown)
    fronts = _fronts(found) or _largest(found)
    chosen = _choose(fronts, wanted, shown)
    place, inside = fronts[chosen], tuple(front for front in fronts if len(front) > len(chosen))
    beside = {name: tensor for name, (other, tensor) in found.items() if other == place and not name.startswith(inside)}
    own = {name.removeprefix(chosen): tensor for name, tensor in beside.items() if name.startswith(chosen)}
    if any(key.startswith(_OPEN_CLIP) and not key.startswith(_TRUNK) for key in own):
        own = {key: value for key, value in own.items() if key.startswith(_OPEN_CLIP)}
    head = _head_beside(own, chosen, {name: tensor for name, (_, tensor) in found.items()})
    taken = {*(chosen + key for key in own), *head}
    others = tuple(front for front in fronts if front != chosen)
    rest = [name.removeprefix(place) for name in beside if name not in taken and not name.startswith(others)]
    known = (*_PRETRAINING_HEADS, *_TEXT_TOWER)
    left_out = dict.fromkeys(
        name.partition(".")[0] for name in rest if not any(_matches(tail, known) for tail in _tails(name))
    )
    return WeightSet(
        _plain({**own, **dict(head.values())}),
        chosen,
        tuple(left_out),
        tuple(front.removesuffix(".") for front in others),
    )


def _without_names(shown: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{shown} should hold tensors with names, as model.state_dict() gives them, but holds {what}: save these."
    )


def begin_alike(keys: Iterable[str]) -> str:
    """What all keys begin with, up to a dot; empty if they do not begin alike."""
    first = {key.partition(".")[0] if "." in key else "" for key in keys}
    return f"{first.pop()}." if len(first) == 1 and "" not in first else ""


def flat_tensors(values: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, str, Tensor]]:
    """The tensors in nested dictionaries: the name of each, that of the dictionary in which it stands, itself."""
    for key, value in values.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Mapping):
            yield from flat_tensors(value, f"{place}{key}.")
        elif isinstance(value, Tensor):
            yield place + key, place, value


def _merged(found: dict[str, tuple[str, Tensor]], shown: str) -> dict[str, tuple[str, Tensor]]:
    """Tensors under their names before PEFT wrapped the layers or PyTorch the blocks; what stands before all stays.

    Raises:
        CheckpointError: If an adapter lies beside them, whose weights are not in them.
    """
    check_no_adapter_among(found, shown)
    renamed = {}
    for name, value in found.items():
        if not is_copy(name):
            front, blocks, rest = before_peft(name).partition("blocks.")
            renamed[front + blocks + without_wrappers(rest)] = value
    return renamed


def is_copy(name: str) -> bool:
    """Whether a tensor is of a module that PEFT trained a copy of, which is used in its place."""
    return ".original_module." in name


def without_wrappers(name: str) -> str:
    """The name of a tensor before PyTorch wrapped modules."""
    return _WRAPPERS.sub("", name)


def before_peft(name: str) -> str:
    """The name of a tensor before PEFT wrapped its layer."""
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name.replace(".base_layer.", "."))


def _fronts(found: Mapping[str, tuple[str, Tensor]]) -> dict[str, str]:
    """What stands before the name of a patch embedding, for each of them, with the dictionary in which it stands."""
    return {
        name.removesuffix(end): place
        for name, (place, _) in found.items()
        for end in _ANCHORS
        if name == end or name.endswith(f".{end}")
    }


def _largest(found: Mapping[str, tuple[str, Tensor]]) -> dict[str, str]:
    """The dictionary with the most tensors, where nothing in the file is a patch embedding."""
    places = [place for place, _ in found.values()]
    largest = max(dict.fromkeys(places), key=places.count)
    return {largest: largest}


def _choose(fronts: Iterable[str], wanted: str | None, shown: str) -> str:
    def rank(front: str) -> list[int]:
        parts = front.removesuffix(".").split(".")
        return [PREFERRED.index(part) if part in PREFERRED else len(PREFERRED) for part in parts]

    meant = [front for front in fronts if wanted is None or front.startswith(f"{wanted}.")]
    if not meant:
        names = ", ".join(repr(front.removesuffix(".")) for front in fronts if front) or "no names before its keys"
        raise ConfigError(f"{shown} has no weights {wanted!r}, but {names}: pass one of these with --weights-key.")
    return min(meant, key=rank)


def _head_beside(own: Mapping[str, Tensor], front: str, found: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """A head that stands beside the weights that it belongs to: its keys and tensors, by its names in the file."""
    if not front or "head.weight" in own:
        return {}
    parent = ".".join(front.split(".")[:-2])
    parent = f"{parent}." if parent else ""
    if not front.endswith(_TRUNK):
        return {parent + key: (key, found[parent + key]) for key in _HEAD if parent + key in found}
    weight, bias = f"{parent}head.proj.weight", f"{parent}head.proj.bias"
    if weight not in found:
        return {}
    # open_clip's projection has no bias unless it was asked for.
    value = found.get(bias, found[weight].new_zeros(len(found[weight])))
    return {weight: ("head.weight", found[weight]), bias: ("head.bias", value)}


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without heads of pretraining, their layers numbered one by one."""
    state = {key: value for key, value in state.items() if not _matches(key, _PRETRAINING_HEADS)}
    # DINOv2 splits its layers into chunks when it trains: blocks.<chunk>.<layer>.
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}


def _tails(name: str) -> list[str]:
    """A name, and what is left of it without its first parts."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
