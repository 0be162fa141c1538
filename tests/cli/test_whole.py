"""The commands take a whole model of transformers from its folder to a cheaper one, which transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from PIL import Image

import tosa_cli
from tests.cli.conftest import Tosa
from tests.model.whole_models import (
    clip,
    clipseg,
    hf,
    owlvit,
)
from tests.processes import run_program
from tests.sentences import fragments
from tosa_cli import TosaConfig
from tosa_cli.model.runs.flops import WholeFlops, count_whole

from .whole_commands import (
    GROUPS,
    write_source,  # noqa: F401 (the fixture `source`)
    write_three_photos,  # noqa: F401 (the fixture `photos`)
)

SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_dim": 32,
    "image_size": 64,
    "patch_size": 16,
    "output_channels": 32,
}


# ---------------------------------------------------------------------- convert


def test_a_depth_model_goes_all_the_way(tosa: Tosa, source: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cheap"
    tosa("convert", str(source), "--preset", "matched", "-o", str(folder))
    tosa("distill", str(folder), "--data-dir", str(photos))
    found = json.loads(tosa("eval", str(folder), "--data-dir", str(photos), "--update-card", "--json").out)
    assert found["samples"] == 3
    assert set(found["outputs"]["predicted_depth"]) == {"abs_rel", "delta1", "correlation"}
    counted = json.loads(tosa("flops", str(folder), "--json").out)
    assert counted["counted"] == "DepthAnythingForDepthEstimation"
    assert counted["gmacs"] < counted["dense_gmacs"]
    assert "| predicted_depth | delta1 |" in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "depth_anything"
    assert config["backbone_config"]["tosa_config"]["selector"] == "similarity"
    estimate = transformers.pipeline("depth-estimation", model=str(folder))
    assert estimate(Image.open(photos / "0.png"))["depth"].size == (90, 60)


def test_a_photo_of_which_a_depth_model_says_nothing_is_told(
    tosa: Tosa, source: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cheap"
    tosa("convert", str(source), "--layers", "2,3", *GROUPS, "-o", str(folder))
    compare = transformers.DepthAnythingForDepthEstimation.forward

    def without_sky(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        made = compare(self, pixel_values, **kwargs)
        is_sky = pixel_values.flatten(1).std(1) < 1e-3 if some_are_sky else torch.ones(len(pixel_values), dtype=bool)
        made.predicted_depth[is_sky] = 0.0
        return made

    monkeypatch.setattr(transformers.DepthAnythingForDepthEstimation, "forward", without_sky)
    Image.new("L", (70, 70), 200).convert("RGB").save(photos / "sky.png")
    some_are_sky = True
    done = tosa("eval", str(folder), "--data-dir", str(photos), "--update-card", "--json")
    assert done.json["left_out"] == {"predicted_depth": 1} and done.json["samples"] == 4
    for told in (done.err, (folder / "README.md").read_text()):
        assert fragments.OF_PREDICTED_DEPTH_1_OF in told
    some_are_sky = False
    assert fragments.SAYS_ANYTHING_OF_THE_OUTPUTS in tosa("eval", str(folder), "--data-dir", str(photos)).err
    options = ["--preset", "calibrated", "--max-drop", "5", "--data-dir", str(photos), "-o", str(tmp_path / "held")]
    assert fragments.NO_HELD_OUT_IMAGE_SAYS in tosa("convert", str(source), *options).err


def test_what_a_whole_model_costs_is_counted_once(
    tosa: Tosa, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []

    def count(model: Any) -> WholeFlops:
        counted.append(model)
        return count_whole(model)

    monkeypatch.setattr("tosa_cli.hub.whole.count_whole", count)
    folder = tmp_path / "cheap"
    found = tosa("convert", str(source), "--layers", "2,3", *GROUPS, "-o", str(folder), "--json").json
    assert len(counted) == 1 and found["model"] == "cheap"
    assert f"{found['reduction']:.1%} fewer in" in (folder / "README.md").read_text()
    assert found == {**tosa("flops", str(folder), "--json").json, "model": "cheap", "kind": found["kind"]}


def test_rates_are_measured_on_photos(tosa: Tosa, source: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grouped"
    options = ["--preset", "calibrated", "--data-dir", str(photos)]
    found = json.loads(tosa("convert", str(source), *options, "-o", str(folder), "--json").out)
    assert found["kind"] == "DepthAnythingForDepthEstimation"
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    assert torch.isfinite(model(torch.randn(1, 3, 70, 56)).predicted_depth).all()
    plan = tosa("push", str(folder), "me/depth", "--dry-run").out
    assert "preprocessor_config.json" in plan


def test_a_cosine_that_is_asked_for_is_held_on_other_photos(
    tosa: Tosa, source: Path, photos: Path, tmp_path: Path
) -> None:
    options = ["--preset", "calibrated", "--min-cosine", "0.9", "--data-dir", str(photos)]
    found = json.loads(tosa("convert", str(source), *options, "-o", str(tmp_path / "held"), "--json").out)
    held = found["search"]["held"]
    assert held["images"] == 2
    assert min(held["patch_cosine"], held["class_cosine"]) >= 0.9
    assert found["encoder_gmacs"] < found["encoder_dense_gmacs"]


def test_a_drop_that_is_allowed_is_held_on_other_photos(tosa: Tosa, source: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "held"
    options = ["--preset", "calibrated", "--max-drop", "5", "--data-dir", str(photos)]
    refused = tosa("convert", str(source), *options, "--max-samples", "2", "-o", str(folder))
    assert fragments.WOULD_BE_READ_AND_MAX in refused.err and not folder.exists()
    done = tosa("convert", str(source), *options, "-o", str(folder), "--json")
    held = done.json["search"]["held"]
    assert (held["images"], held["measure"], held["dense"]) == (2, "delta1 of predicted_depth", 100)
    assert 0 <= held["drop"] <= 5 and held["lost"] is None
    told = f"On 2 held-out images delta1 of predicted_depth is {held['converted']:.2f} %"
    assert told in (folder / "README.md").read_text()


def test_what_a_whole_model_cannot_do_is_told(tosa: Tosa, source: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    grouped = ["--layers", "2,3", "--selector", "ward", "--bypass", "mean"]
    tosa("convert", str(source), *grouped, "-o", str(folder))
    assert fragments.CONVERTED_ALREADY in tosa("inspect", str(folder)).err
    assert fragments.PASS_OBJECTIVE_FEATURES in tosa("finetune", str(folder), "--data-dir", str(photos)).err
    assert fragments.READS_NO_TEXT in tosa("eval", str(folder), "--data-dir", str(photos), "--texts", "a cat").err
    assert fragments.LEAVE_OUT_TASK in tosa("finetune", str(folder), "--task", "depth").err
    assert fragments.LEAVE_OUT_BATCH_SIZE in tosa("eval", str(folder), "--batch-size", "2").err
    assert "--img-size" in tosa("convert", str(source), *grouped, "--img-size", "70", "-o", f"{folder}-2").err


def test_what_a_conversion_would_save_is_told(tosa: Tosa, source: Path, tmp_path: Path) -> None:
    found = json.loads(tosa("inspect", str(source), "--json").out)
    assert (found["kind"], found["depth"], found["tokens"]) == ("DepthAnythingForDepthEstimation", 4, 17)
    half = next(row["reduction"] for row in found["savings"] if row["target_reduction"] == 0.5)
    assert half == pytest.approx(0.5 * found["encoder_gmacs"] / found["dense_gmacs"])
    assert fragments.CAN_BE_CONVERTED_AS_A in tosa("inspect", str(source)).out
    assert fragments.LEAVE_OUT_SELECTOR in tosa("inspect", str(source), "--selector", "ward").err
    hf.SamModel(hf.SamConfig(vision_config=SAM)).save_pretrained(tmp_path / "sam")
    assert fragments.ATTENDS_IN_WINDOWS in tosa("inspect", str(tmp_path / "sam")).err


# ---------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("make", "output", "figures"),
    [
        (clip, "logits_per_image", {"top1_agreement", "kl"}),
        (clipseg, "logits", {"iou", "correlation"}),
        (owlvit, "pred_boxes", {"matched_iou", "score_difference"}),
    ],
)
def test_a_model_that_reads_texts_is_measured_with_them(
    tosa: Tosa, photos: Path, tmp_path: Path, make: Any, output: str, figures: set[str]
) -> None:
    folder = tmp_path / "whole"
    model = tosa_cli.convert(make().eval(), TosaConfig(layers=(2, 3), keep_rate=0.5, selector="ward", bypass="mean"))
    model.save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "cat": 4, "dog": 5}
    tokens = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>")
    sizes = {"size": {"height": 56, "width": 56}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": False}
    hf.CLIPProcessor(hf.CLIPImageProcessor(**sizes), tokenizer).save_pretrained(folder)
    asked = tosa("eval", str(folder), "--data-dir", str(photos), "--texts", "a cat, a dog", "--json")
    assert asked.code == 0, asked.err
    assert set(json.loads(asked.out)["outputs"][output]) == figures
    plain = tosa("eval", str(folder), "--data-dir", str(photos))
    assert fragments.TO_MEASURE_THE_WHOLE_PASS in plain.err


def test_a_type_that_timm_has_is_converted_whole_where_asked(tosa: Tosa, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    clip().save_pretrained(folder)
    options = ["--layers", "2,3", "--selector", "ward", "--bypass", "mean", "--dry-run", "--json"]
    assert json.loads(tosa("convert", str(folder), "--whole", *options).out)["kind"] == "CLIPModel"


def test_without_the_package_transformers_tells_of_weights_that_it_does_not_know(
    tosa: Tosa, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "told"
    tosa("convert", str(source), "--layers", "2,3", "--selector", "ward", "--bypass", "mean", "-o", str(folder))
    code = f"import transformers; transformers.AutoModelForDepthEstimation.from_pretrained({str(folder)!r})"
    run = run_program(code)
    assert "tosa.format_version" in run.stderr + run.stdout
