"""Other ways to spare tokens, beside a converted model: at the same true MACs, in turns, on the same images.

Token merging, un-merged once at the end, by both of its schedules (`merge`, `merge-decreasing`), or in every layer
(`merge-unmerge`), EViT's pruning by the class token's attention (`prune`), IPCV's copying of what neighbours change by
(`copy`), a smaller input whose tokens are resized (`smaller`), A-MoD's routing by the layer before (`previous`) and
chance (`random`). Each gives every token, so all are compared by all tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.measure.agreement import AgreementReport
from tosa_cli.measure.speed import Conditions, Speedup, Timing, time_in_turns
from tosa_cli.measure.turns import Clock, run_in_turns
from tosa_cli.model.families import Backbone, has_class_token
from tosa_cli.model.flops import count_flops, solve_keep_rate
from tosa_cli.model.flops_report import GIGA
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.peers.copied_flops import count_copied_macs, solve_copied_keep_rate
from tosa_cli.peers.copying import CopiedViT, paper_layer
from tosa_cli.peers.merged_flops import count_merged_macs, solve_num_merged
from tosa_cli.peers.merging import MergedViT, MergeMode
from tosa_cli.peers.pruned_flops import count_pruned_macs, solve_pruned_keep_rate
from tosa_cli.peers.pruning import PrunedViT, paper_layers
from tosa_cli.peers.smaller import SmallerInput, solve_img_size

PeerName = Literal["merge", "merge-decreasing", "merge-unmerge", "prune", "copy", "smaller", "previous", "random"]
PEERS: tuple[PeerName, ...] = get_args(PeerName)


@dataclass(frozen=True)
class Peer:
    """A model to compare with.

    Attributes:
        model: The model; it shares the dense model's weights.
        gmacs: Its MACs for one image, in GMACs, all included.
        reduction: Share of the dense MACs that it saves.
        settings: What it was set to, as plain JSON values.
    """

    model: nn.Module
    gmacs: float
    reduction: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """Cosine of final tokens to the dense model's, over images; of the class token None where the model has none.

    Attributes:
        patch_cosine: Mean over images of the mean over the patches of each.
        class_cosine: Mean over images.
        patch_median: Median over images.
        class_median: Median over images.
        patch_worst_tenth: What nine of ten images are above.
        class_worst_tenth: What nine of ten images are above.
    """

    patch_cosine: float
    class_cosine: float | None
    patch_median: float
    class_median: float | None
    patch_worst_tenth: float
    class_worst_tenth: float | None


@dataclass(frozen=True)
class PeerRow:
    """One model of the comparison: its settings, time, speed against the dense model, and quality if measured."""

    gmacs: float
    reduction: float
    settings: dict[str, Any]
    timing: Timing
    speed: Speedup
    ideal_speedup: float
    quality: Quality | AgreementReport | None

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values, without nesting but for the settings."""
        own = {"gmacs": self.gmacs, "reduction": self.reduction, "settings": self.settings}
        quality = vars(self.quality) if self.quality else {}
        return {**own, **vars(self.timing), **vars(self.speed), "ideal_speedup": self.ideal_speedup, **quality}


def build_peers(dense: Backbone, target_reduction: float) -> tuple[dict[str, Peer], dict[str, str]]:
    """Make all peers that reach a reduction of MACs.

    Args:
        dense: The dense timm ViT, whose weights they share; it is not changed.
        target_reduction: Share of the dense MACs to save.

    Returns:
        The peers by name; and for each that cannot be had the reason.

    Raises:
        ConfigError: If the reduction is not between 0 and 1.
    """
    if not 0 < target_reduction < 1:
        raise ConfigError(
            f"Peers are compared at the model's reduction of MACs, but that is {target_reduction:.1%}: convert with a "
            f"smaller --keep-rate."
        )
    peers: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in PEERS:
        try:
            peers[name] = make_peer(dense, name, target_reduction)
        except (ConfigError, UnsupportedModelError) as error:
            missing[name] = str(error)
    return peers, missing


def make_peer(dense: Backbone, name: PeerName, target_reduction: float) -> Peer:
    """Make one peer that reaches a reduction of MACs.

    Args:
        dense: The dense timm ViT, whose weights it shares; it is not changed.
        name: Which peer.
        target_reduction: Share of the dense MACs to save, between 0 and 1.

    Raises:
        ConfigError: If the reduction is out of its reach.
        UnsupportedModelError: If it cannot be made of this model.
    """
    if name in ("merge", "merge-decreasing", "merge-unmerge"):
        mode: MergeMode = "merge-unmerge" if name == "merge-unmerge" else "merge"
        num_merged = solve_num_merged(dense, mode, target_reduction, decreasing=name == "merge-decreasing")
        macs = count_merged_macs(dense, mode, num_merged)
        return _shrunk_peer(dense, MergedViT(dense, mode, num_merged), macs, {"num_merged": list(num_merged)})
    if name == "prune":
        layers = paper_layers(len(dense.blocks))
        keep_rate = solve_pruned_keep_rate(dense, layers, target_reduction)
        pruned = PrunedViT(dense, keep_rate, layers)
        return _shrunk_peer(dense, pruned, count_pruned_macs(dense, keep_rate, layers), pruned.settings)
    if name == "copy":
        layer = paper_layer(len(dense.blocks))
        keep_rate = solve_copied_keep_rate(dense, layer, target_reduction)
        copied = CopiedViT(dense, keep_rate, layer)
        return _shrunk_peer(dense, copied, count_copied_macs(dense, keep_rate, layer), copied.settings)
    if name == "smaller":
        size, gmacs = solve_img_size(dense, target_reduction)
        smaller = SmallerInput(dense, size)
        return Peer(smaller, gmacs, 1 - gmacs / count_flops(dense).dense_gmacs, smaller.settings)
    every_other = tuple(range(2, len(dense.blocks) + 1, 2))
    config = solve_keep_rate(dense, TosaConfig(layers=every_other, selector=name), target_reduction)
    flops = count_flops(dense, config)
    return Peer(TosaViT(dense, config), flops.gmacs, flops.reduction, config.to_dict())


@torch.inference_mode()
def measure_quality(
    dense: Backbone,
    models: Mapping[str, nn.Module],
    images: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    advance: Callable[[int], None] = lambda num_images: None,
) -> tuple[dict[str, Quality], int]:
    """Compare final tokens of models with the dense model's, on the same images.

    Args:
        dense: The dense timm ViT.
        models: Other models by name, on the same device and of the same type.
        images: `Images` to read once, in order.
        device: Where the models are.
        dtype: Type of their weights.
        advance: Told how many images are done.

    Returns:
        Quality of each model, and the number of images.

    Raises:
        DataError: If no image could be read.
    """
    prefix: int = dense.num_prefix_tokens

    def features(model: Any) -> Callable[[Tensor], Tensor]:
        return lambda inputs: model.forward_features(inputs.to(dtype))

    every: dict[str, Any] = {"": dense, **models}
    forwards = {name: features(model.eval()) for name, model in every.items()}
    patches: dict[str, list[Tensor]] = {name: [] for name in models}
    classes: dict[str, list[Tensor]] = {name: [] for name in models}
    clock = Clock()
    turns = run_in_turns(forwards, images, clock, device=device, amp="no", strict=False, advance=advance)
    for _, tokens in turns:
        whole = tokens.pop("").float()
        for name, final in tokens.items():
            cosine = F.cosine_similarity(final.float(), whole, dim=-1).cpu()
            patches[name].append(cosine[:, prefix:].mean(dim=1))
            classes[name].append(cosine[:, 0])
    quality = {}
    for name in models:
        patch = torch.cat(patches[name])
        first = torch.cat(classes[name]) if has_class_token(dense) else None
        quality[name] = Quality(
            patch_cosine=patch.mean().item(),
            class_cosine=None if first is None else first.mean().item(),
            patch_median=patch.median().item(),
            class_median=None if first is None else first.median().item(),
            patch_worst_tenth=patch.quantile(0.1).item(),
            class_worst_tenth=None if first is None else first.quantile(0.1).item(),
        )
    return quality, clock.samples


@dataclass(frozen=True)
class PeersReport:
    """Models side by side: the dense one first, then the converted one, then its peers.

    Attributes:
        conditions: What the times were measured under.
        models: One row a model.
        missing: Peers that cannot be had, with the reason.
    """

    conditions: Conditions
    models: dict[str, PeerRow]
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        rows = {name: row.to_dict() for name, row in self.models.items()}
        return {**vars(self.conditions), "models": rows, "missing": self.missing}


def compare_peers(
    models: Mapping[str, Peer],
    images: Tensor,
    *,
    missing: Mapping[str, str],
    quality: Mapping[str, Quality | AgreementReport],
    rounds: int = 15,
    seconds: float = 0.5,
    compiled: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> PeersReport:
    """Time models in turns, the dense one first, and put all that is known of each beside it.

    Args:
        models: Models by name; speed is told against the first, which is the dense one.
        images: A batch (B, C, height, width) on the device and of the type to measure.
        missing: Peers that cannot be had, with the reason.
        quality: Quality of each model, where it was measured.
        rounds: Turns of each model.
        seconds: Least time of a turn.
        compiled: Measure all under `torch.compile`.
        advance: Told after each turn how many images it computed.
    """
    timed = time_in_turns(
        {name: peer.model for name, peer in models.items()},
        images,
        rounds=rounds,
        seconds=seconds,
        compiled=compiled,
        advance=advance,
    )
    dense_gmacs = next(iter(models.values())).gmacs
    rows = {
        name: PeerRow(
            gmacs=peer.gmacs,
            reduction=peer.reduction,
            settings=peer.settings,
            timing=timed.timings[name],
            speed=timed.speedups[name],
            ideal_speedup=dense_gmacs / peer.gmacs,
            quality=quality.get(name),
        )
        for name, peer in models.items()
    }
    return PeersReport(timed.conditions, rows, dict(missing))


def _shrunk_peer(dense: Backbone, model: nn.Module, macs: int, settings: dict[str, Any]) -> Peer:
    return Peer(model, macs / GIGA, 1 - macs / (count_flops(dense).dense_gmacs * GIGA), settings)
