"""Distillation trains the selectors and nothing else, on any images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sentences import fragments
from tests.train.tiny_runs import photos as sample_photos
from tests.train.tiny_runs import read, run_distill, same, tiny_tosa, weights, write_photos
from tosa_cli.data.loading import images_to_read
from tosa_cli.errors import ConfigError, DataError, TrainingError
from tosa_cli.measure.selectors import measure_selectors
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.distill import DistillObjective


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


class BreakAfter:
    """Progress that breaks a weight after some batches, as a bad step would."""

    def __init__(self, batches: int, model: TosaViT) -> None:
        self.left, self.model = batches, model

    def start(self, total: int, done: int) -> None:
        pass

    @torch.no_grad()
    def advance(self, num_images: int, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            next(self.model.selector_parameters()).fill_(float("inf"))


def held_out_kl(model: TosaViT, folder: Path) -> list[float]:
    images = read(model, folder, DistillConfig(workers=0), None)
    return [layer.kl for layer in measure_selectors(model, (batch.images for batch in images.batches(True))).layers]


@pytest.mark.parametrize(
    "settings",
    [{}, {"query_rows": "all"}, {"query_rows": 2}, {"selection": "per-head"}, {"selector_kernel": 3}],
)
def test_the_kl_falls_on_held_out_photos_and_the_backbone_stays(
    photos: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    others = write_photos(tmp_path / "others", 40)
    for path in sorted(others.iterdir())[:24]:
        path.unlink()
    model = tiny_tosa(**settings)
    backbone, selectors, before = weights(model, "backbone"), weights(model, "selectors"), held_out_kl(model, others)
    report = run_distill(model, photos, tmp_path / "run", epochs=8)
    assert same(backbone, weights(model, "backbone"))
    assert not any(value.equal(selectors[name]) for name, value in weights(model, "selectors").items())
    assert report.last_loss < report.first_loss and report.updates == 24 and report.images == 192
    assert all(after < kl for after, kl in zip(held_out_kl(model, others), before, strict=True))


def test_only_selectors_get_gradients() -> None:
    model = tiny_tosa()
    DistillObjective(model)(torch.randn(2, 3, 32, 32), torch.zeros(2)).backward()
    assert all(parameter.grad is not None for parameter in model.selector_parameters())
    assert all(parameter.grad is None for parameter in model.backbone_parameters())


def test_distillation_ignores_dropout_and_stochastic_depth() -> None:
    objective = DistillObjective(tiny_tosa()).train()
    assert not any(module.training for module in objective.modules())


def test_labels_are_not_read(photos: Path, tmp_path: Path) -> None:
    """The same photos in one folder, or spread over class folders whose order is the same."""
    for i, path in enumerate(sorted(photos.iterdir())):
        target = tmp_path / "nested" / f"class{i // 9}" / "deep" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    flat, nested = tiny_tosa(), tiny_tosa()
    run_distill(flat, photos, tmp_path / "run")
    run_distill(nested, tmp_path / "nested", tmp_path / "run")
    assert same(weights(flat, "selectors"), weights(nested, "selectors"))


def test_images_of_every_size_shape_and_mode_are_read(tmp_path: Path) -> None:
    from PIL import Image

    for i, mode in enumerate(["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "LA"] * 2):
        cut = Image.fromarray(sample_photos()[0]).resize((20 + 9 * i, 60))
        image = cut.convert("L").convert("I").convert(mode) if mode == "I;16" else cut.convert(mode)
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
    report = run_distill(tiny_tosa(), tmp_path / "photos", tmp_path / "run")
    assert report.failed == [] and report.updates == 4


def test_two_half_batches_add_up_to_a_whole_one(photos: Path, tmp_path: Path) -> None:
    whole, halves = tiny_tosa(), tiny_tosa()
    settings = {"epochs": 1, "opt": "sgd", "lr": 0.1, "sched": "none", "clip_grad": None}
    run_distill(whole, photos, tmp_path / "run", batch_size=8, **settings)
    run_distill(halves, photos, tmp_path / "run", batch_size=4, grad_accum_steps=2, **settings)
    for name, value in weights(whole, "selectors").items():
        torch.testing.assert_close(value, halves.selectors.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_batches_that_do_not_fill_an_accumulated_step_are_left_out(photos: Path, tmp_path: Path) -> None:
    report = run_distill(tiny_tosa(), photos, tmp_path / "run", batch_size=5, grad_accum_steps=3, epochs=2)
    assert report.updates == 2 and report.images == 30


def test_a_gradient_is_clipped_to_its_largest_norm(photos: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 24, "opt": "sgd", "lr": 1.0, "sched": "none"}
    for clip in (1e-3, 1e-2):
        model = tiny_tosa()
        before = weights(model, "selectors")
        run_distill(model, photos, tmp_path / "run", clip_grad=clip, **settings)
        steps = [value - before[name] for name, value in weights(model, "selectors").items()]
        # timm's sgd has Nesterov's momentum of 0.9: the first step is 1.9 times the gradient
        assert torch.cat([step.flatten() for step in steps]).norm().item() == pytest.approx(1.9 * clip, rel=1e-2)


def test_bf16_on_the_cpu_learns_as_well(photos: Path, tmp_path: Path) -> None:
    report = run_distill(tiny_tosa(), photos, tmp_path / "run", amp="bf16", epochs=4)
    assert report.last_loss < report.first_loss


def test_a_selector_without_weights_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'previous'.*'identity'"):
        run_distill(tiny_tosa(selector="previous"), photos, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"opt": "nope"}, "opt 'nope'"),
        ({"sched": "nope"}, "sched .*'nope'"),
        ({"sched": "plateau"}, "sched .*'plateau'"),
        ({"log_with": "nope"}, "nope"),
    ],
)
def test_an_unknown_name_is_refused_before_training(
    photos: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        run_distill(tiny_tosa(), photos, tmp_path / "run", **settings)


def test_too_few_images_for_one_step_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fragments.BATCH_SIZE_OF_24_OR_25):
        run_distill(tiny_tosa(), photos, tmp_path / "run", batch_size=25)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    photos: Path, tmp_path: Path
) -> None:
    model = tiny_tosa()
    run_distill(model, photos, tmp_path / "run", epochs=1, checkpoint_every=1)
    kept = (tmp_path / "run").read_bytes()
    broken = tiny_tosa()
    with torch.no_grad():
        next(broken.selector_parameters())[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=fragments.NAN_AFTER_0_STEPS_LR):
        run_distill(broken, photos, tmp_path / "run", epochs=1, checkpoint_every=1)
    assert (tmp_path / "run").read_bytes() == kept

    model = tiny_tosa()
    with pytest.raises(TrainingError, match=fragments.AFTER_3_STEPS_S_RUN):
        run_distill(model, photos, tmp_path / "run", progress=BreakAfter(3, model), checkpoint_every=1)
    report = run_distill(tiny_tosa(), photos, tmp_path / "run", resume=True, checkpoint_every=1)
    assert report.updates == 6 and report.images == 32


def test_weights_that_the_last_step_broke_are_not_kept(photos: Path, tmp_path: Path) -> None:
    model = tiny_tosa()
    with pytest.raises(TrainingError, match=fragments.AFTER_3_STEPS_LR):
        run_distill(model, photos, tmp_path / "run", epochs=1, progress=BreakAfter(3, model))
    assert not (tmp_path / "run").exists()


def test_held_out_images_are_read_whole_and_in_order(photos: Path) -> None:
    model = tiny_tosa()
    from tosa_cli.data.datasets import open_dataset

    images = images_to_read(open_dataset(str(photos)), model, batch_size=7, name="photos")
    assert [len(batch.images) for batch in images.batches(True)] == [7, 7, 7, 3]
