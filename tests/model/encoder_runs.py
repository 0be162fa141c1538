"""Converted encoders, and the maps that they and the dense ones give."""

from typing import Any

import pytest
import torch

from .intermediates import flatten
from .test_backbone import SHRUNK
from .tiny_models import MODELS, make_tosa, make_vit, randomize_

KINDS: dict[str, dict[str, Any]] = {
    **{name: {"img_size": 64} for name in MODELS},
    "deit_tiny_distilled_patch16_224": SHRUNK,
    "vit_base_patch16_rpn_224": SHRUNK,
    "vit_base_patch16_xp_224": SHRUNK,
    "vit_small_patch14_reg4_dinov2": {**SHRUNK, "img_size": 56},
    "vit_base_patch16_siglip_gap_224": SHRUNK,
    "eva02_tiny_patch14_224": {**SHRUNK, "img_size": 56},
    "vit_small_patch16_dinov3": SHRUNK,
    "vit_small_patch16_rope_mixed_224": SHRUNK,
}
"""Tiny models of every kind: with and without a class token, registers, a second prefix token; every kind of block; and
three that are told where their tokens stand."""


SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"selector": "attention"},
    "paper, all query rows": {"selector": "attention", "query_rows": "all", "layers": (2, 5)},
    "probe": {"selector": "probe", "bypass": "linear", "layers": (1, 2, 3)},
    "matched": {"selector": "similarity", "bypass": "nearest+affine", "span": 2, "layers": (1, 2, 3, 4, 6)},
    "previous, nearest": {"selector": "previous", "bypass": "nearest"},
    "random": {"selector": "random"},
}


PER_HEAD = {"selector": "attention", "selection": "per-head"}


settings = pytest.mark.parametrize("setting", SETTINGS)


def make_predictor(kind: str, **args: Any) -> Any:
    return make_vit(kind, **{**KINDS[kind], **args})


def make_pair(kind: str, setting: str, keep_rate: float = 0.5, **args: Any) -> tuple[Any, Any]:
    """A dense model, and a converted one with bypasses as if fitted."""
    dense = make_predictor(kind, **args)
    model = make_tosa(dense, **{**SETTINGS[setting], "keep_rate": keep_rate})
    randomize_(model.bypasses, seed=2)
    return dense, model


def assert_same_form(ours: Any, theirs: Any) -> None:
    """Check that two nested results have the same places, shapes and types, and are laid out as `view` needs."""
    assert type(ours) is type(theirs)
    ours, theirs = flatten(ours), flatten(theirs)
    assert [place for place, _ in ours] == [place for place, _ in theirs]
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert one.is_contiguous() or not other.is_contiguous()
        assert one.isfinite().all()


def assert_equal(ours: Any, theirs: Any) -> None:
    """Check that two nested results of one form hold the same to within rounding."""
    for (_, one), (_, other) in zip(flatten(ours), flatten(theirs), strict=True):
        assert torch.allclose(one, other, atol=1e-3)
