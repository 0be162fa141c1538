"""The selectors of a whole model learn the attention maps of its own layers, and nothing else is changed."""

import itertools
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import tosa_cli
from tests.model.whole_models import VISION, batch_for, clip, depth_anything, vitpose, yolos
from tests.sentences import fragments
from tests.train.tiny_runs import StopAt, write_photos
from tosa_cli import DistillConfig, TosaConfig
from tosa_cli.errors import DataError, TrainingError
from tosa_cli.hub.whole import WholeModel, load_whole, save_whole
from tosa_cli.model.runs import converted_runs
from tosa_cli.progress import Nobody, Progress
from tosa_cli.provenance import Provenance
from tosa_cli.train.whole_distill import RunsObjective, measure_runs, trained_runs
from tosa_cli.workflow.whole_distill import distill
from tosa_cli.workflow.whole_folder import image_part

PAPER = TosaConfig(layers=(2, 4), keep_rate=0.5)
FITTED = TosaConfig(layers=(2, 4), keep_rate=0.5, bypass="nearest+affine")
QUICK = DistillConfig(epochs=10, device="cpu")


def converted(make: Any, config: TosaConfig = PAPER) -> Any:
    """A model that attends unevenly, converted; the same each time."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return tosa_cli.convert(model, config)


def classifier() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**VISION))


def batches_for(model: Any, count: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    batch = batch_for(model)
    pixels = [torch.randn(batch["pixel_values"].shape, generator=generator) for _ in range(count)]
    return [{**batch, "pixel_values": each} for each in pixels]


def changed(model: Any, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


@pytest.mark.parametrize("make", [clip, vitpose, yolos])
def test_selectors_learn_the_maps_of_the_dense_layers_and_nothing_else_changes(make: Any, tmp_path: Path) -> None:
    model = converted(make)
    batches, weights = batches_for(model), {name: value.clone() for name, value in model.state_dict().items()}
    required = [parameter.requires_grad for parameter in model.parameters()]
    images = [batch["pixel_values"] for batch in batches]
    before = measure_runs(image_part(model), images)
    (report,) = tosa_cli.calibrate(model, iter(batches), QUICK)
    after = measure_runs(image_part(model), images)
    assert report.updates == 60 and report.errors == {}
    assert report.loss is not None and report.loss < sum(layer.kl for layer in before.layers)
    assert all(new.kl < old.kl for new, old in zip(after.layers, before.layers, strict=True))
    assert sum(layer.found for layer in after.layers) > sum(layer.found for layer in before.layers)
    assert changed(model, weights) == {name for name in weights if ".tosa.selectors." in name}
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        made, expected = again(**batches[0]).to_tuple(), model(**batches[0]).to_tuple()
    assert made[0].equal(expected[0])


def test_selectors_that_are_worse_for_the_training_are_told() -> None:
    fine, worse = converted(clip), converted(clip)
    batches = batches_for(fine, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tosa_cli.calibrate(fine, batches, QUICK)
    with pytest.warns(UserWarning, match=fragments.THE_SELECTORS_ARE_WORSE_THAN):
        tosa_cli.calibrate(worse, batches, replace(QUICK, epochs=1, lr=1e9))


def test_selectors_that_tell_no_token_from_another_are_told() -> None:
    model = converted(clip)
    with torch.no_grad():
        trained_runs(image_part(model))[0].selector(2).conv1.bias.fill_(-1e3)
    with pytest.warns(UserWarning, match=fragments.IN_LAYER_2_THE_TRAINED):
        tosa_cli.calibrate(model, batches_for(model, 2), replace(QUICK, epochs=1))


def test_what_is_fitted_is_fitted_once_the_selectors_are_trained() -> None:
    model = converted(depth_anything, FITTED)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    (report,) = tosa_cli.calibrate(model, batches_for(model), DistillConfig(epochs=1, device="cpu"))
    assert report.updates == 6 and report.images == 12
    assert list(report.errors) == [2, 4]
    parts = {name.split(".tosa.")[1].partition(".")[0] for name in changed(model, weights)}
    assert parts == {"selectors", "bypasses"}


def test_the_maps_are_those_of_the_model_with_every_token() -> None:
    """The loss is the same whatever the keep rates, and where the model changes tokens between its layers too."""

    def make(keep_rate: float) -> Any:
        torch.manual_seed(0)
        model = yolos(use_mid_position_embeddings=True).eval()
        return tosa_cli.convert(model, TosaConfig(layers=(2, 4), keep_rate=keep_rate))

    few, all_of_them = make(0.2), make(1.0)
    images = torch.randn(2, 3, 56, 70)
    losses = [RunsObjective(model)(images, torch.zeros(2)) for model in (few, all_of_them)]
    assert losses[0].equal(losses[1])
    dense_maps: list[Tensor] = []
    run = converted_runs(all_of_them)[0].run
    assert run is not None
    run.selector(4).register_forward_pre_hook(lambda module, args: dense_maps.append(args[0]))
    all_of_them(images)
    RunsObjective(all_of_them)(images, torch.zeros(2))
    torch.testing.assert_close(dense_maps[0], dense_maps[1])


def test_a_model_in_half_precision_stays_so() -> None:
    model = converted(vitpose).to(torch.bfloat16)
    (report,) = tosa_cli.calibrate(model, batches_for(model, 2), DistillConfig(epochs=1, device="cpu"))
    assert report.updates == 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_batches_that_say_nothing_are_refused() -> None:
    model = converted(clip)
    with pytest.raises(DataError, match=fragments.NO_BATCH):
        tosa_cli.calibrate(model, [])
    texts = {key: value for key, value in batch_for(model).items() if key != "pixel_values"}
    required = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(DataError, match=fragments.WAS_NOT_RUN):
        tosa_cli.calibrate(model, [texts])
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert converted_runs(model)[0].run.reading is None


class Listening(Nobody):
    """Watches nothing but the progress, with which it may stop the run."""

    def __init__(self, progress: Any = None) -> None:
        self.bar = progress

    def progress(self, text: str) -> AbstractContextManager[Progress]:
        return super().progress(text) if self.bar is None else nullcontext(self.bar)


@pytest.fixture
def photos(tmp_path: Path) -> str:
    return str(write_photos(tmp_path / "photos"))


def write(folder: Path, config: TosaConfig = PAPER) -> str:
    """A converted model with its processor."""
    processor = hf.ViTImageProcessor(size={"height": 56, "width": 56})
    save_whole(WholeModel(converted(classifier, config), processor, "vit", Provenance(source="vit")), folder)
    return str(folder)


SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu", "checkpoint_every": 1}


@pytest.mark.parametrize("config", [PAPER, FITTED])
def test_a_run_that_is_resumed_ends_in_the_same_weights(tmp_path: Path, photos: str, config: TosaConfig) -> None:
    settings = DistillConfig(data_dir=photos, **SETTINGS)
    whole = distill(write(tmp_path / "whole", config), settings, listener=Nobody())
    name, dense = write(tmp_path / "stopped", config), (tmp_path / "stopped" / "model.safetensors").read_bytes()
    with pytest.raises((KeyboardInterrupt, TrainingError)):
        distill(name, settings, listener=Listening(StopAt(7)))
    assert (tmp_path / "stopped" / "model.safetensors").read_bytes() == dense
    assert (tmp_path / "stopped.distill-checkpoint.safetensors").exists()
    resumed = distill(name, settings, resume=True, listener=Nobody())
    assert (whole.updates, resumed.updates) == (10, 10)
    weights = [load_whole(str(tmp_path / name)).model.state_dict() for name in ("whole", "stopped")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    assert not (tmp_path / "stopped.distill-checkpoint.safetensors").exists()


def test_held_out_photos_say_what_was_learned(tmp_path: Path, photos: str) -> None:
    report = distill(
        write(tmp_path / "whole", FITTED),
        DistillConfig(data_dir=photos, **{**SETTINGS, "epochs": 4}),
        listener=Nobody(),
    )
    found = report.held_out
    assert found["samples"] == 2
    assert [row["layer"] for row in found["layers"]] == [2, 4]
    assert all(row["kl_after"] < row["kl_before"] for row in found["layers"])
    assert list(found["bypass_errors"]) == [2, 4] and found["fit_kept"]
    assert 0 < found["patch_cosine_before"] < 1
    kept = load_whole(str(tmp_path / "whole")).provenance
    assert kept.is_distilled and kept.steps["distill"]["epochs"] == 4


def test_a_fit_that_leads_away_from_the_dense_model_is_not_kept(
    tmp_path: Path, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write(tmp_path / "whole", TosaConfig(layers=(2, 3), keep_rate=0.5, selector="similarity", bypass="linear"))
    before = load_whole(name).model.state_dict()
    scores = itertools.count(1.0, -0.5)
    from tosa_cli.train.weights import HeldOut

    def measured(*_: Any) -> HeldOut:
        score = next(scores)
        return HeldOut(2, score, {"patch_cosine": score}, scores=[score, score])

    monkeypatch.setattr("tosa_cli.workflow.whole_distill.held_out_tokens", measured)
    report = distill(name, DistillConfig(data_dir=photos, **SETTINGS), listener=Nobody())
    assert report.held_out["fit_kept"] is False and "bypass_errors" not in report.held_out
    assert changed(load_whole(name).model, before) == set()
