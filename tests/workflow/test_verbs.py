"""The verbs from Python: a model, its images and one config, with everything that the commands do."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

import tosa_cli
from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tests.train.tiny_runs import same, tiny_tosa, weights, write_digits, write_photos
from tosa_cli.data.description import read_from
from tosa_cli.errors import CheckpointError, ConfigError, DataProcessError, InputError, TrainingError
from tosa_cli.model.predictor import Predictor
from tosa_cli.progress import Nobody
from tosa_cli.train.saver import Saver
from tosa_cli.workflow.finetune import finetune

FAST = {"batch_size": 8, "workers": 0, "epochs": 1, "device": "cpu"}


def test_a_model_is_distilled_in_place_and_tells_what_its_held_out_images_say(tmp_path: Path) -> None:
    model = tiny_tosa()
    before = weights(model, "selectors")
    report = tosa_cli.distill(model, write_photos(tmp_path / "photos"), tosa_cli.DistillConfig(**FAST))
    assert report.model is model and report.folder is None and not same(before, weights(model, "selectors"))
    assert report.updates == 2 and [row["layer"] for row in report.held_out["layers"]] == [2, 4, 6]
    assert model.provenance.stage == "distilled" and [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_selectors_that_predict_no_finite_numbers_are_not_written(tmp_path: Path) -> None:
    folder = tosa_cli.save(tiny_tosa(), tmp_path / "model")
    before = (folder / "model.safetensors").read_bytes()
    # The weights after the one step are finite, and their products are not.
    config = tosa_cli.DistillConfig(**{**FAST, "batch_size": 22}, lr=1e30, warmup_epochs=0)
    with pytest.raises(TrainingError, match=fragments.NO_FINITE_NUMBERS_LR):
        tosa_cli.distill(folder, write_photos(tmp_path / "photos"), config)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_fit_that_does_not_help_is_not_kept_in_python_either(tmp_path: Path) -> None:
    photos, black = write_photos(tmp_path / "photos"), tmp_path / "black"
    black.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64)).save(black / f"{name}.png")
    model = tiny_tosa(selector="similarity", bypass="nearest+linear", layers=(2, 3))
    before = weights(model, "bypasses")
    data = tosa_cli.Data(data_dir=str(black), val_dir=str(photos))
    report = tosa_cli.distill(model, data, tosa_cli.DistillConfig(**{**FAST, "batch_size": 4}))
    assert report.held_out["fit_kept"] is False and same(before, weights(model, "bypasses"))


def test_a_folder_is_brought_to_its_next_stage_and_measured(tmp_path: Path) -> None:
    digits = tmp_path / "digits"
    write_digits(digits / "train", 40)
    write_digits(digits / "validation", 33)
    folder = tosa_cli.save(tiny_tosa(), tmp_path / "model")
    data = tosa_cli.Data(data_dir=str(digits), val_split="validation")
    report = tosa_cli.finetune(folder, data, tosa_cli.FinetuneConfig(**FAST))
    assert report.folder == folder and tosa_cli.load(folder).provenance.stage == "finetuned"
    config = tosa_cli.EvalConfig(batch_size=33, workers=0, device="cpu")
    measured = tosa_cli.evaluate(folder, digits, config).to_dict()
    assert measured["top1"] == pytest.approx(report.held_out["top1_after"]) and measured["samples"] == 33
    assert tosa_cli.evaluate(report.model, digits, config).to_dict()["top1"] == measured["top1"]


def test_a_decoder_is_put_on_a_folder_and_goes_on_learning_as_a_model(tmp_path: Path) -> None:
    scenes = write_folder(tmp_path / "scenes", 12)
    folder = tosa_cli.save(tiny_tosa(), tmp_path / "model")
    config = tosa_cli.PredictorConfig(**{**FAST, "batch_size": 4}, decoder="linear")
    report = tosa_cli.finetune(folder, scenes, config)
    assert report.folder == tmp_path / "model-depth" and isinstance(report.model, Predictor)
    again = tosa_cli.finetune(report.model, scenes, {**FAST, "batch_size": 4})
    assert again.folder is None and again.held_out["task"] == "depth"
    assert again.held_out["abs_rel_before"] == pytest.approx(report.held_out["abs_rel_after"])
    measured = tosa_cli.evaluate(report.model, scenes, tosa_cli.EvalConfig(split="train", workers=0, device="cpu"))
    assert measured.values["decoder"] == "linear" and "abs_rel" in measured.values


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    model = tiny_tosa()
    with pytest.raises(CheckpointError, match=fragments.KEEPS_NO_CHECKPOINT_NAME_THE):
        tosa_cli.distill(model, tmp_path, resume=True)
    with pytest.raises(InputError, match=fragments.A_TOSAVIT_HAS_NO_DECODER):
        tosa_cli.finetune(model, tmp_path, {"task": "depth"})
    with pytest.raises(ConfigError, match=fragments.MIXUP_0_8_GOES_WITH):
        tosa_cli.finetune(model, tmp_path, {"task": "depth", "mixup": 0.8})
    with pytest.raises(ConfigError, match=fragments.TASK_MUST_BE_ONE_OF):
        tosa_cli.finetune(model, tmp_path, {"task": "pose"})
    with pytest.raises(ConfigError, match=fragments.UNKNOWN_SETTING_VAL_DIR):
        read_from(tosa_cli.EvalConfig(), tosa_cli.Data(val_dir="photos"))


@pytest.mark.parametrize("older", [False, True], ids=["none", "of another run"])
@pytest.mark.parametrize("checkpoints", [0, 1])
def test_where_a_data_process_is_killed_resume_is_advised_where_there_is_what_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: int, older: bool
) -> None:
    folder = tosa_cli.save(tiny_tosa(), tmp_path / "model")
    checkpoint = tmp_path / "model.distill-checkpoint.safetensors"
    if older:
        checkpoint.write_bytes(b"older")
    count = 0

    def killed(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:  # of the epoch, of its first step, and of the second
            raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed.")

    monkeypatch.setattr("tosa_cli.train.loop.seed_step", killed)
    if checkpoints:
        write = Saver.check_loss

        def with_checkpoint(saver: Saver, *args: Any) -> Any:
            saver.due = (0, 0, 0)
            return write(saver, *args)

        monkeypatch.setattr(Saver, "check_loss", with_checkpoint)
    config = tosa_cli.DistillConfig(**{**FAST, "batch_size": 4, "epochs": 3})
    with pytest.raises(DataProcessError) as failure:
        tosa_cli.distill(folder, write_photos(tmp_path / "photos"), config)
    assert (fragments.RESUME_GOES_ON_FROM in str(failure.value)) == (checkpoints == 1)


def test_a_dense_source_gets_a_decoder_with_the_mean_that_is_named(tmp_path: Path) -> None:
    scenes = write_folder(tmp_path / "scenes", 12)
    save_file(make_vit("test_vit").state_dict(), tmp_path / "encoder.safetensors")
    values = {**FAST, "batch_size": 4, "task": "depth", "decoder": "linear", "img_size": 32}
    named = {"architecture": "test_vit", "mean": 0.4, "std": "0.1,0.2,0.3"}
    listener = Nobody()
    said: list[str] = []
    listener.say = said.append  # type: ignore[method-assign]
    source, output = str(tmp_path / "encoder.safetensors"), tmp_path / "mine"
    report = finetune(source, scenes, {**values, **named}, output=output, listener=listener)
    cfg = report.model.pretrained_cfg
    assert (tuple(cfg["mean"]), tuple(cfg["std"])) == ((0.4,) * 3, (0.1, 0.2, 0.3))
    assert not any("--crop-pct" in sentence for sentence in said)
    assert report.folder is not None
    same_again = finetune(str(report.folder), scenes, {**values, "mean": 0.4})
    assert same_again.folder == report.folder
    for changed in (report.folder, tosa_cli.save(tiny_tosa(), tmp_path / "model")):
        with pytest.raises(ConfigError, match=fragments.THE_STD_OF_IS_NOT):
            finetune(str(changed), scenes, {**values, "std": 0.7})
