"""Finetuning trains the backbone on labels, and leaves the selectors alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sentences import fragments
from tests.train.tiny_runs import (
    Tensors,
    read,
    run_finetune,
    same,
    short_tosa,
    tiny_tosa,
    weights,
    write_digits,
    write_photos,
)
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.tasks.classification import AccuracyMeasure, Classification, FinetuneObjective
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.saver import Saver
from tosa_cli.train.schedule import make_scheduler


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 60)


def test_accuracy_rises_the_loss_falls_and_the_selectors_stay(digits: Path, tmp_path: Path) -> None:
    model = tiny_tosa()
    selectors, backbone = weights(model, "selectors"), weights(model, "backbone")
    images = read(model, digits, FinetuneConfig(workers=0), None)
    before = measure_models({"tosa": model}, images, AccuracyMeasure()).models["tosa"].top1
    report = run_finetune(model, digits, tmp_path / "run", epochs=12, batch_size=12, crop_scale=0.9, smoothing=0.0)
    assert same(selectors, weights(model, "selectors"))
    assert not any(value.equal(backbone[name]) for name, value in weights(model, "backbone").items())
    assert report.last_loss < 0.5 * report.first_loss
    assert measure_models({"tosa": model}, images, AccuracyMeasure()).models["tosa"].top1 > before + 40
    assert not model.training


def test_only_the_backbone_gets_gradients() -> None:
    model = tiny_tosa()
    objective = FinetuneObjective(model, torch.nn.CrossEntropyLoss())
    objective(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is None for parameter in model.selector_parameters())
    assert all(parameter.grad is not None for parameter in model.backbone_parameters())


@pytest.fixture(scope="module")
def plain(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The weights that an epoch with nothing asked for leaves, every time."""
    found = []
    for name in ("once", "again"):
        model = short_tosa()
        run_finetune(model, digits, tmp_path_factory.mktemp(name) / "run", epochs=1)
        found.append(weights(model, "backbone"))
    assert same(*found)
    return found[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.8},
        {"cutmix": 1.0},
        {"mixup": 0.8, "cutmix": 1.0},
        {"smoothing": 0.3},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "color_jitter": 0.4},
        {"drop_path": 0.4},
        {"layer_decay": 0.7},
        {"layer_decay": 0.7, "sched": "none"},
        {"amp": "bf16"},
        {"opt": "lamb", "warmup_epochs": 0.5},
        {"opt": "muon"},
        {"model_ema": True},
    ],
    ids=str,
)
def test_a_way_of_training_changes_what_is_trained(
    digits: Path, tmp_path: Path, plain: Tensors, settings: dict[str, Any]
) -> None:
    changed = short_tosa()
    report = run_finetune(changed, digits, tmp_path / "run", epochs=1, **settings)
    assert not same(plain, weights(changed, "backbone"))
    assert torch.isfinite(torch.tensor(report.last_loss)) and report.updates == 7


def test_checkpointed_gradients_are_the_same(digits: Path, tmp_path: Path) -> None:
    plain, checkpointed = short_tosa(), short_tosa()
    run_finetune(plain, digits, tmp_path / "run", epochs=1)
    run_finetune(checkpointed, digits, tmp_path / "run", epochs=1, grad_checkpointing=True)
    for name, value in weights(plain, "backbone").items():
        torch.testing.assert_close(value, checkpointed.backbone.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_the_average_of_the_weights_is_what_is_kept(digits: Path, tmp_path: Path) -> None:
    start, last, average = short_tosa(), short_tosa(), short_tosa()
    settings = {"epochs": 1, "batch_size": 60}  # one step
    run_finetune(last, digits, tmp_path / "run", **settings)
    run_finetune(average, digits, tmp_path / "run", model_ema=True, model_ema_decay=0.75, **settings)
    first, final = weights(start, "backbone"), weights(last, "backbone")
    for name, value in weights(average, "backbone").items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * final[name])


def test_lower_layers_learn_slower_with_layer_decay(digits: Path, tmp_path: Path) -> None:
    for schedule in ("cosine", "none"):
        model = tiny_tosa()
        before = weights(model, "backbone")
        run_finetune(model, digits, tmp_path / "run", layer_decay=0.5, opt="sgd", clip_grad=None, sched=schedule)
        decayed = {name: (value - before[name]).norm() for name, value in weights(model, "backbone").items()}
        model = tiny_tosa()
        run_finetune(model, digits, tmp_path / "run", opt="sgd", clip_grad=None, sched=schedule)
        plain = {name: (value - before[name]).norm() for name, value in weights(model, "backbone").items()}
        ratios = [
            (decayed[name] / plain[name]).item() for name in ("blocks.0.mlp.fc1.weight", "blocks.5.mlp.fc1.weight")
        ]
        assert ratios[0] < 0.1 < ratios[1]


def test_stochastic_depth_is_off_again_afterwards(digits: Path, tmp_path: Path) -> None:
    model = short_tosa()
    run_finetune(model, digits, tmp_path / "run", epochs=1, drop_path=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert model(images).equal(model(images))


def test_mixup_needs_an_even_batch(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\b7\b"):
        run_finetune(short_tosa(), digits, tmp_path / "run", mixup=0.8, batch_size=7)


def test_labels_that_the_head_does_not_have_are_refused(digits: Path, tmp_path: Path) -> None:
    model, config = tiny_tosa(), FinetuneConfig(batch_size=20, workers=0, epochs=1, device="cpu")
    model.reset_classifier(4)
    images = read(model, digits, config, None)
    images.classes = None  # as of data that does not name its classes
    named = "label [4-9].* 4 classes.*--num-classes"
    with pytest.raises(DataError, match=named):
        Classification().learn(make_accelerator(config), model, images, config, checkpoint=tmp_path / "run")
    with pytest.raises(DataError, match=named):
        measure_models({"tosa": model}, images, AccuracyMeasure())


def test_the_schedule_warms_up_and_falls_to_its_end() -> None:
    config = FinetuneConfig(epochs=10, warmup_epochs=2, lr=1.0, min_lr=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = make_scheduler(config)(optimizer, 5)
    rates = []
    for update in range(51):
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01) and rates[5] == pytest.approx(0.505) and rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.55)  # half of the way from 10 to 50
    assert rates[49] == pytest.approx(0.1014, abs=1e-4) and rates[50] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 1.5, 4])
def test_a_rate_that_is_not_scheduled_stays_after_its_warmup(warmup: float) -> None:
    config = FinetuneConfig(epochs=4, warmup_epochs=warmup, lr=0.5, sched="none")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = make_scheduler(config)(optimizer, 10)
    for update in range(41):
        scheduler.step_update(update)
        assert (optimizer.param_groups[0]["lr"] == 0.5) == (update >= 10 * warmup)


def test_photos_without_labels_are_refused(tmp_path: Path) -> None:
    from tosa_cli.data.labels import check_labels

    model = tiny_tosa()
    images = read(model, write_photos(tmp_path / "photos", 3), FinetuneConfig(workers=0), None)
    with pytest.raises(DataError, match=fragments.PHOTOS_10_CLASSES_DATA_DIR):
        check_labels(images, model.num_classes)


def test_settings_of_one_run_do_not_bind_the_next_in_the_same_process(digits: Path, tmp_path: Path) -> None:
    run_finetune(short_tosa(), digits, tmp_path / "plain", epochs=1)
    report = run_finetune(short_tosa(), digits, tmp_path / "half", epochs=1, amp="bf16", grad_accum_steps=2)
    assert report.updates == 3


def test_an_accelerator_keeps_its_settings_when_another_is_made() -> None:
    first = make_accelerator(FinetuneConfig(device="cpu", grad_accum_steps=3))
    second = make_accelerator(FinetuneConfig(device="cpu", amp="bf16"))
    assert (first.mixed_precision, first.gradient_accumulation_steps) == ("no", 3)
    assert (second.mixed_precision, second.gradient_accumulation_steps) == ("bf16", 1)


def test_the_loss_is_read_from_the_device_once_an_optimizer_step(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    check = Saver.check_loss

    def count(saver: Saver, losses: list[torch.Tensor], *rest: Any) -> Any:
        checked.append(len(losses))
        return check(saver, losses, *rest)

    monkeypatch.setattr(Saver, "check_loss", count)
    report = run_finetune(short_tosa(), digits, tmp_path / "run", epochs=1, batch_size=5, grad_accum_steps=3)
    assert report.updates == 4 and checked == [3] * 4
