"""Finetuning on the dense model's features needs no labels, and never hands back a model worse than it was given."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.model.tiny_models import make_tosa, make_vit
from tests.sentences import fragments
from tests.train.tiny_runs import (
    StopAt,
    Tensors,
    read,
    run_features,
    same,
    short_tosa,
    tiny_tosa,
    weights,
    write_photos,
)
from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError, TrainingError
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.features import CosineMeasure, Cosines, Features, FeaturesObjective
from tosa_cli.tasks.tokens import finetune_augmentation
from tosa_cli.train.config import OBJECTIVE_DEFAULTS, FinetuneConfig
from tosa_cli.train.feature_loss import token_distance
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.schedule import Clock

RUIN = {"lr": 1.0, "sched": "none", "warmup_epochs": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("few"), 12)


def all_weights(model: TosaViT) -> Tensors:
    return {name: value.clone() for name, value in model.state_dict().items()}


def cosines(model: TosaViT, dense: nn.Module, images: Images) -> Cosines:
    return measure_models({"tosa": model, "dense": dense}, images, CosineMeasure(model)).models["tosa"]


@pytest.mark.parametrize("settings", [{}, {"feature_layers": 2}, {"model_ema": False}], ids=str)
def test_final_tokens_come_closer_to_the_dense_model(photos: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = tiny_tosa(depth=4, layers=(2, 4), keep_rate=0.8)
    dense, selectors = copy.deepcopy(model.backbone), weights(model, "selectors")
    images = read(model, photos, FinetuneConfig(workers=0), None)
    before = cosines(model, dense, images)
    report, watch = run_features(model, photos, tmp_path / "run", epochs=8, eval_every=8, **settings)
    after = cosines(model, dense, images)
    assert after.patch_cosine > before.patch_cosine and after.class_cosine > before.class_cosine  # type: ignore[operator]
    assert watch.best.figures["patch_cosine"] == pytest.approx(after.patch_cosine)
    assert watch.history[0].figures["patch_cosine"] == pytest.approx(before.patch_cosine)
    assert same(selectors, weights(model, "selectors")) and not model.training
    assert report.last_loss < report.first_loss


@pytest.mark.parametrize("settings", [{"amp": "bf16"}, {"grad_accum_steps": 2, "batch_size": 4}], ids=str)
def test_ways_of_training_go_together_with_features(photos: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    report, watch = run_features(short_tosa(), photos, tmp_path / "run", **settings)
    assert report.updates == 6 and watch.best.update > 0


def test_checkpointed_gradients_are_the_same(photos: Path, tmp_path: Path) -> None:
    plain, checkpointed = (tiny_tosa(depth=3, layers=(2,)) for _ in range(2))
    run_features(plain, photos, tmp_path / "run")
    run_features(checkpointed, photos, tmp_path / "run", grad_checkpointing=True)
    for name, value in weights(plain, "backbone").items():
        torch.testing.assert_close(value, checkpointed.backbone.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_run_that_ruins_the_model_hands_back_exactly_the_start(photos: Path, tmp_path: Path) -> None:
    model = short_tosa()
    start = all_weights(model)
    _, watch = run_features(model, photos, tmp_path / "run", **RUIN)
    assert watch.best.update == 0 and [seen.update for seen in watch.history] == [0, 2, 4, 6]
    assert all(seen.score < watch.history[0].score for seen in watch.history[1:])
    assert same(start, all_weights(model))


def test_the_best_weights_on_the_way_are_handed_back(photos: Path, tmp_path: Path) -> None:
    best, whole = short_tosa(), short_tosa()
    scores = [0.1, 0.2, 0.9, float("nan")]
    _, watch = run_features(best, photos, tmp_path / "best", scores=scores, model_ema=False)
    assert watch.best.update == 4
    with pytest.raises(TrainingError):
        run_features(whole, photos, tmp_path / "whole", scores=[0.0] * 9, progress=StopAt(4), model_ema=False)
    assert same(all_weights(whole), all_weights(best))


def test_without_measurements_in_between_start_and_end_are_compared(photos: Path, tmp_path: Path) -> None:
    model = short_tosa()
    _, watch = run_features(model, photos, tmp_path / "run", eval_every=0)
    assert [seen.update for seen in watch.history] == [0, 6]


@pytest.mark.parametrize("settings", [{}, {"model_ema": False}, {"selector": "random"}], ids=str)
@pytest.mark.parametrize("scores", [None, [0.1, 0.9, 0.3, 0.2], [0.9, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.9]])
def test_a_resumed_run_hands_back_the_same_weights(
    few: Path, tmp_path: Path, settings: dict[str, Any], scores: list[float] | None
) -> None:
    settings = {"checkpoint_every": 1, "batch_size": 4, **settings}
    selector = settings.pop("selector", "attention")
    whole, resumed = short_tosa(selector=selector), short_tosa(selector=selector)
    _, expected = run_features(whole, few, tmp_path / "whole", scores=scores and list(scores), **settings)
    # Each run is interrupted in a step, and the next begins with it: the last checkpoint is of the one before.
    first = 1
    for step in (2, 3, 5):
        how: dict[str, Any] = {"resume": first > 1, "scores": unread(scores, first), **settings}
        with pytest.raises(TrainingError, match="--resume"):
            run_features(
                short_tosa(selector=selector), few, tmp_path / "part", progress=StopAt(1 + step - first), **how
            )
        first = step
    _, watch = run_features(resumed, few, tmp_path / "part", resume=True, scores=unread(scores, first), **settings)
    assert same(all_weights(whole), all_weights(resumed))
    assert watch.history == expected.history


def unread(scores: list[float] | None, step: int) -> list[float] | None:
    """The scores that a run measures which begins with a step: of those at the start and after every second step."""
    return scores and scores[0 if step == 1 else 1 + (step - 1) // 2 :]


def test_a_run_stops_when_its_time_is_over(photos: Path, tmp_path: Path) -> None:
    report, watch = run_features(short_tosa(), photos, tmp_path / "run", epochs=1000, max_minutes=1e-6)
    assert report.updates == 1 and [seen.update for seen in watch.history] == [0, 1]


def test_with_limited_time_the_rate_falls_by_the_clock() -> None:
    clock = Clock(2.0, 100)
    assert clock.position(10, 30.0) == 25 and clock.position(50, 30.0) == 50 and clock.position(1, 500.0) == 100
    assert Clock(None, 100).position(7, 1e9) == 7 and not Clock(None, 100).is_over(1e9)


def test_classification_head_and_selection_stay_and_the_teacher_gets_no_gradient() -> None:
    model = tiny_tosa()
    objective = FeaturesObjective(model, copy.deepcopy(model.backbone))
    objective(torch.randn(2, 3, 32, 32), torch.tensor([-1, -1])).backward()
    assert all(parameter.grad is None for parameter in model.selector_parameters())
    assert all(parameter.grad is None for parameter in model.backbone.head.parameters())
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    # Up to the first ToSA layer, the second, the tokens are the teacher's already.
    assert all(parameter.grad is None for parameter in model.blocks[0].parameters())
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())
    assert all(parameter.grad is None for parameter in model.patch_embed.parameters())
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("layers", [0, 1, 5])
@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_a_model_that_equals_its_teacher_has_no_loss(name: str, layers: int) -> None:
    model = make_tosa(make_vit(name), keep_rate=1.0)
    objective = FeaturesObjective(model, copy.deepcopy(model.backbone), layers).train()
    assert not model.backbone.training and len(objective.indices) == layers
    assert objective(torch.randn(2, 3, 160, 160), torch.zeros(2)).item() == pytest.approx(1e-3, abs=1e-4)


def test_intermediate_layers_are_evenly_spread() -> None:
    def layers(count: int) -> list[int]:
        model = tiny_tosa()
        return [index + 1 for index in FeaturesObjective(model, copy.deepcopy(model.backbone), count).indices]

    assert layers(0) == [] and layers(1) == [3] and layers(2) == [2, 4] and layers(5) == [1, 2, 3, 4, 5]


def test_distance_of_tokens_is_zero_for_equal_ones_and_grows() -> None:
    tokens = torch.randn(2, 5, 16)
    near, far = tokens + 0.1 * torch.randn_like(tokens), torch.randn_like(tokens)
    assert token_distance(tokens, tokens).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert bool((token_distance(near, tokens) > 0).all())
    assert bool((token_distance(near, tokens) < token_distance(far, tokens)).all())


def test_bypasses_are_trained_with_the_backbone(photos: Path, tmp_path: Path) -> None:
    settings = {"selector": "similarity", "bypass": "nearest+affine"}
    for run in ({"model_ema": False}, {"layer_decay": 0.9, "weight_decay": 0.01}):
        model = tiny_tosa(**settings)
        before = weights(model, "bypasses")
        run_features(model, photos, tmp_path / "run", scores=[0.0, 0.1, 0.2, 0.3], **run)
        assert not any(value.equal(before[name]) for name, value in weights(model, "bypasses").items())


def test_defaults_depend_on_the_objective_and_are_recorded() -> None:
    labels, features = FinetuneConfig(), FinetuneConfig(objective="features")
    for config in (labels, features):
        for name, value in OBJECTIVE_DEFAULTS[config.objective].items():
            assert getattr(config, name) == value
    assert features.lr < labels.lr and features.epochs < labels.epochs and features.smoothing == 0
    assert FinetuneConfig(objective="features", lr=1.0).lr == 1.0
    assert set(OBJECTIVE_DEFAULTS["features"]) <= set(features.recorded())
    for config in (labels, features, FinetuneConfig(objective="features", weight_decay=labels.weight_decay)):
        assert FinetuneConfig.from_dict(config.recorded()) == config == FinetuneConfig.from_dict(config.to_dict())


def test_images_a_second_are_of_training_alone(photos: Path, tmp_path: Path) -> None:
    events: list[str] = []

    class Slow(list[float]):
        def pop(self, index: Any = -1) -> float:
            time.sleep(0.2)
            events.append("look")
            return super().pop(index)

    class Listener:
        def start(self, total: int, done: int) -> None:
            events.append("start")

        def advance(self, num_images: int, text: str) -> None:
            events.append("step")

    slow = {"scores": Slow(range(5)), "eval_every": 2, "epochs": 2}
    report, _ = run_features(short_tosa(), photos, tmp_path / "run", progress=Listener(), **slow)
    assert events == ["look", "start", "step", "look", "step", "step", "look", "step", "step", "look", "step"]
    assert report.seconds > report.measuring_seconds >= 0.8
    assert report.images_per_second == pytest.approx(report.images / (report.seconds - report.measuring_seconds))


def test_more_layers_than_there_are_cannot_be_matched(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fragments.FEATURE_LAYERS_6_B):
        run_features(tiny_tosa(), photos, tmp_path / "run", feature_layers=6)


@pytest.mark.parametrize("teacher", [None, "itself"])
def test_features_need_a_teacher(photos: Path, tmp_path: Path, teacher: str | None) -> None:
    model, config = tiny_tosa(), FinetuneConfig(objective="features", device="cpu", workers=0)
    images = read(model, photos, config, finetune_augmentation(config))
    with pytest.raises(ConfigError, match="teacher"):
        dense: nn.Module | None = model.backbone if teacher else None
        Features().learn(make_accelerator(config), model, images, config, checkpoint=tmp_path / "run", teacher=dense)
