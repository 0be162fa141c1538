"""Every option of timm's intermediate features means for a converted model what it means to timm."""

from typing import Any

import pytest
import torch

from .encoder_runs import KINDS, PER_HEAD, assert_equal, assert_same_form, make_pair, make_predictor, settings
from .tiny_models import make_images, make_tosa, make_vit

ROTARY = ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224")
"""Those whose dense models timm gives fewer options: no dictionaries, and no interface of DINO's."""


kinds_with_every_option = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ROTARY])


OPTIONS: list[dict[str, Any]] = [
    {"indices": None},
    {"indices": 1},
    {"indices": 4, "norm": True},
    {"indices": [5, 0, 2]},
    {"indices": (-1, -3), "stop_early": True},
    {"indices": [1], "stop_early": True, "norm": True},
    {"indices": [0, 3], "stop_early": True, "intermediates_only": True, "output_fmt": "NLC"},
    {"indices": [2], "output_fmt": "NLC", "return_prefix_tokens": True},
    {"indices": [2, 4], "return_prefix_tokens": True, "intermediates_only": True, "norm": True},
    {"indices": [1, 2], "output_dict": True, "return_prefix_tokens": True},
    {"indices": [1, 2], "output_dict": True, "intermediates_only": True, "stop_early": True},
]


@kinds_with_every_option
@torch.no_grad()
def test_every_option_means_what_it_means_to_timm(kind: str) -> None:
    images = make_images(size=make_predictor(kind).patch_embed.img_size)
    for setting in ("paper", "matched"):
        dense, model = make_pair(kind, setting)
        _, whole = make_pair(kind, setting, keep_rate=1.0)
        for options in OPTIONS:
            expected = dense.forward_intermediates(images, **options)
            assert_same_form(model.forward_intermediates(images, **options), expected)
            assert_equal(whole.forward_intermediates(images, **options), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
@torch.no_grad()
def test_the_options_hold_for_selection_a_head(name: str) -> None:
    dense, images = make_vit(name, img_size=64), make_images(size=64)
    for keep_rate in (0.5, 1.0):
        model = make_tosa(dense, **PER_HEAD, keep_rate=keep_rate)
        for options in OPTIONS:
            expected = dense.forward_intermediates(images, **options)
            found = model.forward_intermediates(images, **options)
            assert_same_form(found, expected)
            if keep_rate == 1:
                assert_equal(found, expected)


@kinds_with_every_option
@torch.no_grad()
def test_the_older_interface_of_dino_means_what_it_means_to_timm(kind: str) -> None:
    images = make_images(size=make_predictor(kind).patch_embed.img_size)
    dense, model = make_pair(kind, "matched")
    _, whole = make_pair(kind, "matched", keep_rate=1.0)
    for n in (1, 3, [0, 4], (1, -1)):
        for reshape in (False, True):
            for norm in (False, True):
                for prefix in (False, True):
                    options = {"n": n, "reshape": reshape, "norm": norm, "return_prefix_tokens": prefix}
                    expected = dense.get_intermediate_layers(images, **options)
                    assert_same_form(model.get_intermediate_layers(images, **options), expected)
                    assert_equal(whole.get_intermediate_layers(images, **options), expected)


@settings
@torch.no_grad()
def test_stopping_early_and_pruning_change_nothing_that_is_asked_for(setting: str) -> None:
    # Where a choice is random, the layers that are left out must not have drawn before.
    images = make_images(size=64)
    for indices in ([0], [1], [2, 3], [4]):
        found = []
        for way in ("all", "early", "pruned"):
            _, model = make_pair("test_vit3", setting)
            kept = model.prune_intermediate_layers(indices, prune_norm=True) if way == "pruned" else indices
            torch.manual_seed(0)
            found.append(
                model.forward_intermediates(images, indices=kept, intermediates_only=True, stop_early=way == "early")
            )
        for maps in found[1:]:
            # A map that nobody reads any more is not made, which moves the rounding.
            assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(maps, found[0], strict=True))
