"""KL and share of the true top-K, against what they are by definition."""

import pytest
import torch

from tests.model.tiny_models import make_images
from tests.train.tiny_runs import tiny_tosa
from tosa_cli.measure.selectors import measure_selectors
from tosa_cli.model.selectors import AttentionSelector


def test_a_new_selector_is_as_good_as_the_map_of_the_layer_before() -> None:
    model = tiny_tosa(query_rows="all")
    for layer in model.selectors:
        model.selectors[layer] = AttentionSelector(2)
    report = measure_selectors(model, [make_images(5, 32), make_images(2, 32, seed=1)])
    assert report.samples == 7 and [quality.layer for quality in report.layers] == [2, 4, 6]
    for quality in report.layers:
        assert quality.kl == pytest.approx(quality.kl_previous, rel=1e-4) and quality.kl > 0
        assert quality.found == quality.found_previous
        assert quality.found_random == 7 / 16  # 8 of 17 tokens are kept, one of them the class token


@pytest.mark.parametrize("selection", ["shared", "per-head"])
def test_a_selector_whose_hidden_units_are_dead_ranks_nothing_though_a_flat_map_is_nearer(selection: str) -> None:
    model, images = tiny_tosa(keep_rate=0.5, selection=selection), make_images(3, 32)
    before = measure_selectors(model, [images])
    with torch.no_grad():
        model.selectors["4"].conv1.bias.fill_(-1e3)
    after = measure_selectors(model, [images[:2], images[2:]])
    assert not any(quality.is_level for quality in before.layers)
    assert [quality.layer for quality in after.layers if quality.is_level] == [4]
    assert after.layers[1].kl < before.layers[1].kl


def test_a_batch_counts_by_its_images() -> None:
    model, images = tiny_tosa(), make_images(6, 32)
    whole = measure_selectors(model, [images])
    parts = measure_selectors(model, [images[:5], images[5:]])
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-5) and one.found == pytest.approx(other.found)


def test_the_share_found_is_that_of_the_true_top_k_over_all_query_rows() -> None:
    model, images = tiny_tosa(keep_rate=0.5), make_images(3, 32)
    with torch.no_grad():
        logits = model.dense_logits(images, {1, 2}, query_rows="all")
        wanted = logits[2].softmax(-1).sum(dim=(1, 2))[:, 1:].topk(7).indices
        rows = model.dense_logits(images, {1})[1]
        chosen = model.selectors["2"](rows).exp().sum(dim=(1, 2))[:, 1:].topk(7).indices
    share = sum(len(set(a) & set(b)) for a, b in zip(wanted.tolist(), chosen.tolist(), strict=True)) / 21
    assert measure_selectors(model, [images]).layers[0].found == pytest.approx(share)


def test_each_head_is_measured_by_what_it_selects_itself() -> None:
    model, images = tiny_tosa(keep_rate=0.5, selection="per-head"), make_images(3, 32)
    with torch.no_grad():
        maps = model.dense_logits(images, {2}, query_rows="all")[2].softmax(-1)
    wanted = maps.sum(dim=2)[..., 1:].topk(7).indices + 1
    selected = model.forward_selection(images)[2]
    assert selected.shape[:2] == wanted.shape[:2] == (3, 2)
    pairs = zip(selected.flatten(0, 1).tolist(), wanted.flatten(0, 1).tolist(), strict=True)
    found = sum(len(set(mine) & set(true)) for mine, true in pairs) / wanted.numel()
    measured = measure_selectors(model, [images]).layers[0]
    assert measured.found == pytest.approx(found)
    assert measured.found != measure_selectors(tiny_tosa(keep_rate=0.5), [images]).layers[0].found


def test_every_token_is_found_where_every_token_is_kept() -> None:
    report = measure_selectors(tiny_tosa(keep_rate=1.0), [make_images(2, 32)])
    assert all(quality.found == quality.found_random == 1 for quality in report.layers)
