"""What is timed, and under which conditions; never how long it took."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.measure import speed
from tosa_cli.measure.speed import compare_speed, time_in_turns
from tosa_cli.measure.sweep import sweep_speed, with_keep_rate
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT

from ..model.tiny_models import make_images
from ..train.tiny_runs import tiny_tosa

IMAGES = make_images(2, 32)


class Recorder(nn.Module):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and torch.is_inference_mode_enabled()
        self.calls.append(self.name)
        return images * 2


def test_models_take_turns() -> None:
    calls: list[str] = []
    models = {name: Recorder(name, calls) for name in "abc"}
    report = time_in_turns(models, IMAGES, rounds=12, seconds=0.0)
    turns = calls[-36:]
    assert all(sorted(turns[start : start + 3]) == list("abc") for start in range(0, 36, 3))
    # None always runs behind the same one, whose caches and freed memory it would find.
    assert {*itertools.permutations("abc", 2)} <= {*itertools.pairwise(turns)}
    assert list(report.timings) == list(report.speedups) == list("abc")
    for timing in report.timings.values():
        assert 0 < timing.min_s <= timing.median_s <= timing.max_s and timing.peak_memory_mb is not None


def test_ratios_are_taken_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine slows down by and by; the second model is always twice as fast, but for one turn.
    models = {"a": nn.Identity(), "b": nn.Identity()}
    times = {models["a"]: iter([1.0, 2.0, 4.0, 8.0]), models["b"]: iter([1.0, 1.0, 2.0, 2.0])}

    def next_time(model: nn.Module, *_: object) -> float:
        return next(times[model])

    monkeypatch.setattr(speed, "_time", next_time)
    report = time_in_turns(models, IMAGES, rounds=3, seconds=0.0)
    assert report.timings["a"].median_s == 4 and report.timings["b"].max_s == 2
    assert vars(report.speedups["b"]) == {"speedup": 2, "speedup_min": 2, "speedup_max": 4}
    assert vars(report.speedups["a"]) == {"speedup": 1, "speedup_min": 1, "speedup_max": 1}


def test_every_report_has_its_conditions() -> None:
    done: list[int] = []
    images = IMAGES.bfloat16()
    model = tiny_tosa().bfloat16()
    report = compare_speed(
        model.backbone, model, images, ideal_speedup=1.5, rounds=2, seconds=0.0, advance=done.append
    ).to_dict()
    assert report["dtype"] == "bfloat16" and report["img_size"] == (32, 32) and report["batch_size"] == 2
    assert report["device"].startswith("cpu") and report["torch"] == torch.__version__
    assert report["threads"] == torch.get_num_threads() and report["compile"] is False and report["rounds"] == 2
    assert report["ideal_speedup"] == 1.5
    assert done == [2] * 4


def test_compiled_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, object]] = []

    def note(model: Recorder, *, mode: object, **_: object) -> Recorder:
        compiled.append((model.name, mode))
        return model

    monkeypatch.setattr(torch, "compile", note)
    models = {name: Recorder(name, []) for name in "ab"}
    assert time_in_turns(models, IMAGES, rounds=1, seconds=0.0, compiled=True).conditions.compile
    assert compiled == [("a", None), ("b", None)]
    compiled.clear()
    time_in_turns(models, IMAGES, rounds=1, seconds=0.0, compiled=True, cuda_graphs=True)
    assert compiled == [("a", "reduce-overhead"), ("b", "reduce-overhead")]


def test_what_the_first_pass_allocates_for_good_is_no_models_memory() -> None:
    """As the workspaces of a GPU's libraries, which the first model to run would be charged for."""
    workspaces: list[Tensor] = []

    class Worker(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if not workspaces:
                workspaces.append(torch.ones(64, 2**20))
            return images * 2

    timings = time_in_turns({"first": Worker(), "second": Worker()}, IMAGES, rounds=1, seconds=0.0).timings
    first, second = timings["first"].peak_memory_mb, timings["second"].peak_memory_mb
    assert first is not None and first == second and 0 < first < 1


# ---------------------------------------------------------------- the sweep


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"selector": "random"},
        {"selector": "similarity", "bypass": "nearest+affine"},
        {"keep_rate": (0.2, 0.4, 0.6)},
    ],
    ids=str,
)
def test_another_keep_rate_changes_nothing_else(settings: dict[str, object]) -> None:
    model = tiny_tosa(**settings)
    variant = with_keep_rate(model, 0.5)
    assert variant.blocks is model.blocks and not variant.training
    before, after = model.state_dict(), variant.state_dict()
    assert before.keys() == after.keys() and all(before[key].equal(after[key]) for key in before)
    assert set(variant.config.keep_rates.values()) == {0.5}
    if settings.get("selector") != "random" and "keep_rate" not in settings:
        with torch.no_grad():
            assert variant(IMAGES).equal(model(IMAGES))


def test_a_sweep_has_a_row_for_every_combination() -> None:
    loaded: list[object] = []

    def load(img_size: object) -> tuple[nn.Module, TosaViT]:
        loaded.append(img_size)
        model = tiny_tosa()
        model.set_input_size(img_size)  # type: ignore[arg-type]
        return model.backbone, model

    report = sweep_speed(
        load,
        keep_rates=[0.8, 0.4],
        batch_sizes=[1, 2],
        img_sizes=[(32, 32), (48, 32)],
        rounds=1,
        seconds=0.0,
    )
    assert loaded == [(32, 32), (48, 32)]
    assert [(row.img_size, row.batch_size, row.keep_rate) for row in report.rows] == list(combinations())
    for row in report.rows:
        assert row.share_of_ideal == pytest.approx(row.speedup / row.ideal_speedup)
        assert row.ideal_speedup == pytest.approx(1 / (1 - row.reduction))
    model = tiny_tosa(keep_rate=0.4)
    assert report.rows[1].reduction == count_flops(model).reduction


def combinations() -> Iterator[tuple[tuple[int, int], int, float]]:
    for size in ((32, 32), (48, 32)):
        for batch_size in (1, 2):
            for rate in (0.8, 0.4):
                yield size, batch_size, rate


def test_a_keep_rate_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.5"):
        with_keep_rate(tiny_tosa(), 1.5)


@pytest.mark.parametrize("layers", [(2, 4), (2, 3, 4)], ids=str)
def test_a_converted_model_needs_no_more_memory_than_the_dense_one(layers: tuple[int, ...]) -> None:
    dense: Any = timm.create_model("vit_tiny_patch16_224", img_size=128, embed_dim=96, num_heads=3, depth=6).eval()
    config = TosaConfig(layers=layers, selector="similarity", bypass="nearest+affine")
    memory = time_in_turns(
        {"dense": dense, "tosa": TosaViT(dense, config).eval()}, torch.randn(8, 3, 128, 128), rounds=1, seconds=0.0
    ).timings
    needed, allowed = memory["tosa"].peak_memory_mb, memory["dense"].peak_memory_mb
    assert needed is not None and allowed is not None and needed <= 1.03 * allowed
