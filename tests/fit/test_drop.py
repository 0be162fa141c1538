"""What a task loses at keep rates that are found for it, on held-out images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny_models import make_vit
from tests.model.whole_models import depth_anything, yolos
from tests.sentences import fragments
from tests.train.tiny_runs import fit_head, write_digits
from tosa_cli import choose_rates
from tosa_cli.config import Method
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import Images, images_to_read
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.fit.calibration import Calibration
from tosa_cli.fit.drop import Agreement, Drop, Guesses, MaxDrop
from tosa_cli.fit.rates import hold, largest_saving
from tosa_cli.fit.schedules import Schedules
from tosa_cli.hub.measured import describe_held
from tosa_cli.measure.agreement import compare_outputs
from tosa_cli.model.convert import insert_selectors
from tosa_cli.model.runs import convert_runs
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

METHOD = Method(selector="ward", bypass="mean")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 60)


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Any:
    """Its head tells most of these digits apart."""
    return fit_head(make_vit("test_vit", img_size=32, patch_size=4, num_classes=10, depth=4), folder)


@pytest.fixture
def digits(folder: Path, classifier: Any) -> Images:
    return images_to_read(open_dataset(str(folder)), classifier, batch_size=60, name="digits")


def right(model: Any, images: Images) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(batch.images).argmax(1) == batch.targets for batch in images.batches(True)])


def test_the_drop_told_is_that_of_the_model_made_with_these_rates(classifier: Any, digits: Images) -> None:
    accelerator = make_accelerator(TrainConfig(device="cpu"))
    found = hold(accelerator, classifier, METHOD, digits, digits, MaxDrop(5.0))
    config = METHOD.at(found.keep_rates, found.keep_rates.values())
    before, after = right(classifier, digits), right(insert_selectors(classifier, config), digits)
    lost, gained = (before & ~after).sum().item(), (after & ~before).sum().item()
    apart = 100 * (before.double() - after.double())
    held = found.held
    assert isinstance(held, Drop) and (held.images, held.lost, held.gained) == (60, lost, gained) and lost > 0
    assert held.drop == pytest.approx(apart.mean().item()) and 0 < held.drop <= 5.0
    assert held.dense == pytest.approx(100 * before.double().mean().item())
    assert held.converted == pytest.approx(100 * after.double().mean().item())
    assert held.drop_error == pytest.approx((apart.std() / len(apart) ** 0.5).item())
    assert held.sure > held.drop


@pytest.mark.parametrize("points", [1.0, 10.0])
def test_a_percent_more_of_saving_would_lose_more_than_was_allowed(
    classifier: Any, digits: Images, points: float
) -> None:
    schedules, wish = Schedules(classifier, METHOD), MaxDrop(points)
    model = TosaViT(classifier, METHOD.at(schedules.layers, 1.0))
    with Calibration(make_accelerator(TrainConfig(device="cpu")), model, digits, True, None) as run:
        judge = Guesses(run, wish)
        judge.read()
        merging = schedules.choosing
        saving = largest_saving(schedules, judge, merging, wish)
        assert 0 < saving < schedules.most - 0.01
        assert judge.at(schedules.keep_rates(merging, saving)).drop <= points
        assert judge.at(schedules.keep_rates(merging, saving + 0.01)).drop > points


def test_a_model_that_guesses_has_nothing_to_lose(digits: Images) -> None:
    guessing = make_vit("test_vit", img_size=32, patch_size=4, num_classes=10, depth=4, seed=1)
    with pytest.raises(DataError, match=fragments.HELD_OUT_IMAGES_OF_DIGITS):
        hold(make_accelerator(TrainConfig(device="cpu")), guessing, METHOD, digits, digits, MaxDrop(1.0))


def test_how_sure_a_drop_is_depends_on_how_many_images_there_are() -> None:
    none = Drop(images=64, measure="", dense=90, converted=90, drop=0, drop_error=0, lost=0, gained=0)
    # Bonett and Price by hand: 1 of 66 lost and 1 gained, a variance of (2 / 66) / 66.
    assert none.sure == pytest.approx(100 * 1.645 * (2 / 66 / 66) ** 0.5)
    many = replace(none, images=6400)
    assert many.sure < none.sure / 50
    # Of many images, many of them apart, it is the usual bound.
    drop, error = 1.0, 100 * ((300 + 200) / 10_000 - 0.01**2) ** 0.5 / 100
    usual = Drop(images=10_000, measure="", dense=90, converted=89, drop=drop, drop_error=error, lost=300, gained=200)
    assert usual.sure == pytest.approx(replace(usual, lost=None, gained=None).sure, rel=5e-3)


def test_images_that_all_lose_the_same_do_not_say_what_others_lose() -> None:
    none = Drop(images=16, measure="delta1 of predicted_depth", dense=100, converted=100, drop=0, drop_error=0)
    assert none.sure is None
    assert "what other images lose they do not say" in describe_held(none.to_dict())
    assert "less than 3.29 with 95 % confidence" in describe_held(replace(none, drop_error=2.0).to_dict())


@pytest.mark.parametrize("wish", [{"max_drop": 50}, {"min_cosine": 0.1}])
def test_one_held_out_image_is_not_enough(wish: dict[str, float]) -> None:
    batches = torch.randn(2, 1, 3, 56, 56)
    with pytest.raises(DataError, match=fragments.ONE_HELD_OUT_IMAGE_WHICH):
        choose_rates(depth_anything(), batches, **wish)  # type: ignore[arg-type]


def test_what_outputs_lose_is_what_a_comparison_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = yolos().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    batches = [torch.randn(2, 3, 56, 70), torch.randn(1, 3, 56, 56)]
    (found,) = convert_runs(model, METHOD.at((1, 2, 3, 4), 0.4))
    for room in (2**20, 0):
        monkeypatch.setattr("tosa_cli.fit.drop.MOST_KEPT", room)
        judge = Agreement(model, found.run, batches)
        drop = judge.at({1: 0.6, 2: 0.5, 3: 0.5, 4: 0.4})
        assert drop is judge.at({1: 0.6, 2: 0.5, 3: 0.5, 4: 0.4}) and len(judge._dense) == (2 if room else 0)
        figures = compare_outputs(None, model, batches).outputs["pred_boxes"]
        assert drop.measure == "matched_iou of pred_boxes" and (drop.images, drop.dense, drop.lost) == (3, 100, None)
        assert drop.converted == pytest.approx(100 * figures["matched_iou"]) and drop.drop > 0
        assert judge.at(dict.fromkeys((1, 2, 3, 4), 1.0)).drop == pytest.approx(0, abs=1e-3)


def test_images_of_which_a_depth_model_says_nothing_are_counted_apart() -> None:
    model = depth_anything().eval()

    def flatten_first(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        outputs.predicted_depth[0] = 1.0

    model.register_forward_hook(flatten_first)
    (found,) = convert_runs(model, METHOD.at((1, 2, 3, 4), 0.4))
    drop = Agreement(model, found.run, [torch.randn(3, 3, 56, 56)]).at({1: 0.6, 2: 0.5, 3: 0.5, 4: 0.4})
    assert (drop.images, drop.left_out) == (2, 1)
    assert describe_held(drop.to_dict()).endswith(
        " Left out: 1 image, as the dense model predicts no depth there, or the same everywhere."
    )
    assert "Left out" not in describe_held(replace(drop, left_out=0).to_dict())


def test_a_drop_that_holds_nowhere_is_refused(classifier: Any, digits: Images) -> None:
    class Judge:
        """Six images of a hundred are lost, however little is saved."""

        def at(self, keep_rates: dict[int, float]) -> Drop:
            return Drop(images=100, measure="top-1 accuracy", dense=90, converted=84, drop=6, drop_error=2)

    judge: Any = Judge()
    schedules = Schedules(classifier, METHOD)
    assert largest_saving(schedules, judge, schedules.choosing, MaxDrop(5.0)) == 0
    with pytest.raises(ConfigError, match=fragments.THERE_TOP_1_ACCURACY_IS):
        raise ConfigError(MaxDrop(5.0).refusal(judge.at({})))
