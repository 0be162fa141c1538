"""Finds the runs of blocks of a model that images go through."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from tosa_cli.config import Selection
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families import kind_of, why_ineligible
from tosa_cli.model.families.base import OpaqueBlock
from tosa_cli.model.runs.block import TosaBlock
from tosa_cli.model.runs.run import Run

ADDED = "tosa"
"""Name of the module that a run adds to the one that holds its blocks."""


@dataclass(frozen=True)
class ImageRun:
    """A run of blocks that images go through.

    Attributes:
        path: Name of the list of blocks in the model, as `backbone.encoder.layer`.
        layers: The list itself.
        owner: The module that holds the list.
        tower: The smallest part of the model that turns images into patches and runs the blocks.
        patches: What turns an image into patches.
    """

    path: str
    layers: nn.ModuleList | nn.Sequential
    owner: nn.Module
    tower: nn.Module
    patches: nn.Conv2d

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, as they are without a conversion."""
        return [_source(layer) for layer in self.layers]

    @property
    def eligible_layers(self) -> tuple[int, ...]:
        """The layers, from 1, that can be ToSA layers, with a selector that reads no maps."""
        layers = range(1, len(self.layers) + 1)
        return tuple(layer for layer in layers if self.why_ineligible(layer, "shared") is None)

    def why_ineligible(self, layer: int, selection: Selection) -> str | None:
        """Why a layer cannot be a ToSA layer, in words that follow "Layer 3"; None where it can."""
        block = self.blocks[layer - 1]
        plain = getattr(kind_of(block), "num_plain_layers", lambda _: None)(block)
        if plain is not None and layer > plain:
            return f"cannot select tokens, as queries enter behind layer {plain}."
        return why_ineligible(block, selection)

    @property
    def run(self) -> Run | None:
        """What was added by a conversion; None without one."""
        first = next(iter(self.layers), None)
        return first.run if isinstance(first, TosaBlock) else None


def find_runs(model: nn.Module) -> list[ImageRun]:
    """Find the runs of a model: lists of blocks that are known, with what turns images into patches for them.

    Towers for text have the same blocks in some models; they have no patches.

    Args:
        model: Any model.
    """
    modules = dict(model.named_modules())
    lists = {path: layers for path, layers in modules.items() if _is_run(layers)}
    found = []
    for path, layers in lists.items():
        width = _width(_source(next(iter(layers.children()))))
        for above in _above(path):
            convs = {name: each for name, each in _inside(modules, above) if _makes_patches(each, width)}
            if convs:
                break
        else:
            continue
        name, conv = next(iter(convs.items()))
        # The patches are those of the nearest run.
        nearest = next(place for place in _above(name) if any(other for other, _ in _inside(lists, place)))
        if path not in dict(_inside(lists, nearest)):
            continue
        found.append(ImageRun(path, layers, modules[path.rpartition(".")[0]], modules[above], conv))
    return found


def converted_runs(model: nn.Module) -> list[ImageRun]:
    """The runs of a model that were converted."""
    return [found for found in find_runs(model) if found.run is not None]


def check_runs(model: nn.Module) -> list[ImageRun]:
    """The runs of a model in which tokens can be selected.

    Raises:
        UnsupportedModelError: If there is none: a sentence that says why.
    """
    runs, reasons = [], []
    for found in find_runs(model):
        why = [found.why_ineligible(layer, "shared") for layer in range(1, len(found.layers) + 1)]
        if any(reason is None for reason in why):
            runs.append(found)
        else:
            reasons.append(f"layer 1 of its {found.path} {why[0]}")
    if runs:
        return runs
    reasons = reasons or [f"its {path} {reason}" for path, reason in _refused(model)]
    name = type(model).__name__
    if reasons:
        raise UnsupportedModelError(f"{name} cannot be converted: {reasons[0].removesuffix('.')}.")
    lists = {f"{path} of {type(layers[0]).__name__}": None for path, layers in _lists(model) if len(layers) > 1}
    seen = f" Its lists of modules are {', '.join(list(lists)[:5])}." if lists else ""
    raise UnsupportedModelError(
        f"{name} cannot be converted: it has no list of blocks of a type that is known, with a convolution before them "
        f"that makes patches.{seen} Known are the blocks of timm's ViTs, and those of transformers' ViT, DeiT, DINOv2, "
        f"CLIP, SigLIP, OWL, YOLOS, ViTPose and DPT."
    )


def _is_run(module: nn.Module) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) == 0:
        return False
    kinds = [kind_of(_source(block)) for block in module]
    return all(not isinstance(kind, OpaqueBlock) for kind in kinds)


def _refused(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Lists of blocks that are known not to convert, with the reason."""
    for path, layers in _lists(model):
        for number, block in enumerate(layers, start=1):
            kind = kind_of(block)
            if isinstance(kind, OpaqueBlock) and kind.reason is not None:
                yield path, f"has a {type(block).__name__} as layer {number}, which {kind.reason}"


def _lists(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            yield path, module


def _source(layer: nn.Module) -> nn.Module:
    return layer.block if isinstance(layer, TosaBlock) else layer


def _width(block: nn.Module) -> int:
    """Width of the tokens of a block: of its first norm."""
    for module in block.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 1:
            return int(weight.shape[0])
    return 0


def _makes_patches(module: nn.Module, width: int) -> bool:
    return isinstance(module, nn.Conv2d) and module.out_channels == width and tuple(module.stride) == module.kernel_size


def _above(path: str) -> Iterator[str]:
    """The places above one, the nearest first; the model itself is the empty name."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _inside(modules: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    prefix = f"{place}." if place else ""
    return ((path, module) for path, module in modules.items() if path.startswith(prefix) and path != place)


def own_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a converted model is made for."""
    found = converted_runs(model)[0]
    assert found.run is not None
    return (found.patches.in_channels, *found.run.patch_embed.img_size)
