"""The page of runtimes says what the figures say."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.deploy.render_deploy import ACROSS, render
from benchmarks.deploy.run_deploy import PAGE, RESULTS
from benchmarks.deploy.tokens import Tokens


def row(milliseconds: float, speed: float, shortest: float = 0.0, **more: Any) -> dict[str, Any]:
    more["min_s"] = (shortest or milliseconds) / 1e3
    spread = {"speedup": speed, "speedup_min": speed - 0.1, "speedup_max": speed + 0.1}
    return {"median_s": milliseconds / 1e3, "reduction": 0.0, **spread, **more}


def figures() -> dict[str, Any]:
    near = {"patch": 0.004, "class": 0.002, "saliency": 0.98}
    slow = {"dense": row(60, 1.0, 54), "-25%": row(50, 1.2, 40, reduction=0.2502, quality=near)}
    fast = {"dense": row(20, 1.0, 18), "-25%": row(16, 1.25, 15, reduction=0.2502)}
    rows = {
        "224 1 PyTorch float32": {"threads": 2, "models": slow},
        "224 1 OpenVINO bfloat16": {"threads": 2, "models": fast},
    }
    growth = {"224": {"tokens": 257, "dense_ms": 60, "selection_share": 0.01, "ideal": 1.33, **row(50, 1.2)}}
    across = {f"{runtime}, {kind}": row(20, 3.0) for runtime in ACROSS for kind in ("dense", "-25%", "-40%")}
    across["OpenVINO bfloat16, -25%"] = row(16, 3.75)
    return {"machine": {"cores": 2}, "rows": rows, "growth": growth, "across": {"224 1": across}}


def test_the_page_is_made_from_the_committed_figures() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(json.loads(RESULTS.read_text(encoding="utf-8")))


def test_a_speed_is_against_the_dense_model_there_and_across_runtimes_against_that_of_pytorch() -> None:
    page = render(figures())
    assert "## ViT-S/14 at 224 pixels, 1 image at a time, 2 threads" in page and "518" not in page
    assert "| PyTorch float32 | -25% | -25.0% | 50.0 | 1.20x (1.10 to 1.30) | 1.35x | 4.0 / 2.0 | 0.9800 |" in page
    assert "| OpenVINO bfloat16 | -25% | -25.0% | 16.0 | 1.25x (1.15 to 1.35) | 1.20x |  |  |" in page
    assert "| OpenVINO bfloat16 | 3.00x (2.90 to 3.10) | 3.75x (3.65 to 3.85) | 3.00x (2.90 to 3.10) |" in page
    assert "| 224 | 257 | 60 | 1.20x (1.10 to 1.30) | 1.33x | 1.0% |" in page


def test_tokens_are_float32_whatever_computes_them() -> None:
    class Model(nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.bfloat16
            return images.flatten(2)

    class File(nn.Module):
        runs_elsewhere = True

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            assert len(images) == 1
            return {"last_hidden_state": images.flatten(2)}

    images = torch.randn(2, 3, 4, 4)
    assert Tokens(Model(), torch.bfloat16)(images).dtype == torch.float32
    assert Tokens(File()).forward_features(images).equal(images.flatten(2))
