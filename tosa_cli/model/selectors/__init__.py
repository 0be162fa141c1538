"""What ranks the tokens, by name: one file a selector."""

from tosa_cli.model.selectors.attention import AttentionSelector
from tosa_cli.model.selectors.base import Entry, Ranks, Selector, match
from tosa_cli.model.selectors.previous import PreviousSelector
from tosa_cli.model.selectors.probe import Probe
from tosa_cli.model.selectors.random import RandomSelector
from tosa_cli.model.selectors.similarity import SimilaritySelector
from tosa_cli.model.selectors.ward import WardSelector

SELECTORS: dict[str, type[Selector]] = {
    "attention": AttentionSelector,
    "similarity": SimilaritySelector,
    "ward": WardSelector,
    "probe": Probe,
    "previous": PreviousSelector,
    "random": RandomSelector,
}

__all__ = [
    "SELECTORS",
    "AttentionSelector",
    "Entry",
    "PreviousSelector",
    "Probe",
    "RandomSelector",
    "Ranks",
    "Selector",
    "SimilaritySelector",
    "WardSelector",
    "match",
]
