"""Finetuning for dense tasks: the loss, what trains, and exact resuming."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model.tiny_models import make_images, make_tosa, make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import save_image, write_folder
from tests.train.tiny_runs import StopAt
from tosa_cli.data.pair_images import pairs_to_read
from tosa_cli.data.pairs import open_pairs
from tosa_cli.errors import CheckpointError, TrainingError
from tosa_cli.model.predictor import Predictor
from tosa_cli.tasks.depth import Depth, silog_loss
from tosa_cli.tasks.registry import TASKS
from tosa_cli.tasks.segmentation import segmentation_loss
from tosa_cli.train.loop import TrainReport
from tosa_cli.train.predictor import PredictorObjective, predictor_groups
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.train.processes import make_accelerator


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "scenes", 8)


def predictor(converted: bool = True, keep_rate: float = 0.5, **settings: Any) -> Predictor:
    source = make_vit("test_vit", img_size=32, patch_size=8, depth=4, dynamic_img_size=True)
    torch.manual_seed(0)
    config = PredictorConfig(**{"decoder_dim": 16, **settings}).task_config
    return Predictor(make_tosa(source, layers=(2, 4), keep_rate=keep_rate) if converted else source, config).eval()


def run(
    model: Predictor, folder: Path, checkpoint: Path, resume: bool = False, progress: Any = None, **settings: Any
) -> TrainReport:
    defaults = {"batch_size": 4, "workers": 0, "epochs": 2, "lr": 1e-3, "device": "cpu", "decoder_dim": 16}
    config = PredictorConfig(**{**defaults, **settings})
    pairs = open_pairs(str(folder), task=config.task)
    images = pairs_to_read(
        pairs,
        model,
        model.config,
        data_format="folder",
        img_size=(32, 32),
        batch_size=config.batch_size,
        workers=config.workers,
        augment=config,
        seed=config.seed,
    )
    accelerator = make_accelerator(config)
    return TASKS[config.task].learn(
        accelerator, model, images, config, checkpoint=checkpoint, resume=resume, progress=progress
    )


def same(first: Predictor, second: Predictor) -> bool:
    return all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_loss_of_two_pixels_is_that_computed_by_hand() -> None:
    predicted, depth = torch.tensor([[[2.0, 3.0, 9.0]]]), torch.tensor([[[1.0, 6.0, 0.0]]])
    first, second = math.log(2), math.log(0.5)
    expected = 10 * math.sqrt((first**2 + second**2) / 2 - 0.85 * ((first + second) / 2) ** 2)
    assert silog_loss(predicted, depth).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_forgives_most_of_a_common_scale_and_at_variance_focus_one_all_of_it() -> None:
    depth = torch.rand(2, 4, 4) + 1
    assert silog_loss(2 * depth, depth).item() == pytest.approx(10 * math.sqrt(0.15) * math.log(2), rel=1e-4)
    assert silog_loss(2 * depth, depth, variance_focus=1.0).item() < 0.01


def test_a_batch_without_a_measured_pixel_has_no_loss_and_no_gradient_that_is_not_finite() -> None:
    predicted = (torch.rand(1, 2, 2) + 1).requires_grad_()
    for depth in (torch.zeros(1, 2, 2), predicted.detach().clone()):
        (gradient,) = torch.autograd.grad(silog_loss(predicted, depth), predicted)
        assert gradient.isfinite().all()
    assert silog_loss(predicted, torch.zeros(1, 2, 2)).item() == 0.0


def test_a_batch_without_a_labelled_pixel_has_no_loss_and_no_gradient() -> None:
    logits = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 4, 4), 255))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0 and gradient.eq(0).all()


def test_pixels_without_a_class_do_not_count() -> None:
    logits, labels = torch.rand(1, 3, 1, 2), torch.tensor([[[2, 255]]])
    expected = -logits[0, :, 0, 0].log_softmax(0)[2].item()
    assert segmentation_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_training_goes_on_past_an_image_without_a_labelled_pixel(scenes: Path, tmp_path: Path) -> None:
    for path in sorted((scenes / "mask").iterdir())[:3]:
        save_image(path, np.full((32, 32), 255, np.uint8))
    settings = {"task": "segmentation", "num_labels": 2, "batch_size": 1, "epochs": 1}
    report = run(predictor(**settings), scenes, tmp_path / "run", **settings)
    assert report.updates == 8 and math.isfinite(report.last_loss)


@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("decoder", ["linear", "dpt", "newcrfs"])
def test_everything_trains_that_the_loss_depends_on_but_the_selectors(converted: bool, decoder: str) -> None:
    model = predictor(converted, decoder=decoder)
    objective = PredictorObjective(model, Depth().loss).train()
    objective(make_images(size=32), torch.ones(2, 32, 32)).backward()
    for name, parameter in model.named_parameters():
        unread = decoder == "dpt" and ".norm." in name and "blocks" not in name
        assert (parameter.grad is None) == ("selectors" in name or unread), name
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode() -> None:
    model = predictor()
    objective = PredictorObjective(model, Depth().loss, freeze_encoder=True).train()
    objective(make_images(size=32), torch.ones(2, 32, 32)).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert model.decoder.training and not model.encoder.training


def test_the_encoder_learns_at_a_share_of_the_rate() -> None:
    model = predictor()
    PredictorObjective(model, Depth().loss)
    rates: dict[int, float] = {}
    for group in predictor_groups(model, PredictorConfig(encoder_lr_scale=0.25)):
        params: list[Tensor] = group["params"]  # type: ignore[assignment]
        rates |= {id(parameter): group["lr_scale"] for parameter in params}  # type: ignore[misc]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert set(rates) == {id(parameter) for parameter in trained}
    assert {rates[id(parameter)] for parameter in model.decoder.parameters()} == {1.0}
    assert {rates[id(p)] for p in model.encoder.parameters() if p.requires_grad} == {0.25}


RICH = {
    "model_ema": True,
    "model_ema_decay": 0.7,
    "drop_path": 0.3,
    "color_jitter": 0.3,
    "rotation": 5.0,
    "warmup_epochs": 1,
    "checkpoint_every": 1,
}


@pytest.mark.parametrize(
    ("decoder", "settings"),
    [("dpt", RICH), ("newcrfs", RICH), ("linear", {**RICH, "freeze_encoder": True}), ("dpt", {"workers": 2})],
)
def test_an_interrupted_run_resumes_exactly(
    scenes: Path, tmp_path: Path, decoder: str, settings: dict[str, Any]
) -> None:
    models = [predictor(decoder=decoder) for _ in range(3)]
    run(models[0], scenes, tmp_path / "whole", decoder=decoder, **settings)
    with pytest.raises(TrainingError, match="--resume"):
        run(models[1], scenes, tmp_path / "part", progress=StopAt(3), decoder=decoder, **settings)
    report = run(models[2], scenes, tmp_path / "part", resume=True, decoder=decoder, **settings)
    assert same(models[0], models[2]) and report.updates == 4
    assert not same(models[0], predictor(decoder=decoder))


def test_a_run_is_not_resumed_on_another_encoder(scenes: Path, tmp_path: Path) -> None:
    run(predictor(), scenes, tmp_path / "run")
    with pytest.raises(CheckpointError, match=fragments.RUN_RESUME):
        run(predictor(keep_rate=0.8), scenes, tmp_path / "run", resume=True)


def test_mixed_precision_and_recomputed_layers_train_too(scenes: Path, tmp_path: Path) -> None:
    for decoder in ("linear", "dpt", "newcrfs"):
        model = predictor(decoder=decoder)
        report = run(model, scenes, tmp_path / decoder, decoder=decoder, amp="bf16", grad_checkpointing=True, epochs=4)
        assert report.last_loss < report.first_loss


def test_a_format_brings_its_own_cap() -> None:
    assert PredictorConfig().max_depth == 10 and PredictorConfig(data_format="kitti").max_depth == 80
    assert PredictorConfig.from_dict({"img_size": "480,640"}).size == (480, 640) and PredictorConfig(
        img_size=224
    ).size == (224, 224)
