"""Selectors and bypasses by name, with the facts on which settings depend. Imports no torch.

A new one is an entry here, and a file of its name in `tosa_cli/model/selectors` or `tosa_cli/model/bypasses`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True)
class SelectorFacts:
    """What settings need to know of a selector.

    Attributes:
        reads_maps: It reads the attention logits of the layer before, and so needs a standard layer there.
        per_head: It has a score of each token for each head.
        compares_keys: It compares tokens by their keys.
        is_trained: It has convolutions, which `tosa distill` trains step by step.
        is_fitted: It has parameters that are fitted in closed form.
    """

    reads_maps: bool = False
    per_head: bool = False
    compares_keys: bool = False
    is_trained: bool = False
    is_fitted: bool = False


@dataclass(frozen=True, kw_only=True)
class BypassFacts:
    """What settings need to know of a bypass.

    Attributes:
        per_head: It goes with selection by head, in which a token is skipped by some heads only.
        matches_tokens: It gives a skipped token what kept ones that are like it get.
        is_fitted: It has parameters that are fitted in closed form.
    """

    per_head: bool = False
    matches_tokens: bool = False
    is_fitted: bool = False


SELECTORS: dict[str, SelectorFacts] = {
    "attention": SelectorFacts(reads_maps=True, per_head=True, is_trained=True),
    "similarity": SelectorFacts(compares_keys=True),
    "probe": SelectorFacts(is_fitted=True),
    "previous": SelectorFacts(reads_maps=True, per_head=True),
    "random": SelectorFacts(per_head=True),
}
"""All selectors, in the order in which they are listed."""

BYPASSES: dict[str, BypassFacts] = {
    "identity": BypassFacts(per_head=True),
    "linear": BypassFacts(is_fitted=True),
    "nearest": BypassFacts(matches_tokens=True),
    "nearest+affine": BypassFacts(matches_tokens=True, is_fitted=True),
    "nearest+linear": BypassFacts(matches_tokens=True, is_fitted=True),
}
"""All bypasses, in the order in which they are listed."""

if TYPE_CHECKING:
    Selector = str
    Bypass = str
else:
    # What checks values and makes options reads the names here.
    Selector = Literal[tuple(SELECTORS)]
    Bypass = Literal[tuple(BYPASSES)]
Selection = Literal["shared", "per-head"]
