"""The page beside token merging says what the figures say."""

import json
from typing import Any

import pytest

from benchmarks.real.render_merging import equal_time, interpolate, key, render
from benchmarks.real.run_merging import FASHION_RESULTS, PAGE, RESULTS


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


def test_at_equal_time_errors_are_compared_where_both_were_measured() -> None:
    rows = list(equal_time(figures()))[-1]
    # A quarter of the way from .01 to .04 on a line of logarithms is .01414.
    assert "| batch 1, 1.30x | 0.35 | 0.35 |" in rows
    assert "| batch 1, 1.90x | outside | outside |" in rows


def test_values_lie_on_lines_between_points() -> None:
    assert interpolate([(1.0, 2.0), (2.0, 4.0), (4.0, 0.0)], 3.0) == pytest.approx(2.0)
    assert interpolate([(1.0, 2.0), (2.0, 4.0)], 2.5) is None
