"""The page beside token merging says what the figures say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.real import depth_head
from benchmarks.real.cut import CutTokens
from benchmarks.real.depth_head import DepthHead
from benchmarks.real.render_merging import equal_time, interpolate, key, render
from benchmarks.real.run_merging import FASHION_RESULTS, PAGE, RESULTS, forget
from tests.model.tiny_models import make_images, make_vit


def quality(error: float) -> dict[str, Any]:
    parts = {f"{part}{kind}": error for part in ("patch", "class") for kind in ("", "_median", "_worst_tenth")}
    return {"photos": 5, "reduction": 0.25, "saliency": 0.9, **parts}


def figures() -> dict[str, Any]:
    found = {key(224, 0.25, "merge"): quality(0.01), key(224, 0.5, "merge"): quality(0.04)}
    found |= {key(224, 0.25, "calibrated", draw): quality(0.004 + 0.002 * draw) for draw in (0, 1)}
    found |= {key(224, 0.5, "calibrated", 0): quality(0.02)}
    times = {0.25: (1.2, 1.3), 0.5: (1.6, 1.9)}  # token merging's, and the preset's
    speed = {
        key(224, target, "batch", 1): {
            "threads": 2,
            "models": {
                name: {"speedup": value, "speedup_min": 1, "speedup_max": 2, "median_s": 0.1, "peak_memory_mb": 1}
                for name, value in zip(("merge", "calibrated"), pair, strict=True)
            },
        }
        for target, pair in times.items()
    }
    return {"machine": {"cores": 2}, "quality": found, "speed": speed}


def test_the_page_is_made_from_the_committed_figures() -> None:
    assert PAGE.read_text("utf-8") == render(
        *(json.loads(path.read_text("utf-8")) for path in (RESULTS, FASHION_RESULTS))
    )


def test_draws_are_told_with_their_spread_and_shares_by_their_mean() -> None:
    fashion = {
        "machine": {"cores": 2},
        "quality": {
            "dense": {"top1": 0.88, **quality(0.0)},
            **{f"56 -25% calibrated {draw}": {"top1": 0.87, "agreement": 0.9, **quality(0.002)} for draw in (0, 1)},
        },
    }
    page = render(figures(), fashion)
    assert "### 25% fewer MACs" in page and "| 87.00 ± 0.00 | 90.00 ± 0.00 |" in page and "88.0%" in page
    assert "| 5.00 ± 1.41 |" in page and "## 224 pixels, 25% fewer MACs (5 photos)" in page
    assert "0.50 / 0.50 by the mean" in page and "## 518 pixels" not in page


def test_the_depth_head_is_told_where_it_was_measured() -> None:
    found, fashion = figures(), json.loads(FASHION_RESULTS.read_text("utf-8"))
    assert "AbsRel" not in render(found, fashion)
    errors = {"rooms": 7, "abs_rel": 0.1, "d1": 0.9}
    found["depth"] = {"224 dense": errors, key(224, 0.25, "merge"): {**errors, "d1": 0.85}}
    page = render(found, fashion)
    assert "true ones of 7 rendered rooms" in page and "they are 0.1000 and 0.9000" in page
    assert "| 0.9000 | 0.1000 | 0.8500 |" in page and "| 0.9000 ± 0.0000 | - | - |" in page


def test_what_was_measured_of_the_preset_is_forgotten_alone() -> None:
    found = figures()
    found["rates"] = {key(size, 0.45, 0): {} for size in (224, 518)}
    found["depth"] = {"224 dense": {}, key(224, 0.25, "calibrated", 1): {}, key(224, 0.25, "merge"): {}}
    forget(found, [518])
    assert list(found["rates"]) == [key(224, 0.45, 0)] and found["quality"] == figures()["quality"]
    forget(found, [224])
    assert [*found["depth"]] == ["224 dense", key(224, 0.25, "merge")] and found["speed"]
    assert [*found["quality"]] == [key(224, target, "merge") for target in (0.25, 0.5)]
    forget(found, [224], speed=True)
    assert not found["speed"]


def test_a_head_reads_depth_from_tokens_of_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROOMS": 3, "HELD_OUT": 2, "EPOCHS": 2, "SMALL": 28}.items():
        monkeypatch.setattr(depth_head, name, value)
    encoder = make_vit("test_vit", img_size=28, patch_size=14, num_classes=0)
    lab: Any = SimpleNamespace(source=lambda size: encoder)
    head = DepthHead(lab, tmp_path)
    again = DepthHead(lab, tmp_path)  # reads what the first one trained
    found = head.errors(encoder)
    assert found == again.errors(encoder) and found["rooms"] == 2
    images, depth = head.held_out[0]
    made = head.maps(encoder.forward_features(images))
    assert found["abs_rel"] == pytest.approx(((made - depth).abs() / depth).mean().item(), rel=1e-4)


def test_at_equal_time_errors_are_compared_where_both_were_measured() -> None:
    rows = list(equal_time(figures()))[-1]
    # A quarter of the way from .01 to .04 on a line of logarithms is .01414.
    assert "| batch 1, 1.30x | 0.35 | 0.35 |" in rows
    assert "| batch 1, 1.90x | outside | outside |" in rows


def test_values_lie_on_lines_between_points() -> None:
    assert interpolate([(1.0, 2.0), (2.0, 4.0), (4.0, 0.0)], 3.0) == pytest.approx(2.0)
    assert interpolate([(1.0, 2.0), (2.0, 4.0)], 2.5) is None


def test_the_bound_is_the_dense_model_on_fewer_tokens() -> None:
    dense, images = make_vit("test_vit"), make_images()
    seen: list[int] = []
    for block in dense.blocks:
        block.register_forward_hook(lambda block, inputs, tokens: seen.append(tokens.shape[1]))
    with torch.no_grad():
        assert torch.allclose(CutTokens(dense, {})(images), dense(images), atol=1e-5)
        assert CutTokens(dense, {2: 0.5}).forward_features(images).shape == dense.forward_features(images).shape
        seen.clear()
        assert CutTokens(dense, {2: 0.5, 3: 0.5})(images).shape == dense(images).shape
    length = dense.patch_embed.num_patches + dense.num_prefix_tokens
    assert seen[: len(dense.blocks)] == [length, *[round(length * 0.5)] * (len(dense.blocks) - 1)]
