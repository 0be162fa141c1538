"""Selectors and bypasses by name, with the facts on which settings depend. Imports no torch.

A new one is an entry here, and a file of its name in `tosa_cli/model/selectors` or `tosa_cli/model/bypasses`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True)
class SelectorFacts:
    """What settings need to know of a selector.

    Attributes:
        about: What it does, for help texts.
        reads_maps: It reads the attention logits of the layer before, and so needs a standard layer there.
        per_head: It has a score of each token for each head.
        compares_keys: It compares tokens by their keys.
        groups_tokens: It puts tokens into groups, and so goes with a bypass that computes groups.
        is_trained: It has convolutions, which `tosa distill` trains step by step.
        is_fitted: It has parameters that are fitted in closed form.
        is_random: It selects other tokens in each pass.
    """

    about: str
    reads_maps: bool = False
    per_head: bool = False
    compares_keys: bool = False
    groups_tokens: bool = False
    is_trained: bool = False
    is_fitted: bool = False
    is_random: bool = False


@dataclass(frozen=True, kw_only=True)
class BypassFacts:
    """What settings need to know of a bypass.

    Attributes:
        about: What it does, for help texts.
        per_head: It goes with selection by head, in which a token is skipped by some heads only.
        matches_tokens: It gives a skipped token what kept ones that are like it get.
        groups_tokens: It computes one token for each group, and so goes with a selector that makes groups.
        is_fitted: It has parameters that are fitted in closed form.
    """

    about: str
    per_head: bool = False
    matches_tokens: bool = False
    groups_tokens: bool = False
    is_fitted: bool = False


SELECTORS: dict[str, SelectorFacts] = {
    "attention": SelectorFacts(
        about="the trained selector of paper 2.2", reads_maps=True, per_head=True, is_trained=True
    ),
    "similarity": SelectorFacts(
        about="skips the tokens that have the nearest partner among the others, and needs no training",
        compares_keys=True,
    ),
    "ward": SelectorFacts(
        about="merges tokens into groups, those first that add least to the spread in groups, and needs no training",
        groups_tokens=True,
    ),
    "probe": SelectorFacts(
        about="a linear map of the incoming tokens that predicts how wrong the bypass is about a token", is_fitted=True
    ),
    "previous": SelectorFacts(about="the map of the layer before, a baseline", reads_maps=True, per_head=True),
    "random": SelectorFacts(about="a baseline", per_head=True, is_random=True),
}
"""All selectors, in the order in which they are listed."""

BYPASSES: dict[str, BypassFacts] = {
    "identity": BypassFacts(about="leaves it as it is (the paper)", per_head=True),
    "linear": BypassFacts(about="maps it", is_fitted=True),
    "nearest": BypassFacts(about="gives it the update of the kept tokens that are most like it", matches_tokens=True),
    "nearest+affine": BypassFacts(
        about="corrects that update channel by channel by the difference between it and them",
        matches_tokens=True,
        is_fitted=True,
    ),
    "nearest+linear": BypassFacts(
        about="corrects that update by a linear map of it", matches_tokens=True, is_fitted=True
    ),
    "mean": BypassFacts(
        about="computes the mean of each group, and gives its update to all that are in it", groups_tokens=True
    ),
}
"""All bypasses, in the order in which they are listed."""


def describe(facts: Mapping[str, SelectorFacts] | Mapping[str, BypassFacts]) -> str:
    """What each selector or bypass does, for help texts."""
    return " ".join(f"{name}: {fact.about}." for name, fact in facts.items())


if TYPE_CHECKING:
    Selector = str
    Bypass = str
else:
    # What checks values and makes options reads the names here.
    Selector = Literal[tuple(SELECTORS)]
    Bypass = Literal[tuple(BYPASSES)]
Selection = Literal["shared", "per-head"]
