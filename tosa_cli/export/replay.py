"""The original with the choices of an exported model, and what the original's own scores say to them.

Another runtime adds up in another order, so where two scores are equal but for rounding it may select another token,
and then its outputs differ by far more than rounding, and rightly. So choices and numbers are held apart: every choice
must be one that the original could have made, and given the choices the numbers must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tosa_cli.model.choice import Choice
from tosa_cli.model.grouping import group_means
from tosa_cli.model.matching import length_scale, other_indices, partner_weights
from tosa_cli.model.selection import gather_tokens
from tosa_cli.model.selectors import Entry, Ranks, Selector
from tosa_cli.model.selectors.base import at_least_rounding
from tosa_cli.model.selectors.similarity import EXACT, key_size
from tosa_cli.model.stream import Stream, run_all
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class Replay:
    """What the original makes of the choices of an exported model.

    Attributes:
        tokens: Final normalised tokens (B, N, D) of the original with these choices.
        same: Whether the original chooses just so in every layer, (B,).
        margin: By how much its scores speak against the choices at most, as a share of a usual score, (B,): 0 where a
            choice is among equal scores, infinite where it is none at all.
    """

    tokens: Tensor
    same: Tensor
    margin: Tensor


@torch.no_grad()
def replay(model: TosaViT, images: Tensor, choices: Mapping[str, Tensor]) -> Replay:
    """Run the original with given choices.

    Args:
        model: The original, in evaluation mode.
        images: Images (B, C, height, width).
        choices: By the names of `name_choices`: keep indices (B, K), or (B, H, K) for per-head selection, partners
            (B, S, k) where tokens are matched, and groups (B, N) where they are in groups.
    """
    judge = _Judge(model, choices, len(images))
    stream = Stream(*model.embed(images))
    run_all(model.layers(stream, choose=judge.choose))
    return Replay(model.norm(stream.tokens), judge.same, judge.margin)


class _Judge:
    """Hands out given choices in the place of a model's own, and takes note of what its scores say against them."""

    def __init__(self, model: TosaViT, choices: Mapping[str, Tensor], images: int) -> None:
        self.model = model
        self.choices = choices
        self.same = torch.ones(images, dtype=torch.bool)
        self.margin = torch.zeros(images, dtype=torch.float64)

    def choose(self, layer: int, stream: Stream, entry: Entry) -> Choice:
        """The given choice of a layer, or the model's own where it cannot be run."""
        selector = self.model.selector(layer)
        own = self.model.choose(layer, stream, entry)
        keep = self.choices[f"keep_indices_{layer}"]
        self.same &= (own.keep_indices == keep).flatten(1).all(1)
        keep, against = _judge_kept(selector.ranks(entry), entry, own, keep)
        self.margin = self.margin.maximum(against)
        if own.groups is not None:
            groups = self.choices[f"groups_{layer}"]
            self.same &= (own.groups == groups).all(1)
            choice, against = _judge_groups(entry, own, keep, groups)
            self.margin = self.margin.maximum(against)
            return choice
        if own.partners is None:
            return Choice(keep, None if own.skip_indices is None else other_indices(keep, entry.shape[1]))
        partners = self.choices[f"partners_{layer}"]
        self.same &= (own.partners.sort(-1).values == partners.sort(-1).values).flatten(1).all(1)
        choice, against = _judge_partners(selector, entry, keep, partners)
        self.margin = self.margin.maximum(against)
        return choice


def _judge_kept(ranks: Ranks | None, entry: Entry, own: Choice, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Keep indices that can be run, and what a layer's ranks say against them, (B,)."""
    prefix, length = entry.num_prefix_tokens, entry.shape[1]
    first = torch.arange(prefix)
    valid = (keep[..., :prefix] == first).all(-1) & (keep.diff(dim=-1) > 0).all(-1) & (keep[..., -1] < length)
    keep = torch.where(valid[..., None], keep, own.keep_indices)
    against = torch.where(valid, 0.0, torch.inf).double()
    if ranks is not None:
        values, unit = ranks
        is_kept = torch.zeros(values.shape, dtype=torch.bool).scatter(-1, keep, True)
        best_skipped = values.masked_fill(is_kept, -torch.inf)[..., prefix:].amax(-1)
        worst_kept = values.masked_fill(~is_kept, torch.inf)[..., prefix:].amin(-1)
        # Two infinite ranks: a token was skipped that may never be, and all that were kept may not either.
        excess = torch.nan_to_num(best_skipped - worst_kept, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        against = against.maximum(excess.clamp_min(0) / unit.view(-1, *[1] * (excess.ndim - 1)))
    return keep, against.flatten(1).amax(1) if against.ndim > 1 else against


def _judge_groups(entry: Entry, own: Choice, keep: Tensor, groups: Tensor) -> tuple[Choice, Tensor]:
    """A choice with the given groups, and how much more they spread than a layer's own, (B,)."""
    assert entry.means is not None and own.groups is not None
    count = keep.shape[1]
    valid = ((groups >= 0) & (groups < count)).all(1)
    groups = torch.where(valid[:, None], groups, own.groups)
    valid &= (groups.gather(1, keep) == torch.arange(count)).all(1)
    valid &= (groups[:, : entry.num_prefix_tokens] == own.groups[:, : entry.num_prefix_tokens]).all(1)
    before = entry.before
    if before is not None and before.groups is not None:  # groups only grow
        valid &= (groups == groups.gather(1, before.keep_indices).gather(1, before.groups)).all(1)
    keep = torch.where(valid[:, None], keep, own.keep_indices)
    groups = torch.where(valid[:, None], groups, own.groups)
    given = Choice(keep, groups=groups, sizes=torch.zeros(keep.shape).scatter_add(1, groups, torch.ones(groups.shape)))
    spread, least = _spread(entry, given), _spread(entry, own)
    means = entry.means.double()
    usual = (means - means.mean(1, keepdim=True)).square().sum(-1).mean(1)
    excess = (spread - least).clamp_min(0) / at_least_rounding(usual)
    return given, torch.where(valid, torch.nan_to_num(excess, nan=torch.inf), torch.inf)


def _spread(entry: Entry, choice: Choice) -> Tensor:
    """Squared distances of what enters a layer to the means of a choice's groups, each times its size: a sum, (B,)."""
    assert entry.means is not None and choice.groups is not None and choice.sizes is not None
    means, position, sizes = entry.means.double(), choice.groups, torch.ones(choice.groups.shape)
    if entry.before is not None and entry.before.sizes is not None:
        position, sizes = position.gather(1, entry.before.keep_indices), entry.before.sizes
    away = means - gather_tokens(group_means(means, sizes, position, choice.sizes), position)
    return (away.square().sum(-1) * sizes).sum(1)


def _judge_partners(selector: Selector, entry: Entry, keep: Tensor, partners: Tensor) -> tuple[Choice, Tensor]:
    """A choice with the given partners, and what a layer's keys say against them, (B,)."""
    assert entry.keys is not None
    keys, skip = entry.keys.double(), other_indices(keep, entry.shape[1])
    distances = torch.cdist(gather_tokens(keys, skip), gather_tokens(keys, keep), compute_mode=EXACT)
    eligible = distances.masked_fill(~selector.may_be_partner(keep, entry)[:, None], torch.inf)
    count = partners.shape[-1]
    in_order = partners.sort(-1).values
    valid = (in_order >= 0).all(-1) & (in_order < keep.shape[1]).all(-1) & (in_order.diff(dim=-1) > 0).all(-1)
    nearest = eligible.topk(count, largest=False)
    partners = torch.where(valid[..., None], partners, nearest.indices)
    excess = (eligible.gather(-1, partners).sort(-1).values - nearest.values).amax(-1) / key_size(keys)[:, None]
    against = torch.where(valid, excess, torch.inf).flatten(1).amax(1) if skip.shape[1] else torch.zeros(len(keep))
    scale = length_scale(keys.shape[-1])
    choice = Choice(keep, skip, partners, partner_weights((scale * distances.gather(-1, partners)).square()))
    return choice, torch.nan_to_num(against.double(), nan=torch.inf)
