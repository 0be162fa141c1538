"""Saliency maps of converted encoders: what is compared, and that the page says what was measured."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.real import run_saliency

BASE: dict[str, Any] = {"reduction": 0.1, "pooled_correlation": 0.5}


def results(stds: list[float], **row: Any) -> dict[str, Any]:
    return {"photos_224": {"names": ["a"] * len(stds), "dense_std": stds}, "maps_224": {"one": {**BASE, **row}}}


def test_correlation_is_pearsons() -> None:
    maps = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = run_saliency.correlation(*maps)
    expected = [np.corrcoef(one, other)[0, 1] for one, other in zip(*maps.numpy(), strict=True)]
    assert found.tolist() == pytest.approx(expected)
    # Neither the level nor the contrast of a map counts.
    assert run_saliency.correlation(maps[0], 3 * maps[0] - 1).tolist() == pytest.approx([1.0] * 3)


def test_nearly_flat_maps_are_counted_and_left_out_of_the_correlation_of_the_others() -> None:
    stds = [0.2] * 19 + [run_saliency.FLAT - 0.001]
    text = run_saliency.section(
        results(
            stds,
            correlation=[0.9] * 19 + [-0.9],
            mean_absolute_error=[0.1] * 19 + [0.3],
            patch_cosine=[0.99] * 20,
        ),
        224,
    )
    assert "20 held-out photos, 1 of them with a nearly flat map" in text
    assert "| one | 10.0% | 0.810 / 0.900 | 0.900 / 0.900 / 0.900 | 0.5000 | 0.1100 / 0.1000 | 0.3000 |" in text


def test_the_page_is_that_of_the_committed_figures() -> None:
    figures = json.loads(run_saliency.RESULTS.read_text(encoding="utf-8"))
    assert run_saliency.PAGE.read_text(encoding="utf-8") == run_saliency.render(figures)
    assert run_saliency.PICTURE.is_file()
    for size, count in run_saliency.HELD_OUT.items():
        for row in figures[f"maps_{size}"].values():
            assert len(row["correlation"]) == len(row["mean_absolute_error"]) == len(row["patch_cosine"]) == count
