"""What has a closed form is fitted to the images, layer by layer, the same way every time."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from tests.sentences import fragments
from tests.train.tiny_runs import StopAt, read, same, tiny_tosa, weights, write_photos
from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError, DataError, TrainingError
from tosa_cli.fit import calibration
from tosa_cli.fit.calibrate import CalibrationReport, calibrate, fit_candidates
from tosa_cli.fit.calibration import Calibration
from tosa_cli.fit.candidates import bypass_errors, candidate_features, candidate_partners
from tosa_cli.model.families import attention_input, embed, embed_with_places
from tosa_cli.model.regression import Sums
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.config import DistillConfig
from tosa_cli.train.distill import DistillObjective, check_trainable, distill, distill_augmentation
from tosa_cli.train.processes import make_accelerator
from tosa_cli.train.weights import HeldOut, Watch

BYPASSES = ["identity", "linear", "nearest", "nearest+affine", "nearest+linear"]
FITTED = ["linear", "nearest+affine", "nearest+linear"]
SELECTORS = ["similarity", "probe", "attention", "previous", "random"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Count:
    """Progress that remembers how far it came."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, num_images: int, text: str) -> None:
        self.done += 1


def settings(**values: Any) -> DistillConfig:
    return DistillConfig(**{"batch_size": 8, "workers": 0, "epochs": 2, "device": "cpu", **values})


def fit(model: TosaViT, folder: Path, strict: bool = False, progress: Any = None, **values: Any) -> CalibrationReport:
    config = settings(**values)
    images = read(model, folder, config, None)
    return calibrate(make_accelerator(config), model, images, strict=strict, progress=progress)


def train_and_fit(model: TosaViT, folder: Path, checkpoint: Path, resume: bool = False, **values: Any) -> Any:
    progress, watch = values.pop("progress", None), values.pop("watch", None)
    config = settings(**values)
    return distill(
        make_accelerator(config),
        model,
        read(model, folder, config, distill_augmentation(config)),
        read(model, folder, config, None),
        config,
        checkpoint=checkpoint,
        watch=watch,
        resume=resume,
        progress=progress,
    )


def pixels(model: TosaViT, folder: Path) -> Tensor:
    images = read(model, folder, settings(), None)
    return torch.cat([batch.images for batch in images.batches(True)])


@torch.no_grad()
def cosine_to_dense(model: TosaViT, images: Tensor) -> float:
    """Mean cosine of the final tokens to the dense model's."""
    torch.manual_seed(0)
    tokens = model.forward_features(images)
    dense = model.backbone.forward_features(images)
    return F.cosine_similarity(tokens, dense, dim=-1).mean().item()


def fit_to_all_patches(model: TosaViT, folder: Path) -> None:
    """Fit the bypasses as they were when a probe or selector learned to predict their errors."""
    with Calibration(make_accelerator(settings()), model, read(model, folder, settings(), None), True, None) as run:
        fit_candidates(run)


@torch.no_grad()
def errors_by_layer(model: TosaViT, images: Tensor) -> dict[int, Tensor]:
    """Logarithm of what the bypass of each ToSA layer gets wrong, one number a patch, on the dense model's tokens."""
    tokens, errors = embed(model.backbone, images), {}
    for layer, block in enumerate(model.blocks, start=1):
        after = block(tokens)
        if layer in model.keep_rates:
            partners = candidate_partners(model, layer, tokens, model.grid(images))
            errors[layer] = bypass_errors(model, layer, tokens, after - tokens, partners).log().flatten()
        tokens = after
    return errors


def attention_inputs(model: TosaViT, images: Tensor) -> Iterator[Tensor]:
    """What the attention of each layer of the dense model reads."""
    tokens = embed(model.backbone, images)
    for block in model.blocks:
        yield attention_input(block, tokens)
        tokens = block(tokens)


# ---------------------------------------------------------------------- what it is for


@pytest.mark.parametrize("bypass", FITTED)
@pytest.mark.parametrize("selector", SELECTORS)
def test_calibration_brings_the_final_tokens_nearer_to_the_dense_models(
    photos: Path, selector: str, bypass: str
) -> None:
    model = tiny_tosa(selector=selector, bypass=bypass)
    backbone, selectors, keys = (weights(model, part) for part in ("backbone", "selectors", "keys"))
    images = pixels(model, photos)
    before = cosine_to_dense(model, images)
    report = fit(model, photos)
    after = cosine_to_dense(model, images)
    # Three numbers a channel cannot do much for the random weights of the tiny model.
    assert 1 - after < (0.98 if bypass == "nearest+affine" else 0.8) * (1 - before)
    assert report.images == 24 and report.failed == [] and report.seconds > 0
    assert list(report.errors) == [2, 4, 6] and all(0 < error < 1 for error in report.errors.values())
    assert same(backbone, weights(model, "backbone")) and same(keys, weights(model, "keys"))
    assert same(selectors, weights(model, "selectors")) == (selector != "probe")


@pytest.mark.parametrize("bypass", FITTED)
@pytest.mark.parametrize("span", [1, 2])
def test_the_error_told_is_what_the_bypass_gets_wrong_on_the_converted_stream(
    photos: Path, bypass: str, span: int
) -> None:
    model = tiny_tosa(selector="similarity", bypass=bypass, layers=(1, 2, 4), span=span)
    report = fit(model, photos)
    images = pixels(model, photos)
    with torch.no_grad():
        tokens, places = embed_with_places(model.backbone, images)
        for layer, block in enumerate(model.blocks[:4], start=1):
            if layer not in model.keep_rates:
                tokens = model.run_block(layer, tokens, places)
                continue
            if model.choosing_layers[layer] == layer:
                choice = model.choose(layer, Stream(tokens, places))
            after, truth = run_tosa_layer(block, tokens, choice, model.bypass(layer)), block(tokens)
            assert choice.skip_indices is not None
            index = choice.skip_indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            wrong, true = (after - truth).gather(1, index).norm(), (truth - tokens).gather(1, index).norm()
            assert report.errors[layer] == pytest.approx((wrong / true).item(), rel=1e-3)
            tokens = after


def test_nothing_is_read_where_nothing_is_fitted(photos: Path, scratch: Path) -> None:
    model = tiny_tosa(selector="similarity", bypass="nearest")
    report = fit(model, photos)
    assert report == CalibrationReport() and not list(scratch.iterdir())


@pytest.mark.parametrize("bypass", ["identity", "nearest"])
def test_a_probe_is_fitted_also_to_a_bypass_without_parameters(photos: Path, bypass: str) -> None:
    model = tiny_tosa(selector="probe", bypass=bypass)
    with torch.no_grad():
        for parameter in model.selector_parameters():
            parameter.zero_()
    progress = Count()
    report = fit(model, photos, progress=progress)
    assert all(parameter.abs().sum() > 0 for parameter in model.selector_parameters())
    assert all(error == pytest.approx(1) if bypass == "identity" else error < 1 for error in report.errors.values())
    assert progress.done == progress.total


@pytest.mark.parametrize("bypass", [*FITTED, "identity"])
def test_a_probe_tells_the_patches_that_the_bypass_is_wrong_about(photos: Path, tmp_path: Path, bypass: str) -> None:
    model = tiny_tosa(selector="probe", bypass=bypass)
    fit(model, photos)
    fit_to_all_patches(model, photos)
    images = pixels(model, photos)
    with torch.no_grad():
        inputs = dict(enumerate(attention_inputs(model, images), start=1))
        for layer, true in errors_by_layer(model, images).items():
            told = model.selector(layer)(inputs[layer])[:, 1:].flatten()
            assert torch.corrcoef(torch.stack([true, told]))[0, 1] > 0.5


def test_a_probe_skips_what_hurts_less_than_chance_does(photos: Path) -> None:
    cosines = {}
    for selector in ("probe", "random"):
        model = tiny_tosa(selector=selector, bypass="linear")
        fit(model, photos)
        cosines[selector] = cosine_to_dense(model, pixels(model, photos))
    assert cosines["probe"] > cosines["random"]


@pytest.mark.parametrize("bypass", FITTED)
def test_layers_that_skip_nobody_are_left_as_they_are(photos: Path, bypass: str) -> None:
    model = tiny_tosa(selector="similarity", bypass=bypass, keep_rate=(1.0, 0.5, 1.0))
    before = weights(model, "bypasses")
    report = fit(model, photos)
    changed = {
        name.split(".")[0] for name, value in weights(model, "bypasses").items() if not value.equal(before[name])
    }
    assert changed == {"4"} and report.errors[2] == report.errors[6] == 0 < report.errors[4]


def test_candidates_are_all_patches_each_matched_with_those_of_the_other_color(photos: Path) -> None:
    model = tiny_tosa(selector="probe", bypass="nearest+affine", neighbors=1)
    images = pixels(model, photos)[:2]
    with torch.no_grad():
        tokens = embed(model.backbone, images)
        updates = model.blocks[1](tokens) - tokens
        matched = candidate_partners(model, 2, tokens, (4, 4))
        differences, partners, truth = candidate_features(model, 2, tokens, updates, matched)
        inputs = model.blocks[1].norm1(tokens)
        keys = model.keys["2"](inputs)
    assert torch.equal(truth, updates[:, 1:]) and partners is not None
    for image in range(2):
        for patch in range(16):
            others = [other for other in range(16) if (other // 4 + other % 4 + patch // 4 + patch % 4) % 2]
            nearest = min(others, key=lambda other: (keys[image, 1 + patch] - keys[image, 1 + other]).norm().item())
            assert torch.allclose(partners[image, patch], updates[image, 1 + nearest], atol=1e-5)
            expected = inputs[image, 1 + patch] - inputs[image, 1 + nearest]
            assert torch.allclose(differences[image, patch], expected, atol=1e-5)


# ---------------------------------------------------------------------- the same every time


@pytest.mark.parametrize("selector", ["similarity", "probe", "random"])
@pytest.mark.parametrize("bypass", ["nearest+affine", "nearest+linear"])
def test_a_second_fit_finds_exactly_the_same(photos: Path, selector: str, bypass: str) -> None:
    model = tiny_tosa(selector=selector, bypass=bypass)
    torch.manual_seed(1)
    first = fit(model, photos)
    bypasses, selectors = weights(model, "bypasses"), weights(model, "selectors")
    torch.manual_seed(2)
    second = fit(model, photos)
    assert same(bypasses, weights(model, "bypasses")) and same(selectors, weights(model, "selectors"))
    assert first.errors == second.errors


def test_the_batch_size_changes_the_fit_by_rounding_alone(photos: Path) -> None:
    models = []
    for size in (24, 5):
        models.append(tiny_tosa(selector="similarity", bypass="nearest+affine"))
        fit(models[-1], photos, batch_size=size)
    for name, value in weights(models[0], "bypasses").items():
        torch.testing.assert_close(value, weights(models[1], "bypasses")[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batches", [0, 1, 2, 5, 6])
def test_sums_of_two_processes_are_added_in_the_order_of_the_batches(
    monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    # Numbers whose sum depends on their order: large ones swallow small ones.
    values = [torch.tensor([1e16 if number % 3 == 1 else 1.0], dtype=torch.float64) for number in range(batches)]

    def sums(numbers: range) -> Iterator[dict[Any, Sums]]:
        yield from ({7: {"x": values[number]}} for number in numbers)

    class Process:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

    model = tiny_tosa(selector="similarity", bypass="linear")
    images = Images(torch.utils.data.DataLoader([0]), None, 1, None, "")
    run = Calibration(Process(), model, images, True, None)  # type: ignore[arg-type]
    alone = run.sum_up(sums(range(batches)))
    Process.num_processes = 2
    other = sums(range(1, batches, 2))
    monkeypatch.setattr(calibration, "gather_object", lambda mine: [*mine, next(other, None)])
    together = run.sum_up(sums(range(0, batches, 2)))
    assert alone.keys() == together.keys() and len(alone) == min(batches, 1)
    assert all(alone[key]["x"].equal(together[key]["x"]) for key in alone)


# ---------------------------------------------------------------------- files, images and progress


def test_tokens_on_disk_are_removed_at_the_end_and_lie_there_until_then(photos: Path, scratch: Path) -> None:
    seen: list[int] = []

    class Look(Count):
        def advance(self, num_images: int, text: str) -> None:
            super().advance(num_images, text)
            seen.append(sum(len(list(folder.iterdir())) for folder in scratch.iterdir()))

    progress = Look()
    fit(tiny_tosa(selector="similarity", bypass="nearest+linear"), photos, progress=progress)
    assert max(seen) == 3 and not list(scratch.iterdir())
    assert progress.done == progress.total == 3 * 4  # batches times layers, and once more to the end


def test_tokens_on_disk_are_removed_also_after_an_interruption(photos: Path, scratch: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_tosa(selector="similarity", bypass="linear"), photos, progress=StopAt(7))
    assert not list(scratch.iterdir())


def test_a_fit_that_is_not_finite_stops_and_leaves_no_files(photos: Path, scratch: Path) -> None:
    model = tiny_tosa(selector="similarity", bypass="nearest+linear")
    with torch.no_grad():
        model.blocks[2].mlp.fc2.bias[0] = float("inf")
    with pytest.raises(TrainingError, match="layer 4"):
        fit(model, photos)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("selector", ["similarity", "probe"])
def test_a_broken_image_is_skipped_and_named(photos: Path, selector: str) -> None:
    (photos / "005.jpg").write_bytes(b"not an image")
    model, without = (tiny_tosa(selector=selector, bypass="nearest+linear") for _ in range(2))
    report = fit(model, photos)
    assert report.images == 23 and [Path(name).name.split()[0] for name in report.failed] == ["005.jpg"]
    (photos / "005.jpg").unlink()
    assert fit(without, photos).failed == []
    for name, value in weights(model, "bypasses").items():
        torch.testing.assert_close(value, weights(without, "bypasses")[name], rtol=1e-2, atol=1e-3)


def test_a_broken_image_stops_a_strict_fit_and_leaves_no_files(photos: Path, scratch: Path) -> None:
    (photos / "020.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"020\.jpg .*--strict"):
        fit(tiny_tosa(selector="similarity", bypass="linear"), photos, strict=True)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("own", [0, 1])
def test_an_image_that_stops_one_of_two_processes_stops_both_in_the_same_turn(photos: Path, own: int) -> None:
    (photos / "014.jpg").write_bytes(b"not an image")  # in the fourth batch of four, which the second process computes

    class Process(Accelerator):
        num_processes, process_index = 2, own  # type: ignore[assignment]

    model = tiny_tosa(selector="similarity", bypass="linear")
    images = read(model, photos, settings(batch_size=4), None)
    run = Calibration(Process(cpu=True), model, images, True, None)
    numbers = []
    batches = run.read()
    with pytest.raises(DataError, match=r"014\.jpg"):
        while True:
            numbers.append(next(batches)[0])
    assert numbers == [own]


def test_images_none_of_which_can_be_read_are_refused(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 3)
    for path in folder.iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=fragments.PHOTOS_000_JPG):
        fit(tiny_tosa(selector="similarity", bypass="linear"), folder)


# ---------------------------------------------------------------------- within distill


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
