"""A fit within `distill`: resumed exactly, kept only if held-out images say so."""

from pathlib import Path

import pytest
import torch

from tests.train.tiny_runs import StopAt, same, tiny_tosa, train_and_fit, weights
from tosa_cli.errors import ConfigError, TrainingError
from tosa_cli.train.distill import DistillObjective, check_trainable
from tosa_cli.train.weights import HeldOut, Watch

from .fits import (
    FITTED,
    SELECTORS,
    make_photos,  # noqa: F401 (the fixture `photos`)
)


def test_a_run_that_is_interrupted_in_training_resumes_exactly(photos: Path, tmp_path: Path) -> None:
    whole, resumed = (tiny_tosa(bypass="linear") for _ in range(2))
    train_and_fit(whole, photos, tmp_path / "whole")
    with pytest.raises(TrainingError, match="--resume"):
        train_and_fit(tiny_tosa(bypass="linear"), photos, tmp_path / "part", progress=StopAt(4), checkpoint_every=1)
    report = train_and_fit(resumed, photos, tmp_path / "part", resume=True, checkpoint_every=1)
    assert report.training.updates == 6 and report.training.images < 48
    for part in ("selectors", "bypasses", "backbone"):
        assert same(weights(whole, part), weights(resumed, part))


def test_a_run_that_is_interrupted_in_the_fit_resumes_exactly(photos: Path, tmp_path: Path) -> None:
    whole, resumed = (tiny_tosa(bypass="nearest+linear") for _ in range(2))
    train_and_fit(whole, photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_and_fit(tiny_tosa(bypass="nearest+linear"), photos, tmp_path / "part", progress=StopAt(6 + 5))
    report = train_and_fit(resumed, photos, tmp_path / "part", resume=True)
    assert report.training.images == 0 and report.calibration.images == 24
    for part in ("selectors", "bypasses"):
        assert same(weights(whole, part), weights(resumed, part))


def test_only_what_gets_gradients_asks_for_them() -> None:
    # Several processes wait for the gradient of every weight that asks for one.
    model = tiny_tosa(bypass="nearest+linear")
    DistillObjective(model)(torch.randn(2, 3, 32, 32), torch.zeros(2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == name.startswith("selectors."), name


@pytest.mark.parametrize("selector", ["similarity", "probe"])
@pytest.mark.parametrize("better", [True, False])
def test_a_fit_is_kept_only_if_the_held_out_images_say_so(
    photos: Path, tmp_path: Path, selector: str, better: bool
) -> None:
    model = tiny_tosa(selector=selector, bypass="nearest+linear")
    start = {**weights(model, "bypasses"), **weights(model, "selectors")}
    scores = [0.5, 0.6 if better else 0.4]
    watch = Watch(lambda: HeldOut(1, scores.pop(0), {}), every=0, keep_best=True)
    report = train_and_fit(model, photos, tmp_path / "checkpoint", watch=watch)
    now = {**weights(model, "bypasses"), **weights(model, "selectors")}
    assert same(start, now) != better and not scores
    assert watch.best.update == better == report.fit_kept


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ((0.02, -0.05, 0.01), True),  # a little worse in all, and three images cannot tell
        ((-0.02, -0.03, -0.02), False),  # worse on every one
        ((0.01, 0.02, 0.01), True),
        ((0.01, float("nan"), 0.01), False),
    ],
)
def test_a_fit_is_dropped_by_the_differences_image_by_image(
    photos: Path, tmp_path: Path, changes: tuple[float, ...], kept: bool
) -> None:
    model = tiny_tosa(selector="similarity", bypass="nearest+linear")
    start, before = weights(model, "bypasses"), (0.9, 0.2, 0.5)
    images = [before, tuple(one + change for one, change in zip(before, changes, strict=True))]

    def measure() -> HeldOut:
        scores = list(images.pop(0))
        return HeldOut(len(scores), sum(scores) / len(scores), {"cosine": sum(scores)}, scores=scores)

    watch = Watch(measure, every=0, keep_best=True)
    report = train_and_fit(model, photos, tmp_path / "checkpoint", watch=watch)
    assert report.fit_kept == kept and same(start, weights(model, "bypasses")) != kept
    assert watch.best.update == kept
    assert report.change is not None and report.change.mean == pytest.approx(sum(changes) / 3, nan_ok=True)


@pytest.mark.parametrize("better", [True, False])
def test_beside_trained_selectors_the_first_figure_is_of_neither_and_the_fit_is_judged_alone(
    photos: Path, tmp_path: Path, better: bool
) -> None:
    model = tiny_tosa(bypass="nearest+linear")
    bypasses, selectors, seen = weights(model, "bypasses"), weights(model, "selectors"), []
    # Without trained selectors it would be better than all that comes after.
    scores = [0.9, 0.5, 0.6 if better else 0.4]

    def measure() -> HeldOut:
        seen.append((same(selectors, weights(model, "selectors")), same(bypasses, weights(model, "bypasses"))))
        return HeldOut(1, scores.pop(0), {})

    watch = Watch(measure, every=0, keep_best=True)
    report = train_and_fit(model, photos, tmp_path / "checkpoint", watch=watch)
    assert seen == [(True, True), (False, True), (False, False)]
    assert watch.history[0].score == 0.9 and watch.best.score == (0.6 if better else 0.5)
    assert report.fit_kept == better and same(bypasses, weights(model, "bypasses")) != better
    assert not same(selectors, weights(model, "selectors"))


@pytest.mark.parametrize("selector", ["similarity", "previous", "random"])
@pytest.mark.parametrize("bypass", ["identity", "nearest"])
def test_a_model_with_nothing_to_do_is_refused_with_a_sentence(
    photos: Path, tmp_path: Path, selector: str, bypass: str
) -> None:
    with pytest.raises(ConfigError) as failure:
        train_and_fit(tiny_tosa(selector=selector, bypass=bypass), photos, tmp_path / "run")
    assert all(named in str(failure.value) for named in (repr(selector), repr(bypass), "--bypass nearest+linear"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bypass", FITTED)
def test_a_model_with_anything_to_do_is_not(bypass: str) -> None:
    for selector in SELECTORS:
        check_trainable(tiny_tosa(selector=selector, bypass=bypass))
    for selector in ("attention", "probe"):
        check_trainable(tiny_tosa(selector=selector))
