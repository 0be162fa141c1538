"""The commands take a whole model of transformers from its folder to a cheaper one, which transformers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch
import transformers
from PIL import Image

import tosa_cli
from tests.cli.conftest import Tosa, write_whole
from tests.export.conftest import look_up_once  # noqa: F401
from tests.model.whole_models import (
    CONVERTED,
    clip,
    clipseg,
    depth_anything,
    dinov2,
    hf,
    owlvit,
    upernet,
    vitpose,
    yolos,
)
from tests.processes import run_program
from tests.sentences import fragments
from tosa_cli import TosaConfig
from tosa_cli.measure import speed
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.flops import WholeFlops, count_whole

deit = CONVERTED["deit"][0]
GROUPS = ["--selector", "ward", "--bypass", "mean"]

SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_dim": 32,
    "image_size": 64,
    "patch_size": 16,
    "output_channels": 32,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for number, size in enumerate([(60, 90), (90, 60), (70, 70)]):
        pixels = numbers.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_depth(depth_anything(), tmp_path / "depth")


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """As `source`, of three layers, of which its head reads two: exporters take their time for each."""
    torch.manual_seed(0)
    backbone = dinov2(num_hidden_layers=3, out_indices=[2, 3])
    model = depth_anything(backbone_config=backbone, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 16])
    return write_depth(model, tmp_path / "depth")


def write_depth(model: Any, folder: Path) -> Path:
    for parameter in model.parameters():  # as it is made it predicts the same everywhere
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.head.conv3.bias.data.fill_(1.0)
    model.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    hf.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return folder


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


def test_a_whole_model_becomes_one_checked_file(tosa: Tosa, short: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "whole", tmp_path / "whole.onnx"
    tosa("convert", str(short), "--layers", "2,3", *GROUPS, "-o", str(folder))
    report = json.loads(tosa("export", str(folder), "-o", str(file), "--json").out)
    assert report["outputs"] == ["predicted_depth"]
    assert report["difference"] < 1e-4
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    images = torch.randn(1, 3, 56, 56)
    (depth,) = onnxruntime.InferenceSession(file).run(None, {"pixel_values": images.numpy()})
    assert report["input"] == ["batch", 3, 56, 56]
    with torch.no_grad():
        np.testing.assert_allclose(depth, model(images).predicted_depth.numpy(), atol=1e-4)


def test_a_quantised_file_is_compared_by_its_outputs(
    tosa: Tosa, short: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    folder, file = tmp_path / "whole", tmp_path / "small.onnx"
    tosa("convert", str(short), "--layers", "3", *GROUPS, "-o", str(folder))
    how = ["--quantize", "static", "-b", "1", "--data-dir", str(photos), "--max-samples", "2"]
    report = json.loads(tosa("export", str(folder), "-o", str(file), *how, "--json").out)
    assert set(report["quantized"]["outputs"]["predicted_depth"]) == {"abs_rel", "delta1", "correlation"}
    assert report["quantized"]["size_mb"] < report["size_mb"]
    (depth,) = onnxruntime.InferenceSession(file).run(None, {"pixel_values": np.zeros((1, 3, 56, 56), np.float32)})
    assert np.isfinite(depth).all()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_whole_model_is_timed_beside_the_dense_one(
    tosa: Tosa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    monkeypatch.chdir(tmp_path)
    write_whole()
    report = tosa(f"bench whole-tosa -b 1 --rounds 1 --device cpu --runtime {runtime} --json").json
    assert report["img_size"] == [56, 56]
    assert report["speedup"] > 0 and report["ideal_speedup"] > 1
    assert (report["tosa"]["peak_memory_mb"] is None) == (runtime == "onnxruntime")
    for options in ("--img-size=70", "--sweep --img-sizes 70", "--peers --img-size 70"):
        assert fragments.LEAVE_OUT_IMG_SIZE in tosa(f"bench whole-tosa {options}").err


@pytest.mark.parametrize("make", [depth_anything, vitpose, yolos, upernet, clipseg, deit])
def test_outputs_are_drawn_beside_those_with_every_token(tosa: Tosa, photos: Path, tmp_path: Path, make: Any) -> None:
    folder, picture = tmp_path / "whole", tmp_path / "picture.png"
    torch.manual_seed(0)
    model = tosa_cli.convert(make().eval(), TosaConfig(layers=(2, 3), keep_rate=0.5, selector="ward", bypass="mean"))
    height, width = converted_runs(model)[0].run.patch_embed.img_size
    model.save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
    found = json.loads(tosa("viz", str(folder), str(photos / "0.png"), "-o", str(picture), "--json").out)
    assert Image.open(picture).width > 300
    assert [layer["layer"] for layer in found["images"][0]["layers"]] == [2, 3]
    assert all(0 < layer["kept_share"] < 1 for layer in found["images"][0]["layers"])
    assert found["images"][0]["outputs"]
    assert "Wrote" in tosa("viz", str(folder), str(photos), "-o", str(tmp_path / "page"), "--layers", "3").err


def test_a_finetuning_that_was_killed_once_its_model_stood_is_known_to_have_ended(
    tosa: Tosa, source: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "whole"
    tosa("convert", str(source), "--layers", "2,3", *GROUPS, "-o", str(folder))
    how = ["--objective", "features", "--epochs", "1", "-b", "2", "-j", "0", "--device", "cpu"]
    command = ["finetune", str(folder), "--data-dir", str(photos), *how]
    with monkeypatch.context() as killed:
        killed.setattr("tosa_cli.workflow.job.remove_checkpoint", lambda _: None)
        assert tosa(*command).code == 0
    weights, left = (folder / "model.safetensors").read_bytes(), tmp_path / "whole.finetune-checkpoint.safetensors"
    assert left.exists()
    done = tosa(*command, "--resume")
    assert done.code == 0 and fragments.NOTHING_IS_LEFT_TO_DO in done.err
    assert (folder / "model.safetensors").read_bytes() == weights and not left.exists()


def test_a_model_learns_to_be_its_dense_self_again_without_labels(tosa: Tosa, source: Path, tmp_path: Path) -> None:
    folder, photos, numbers = tmp_path / "whole", tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(20):
        Image.fromarray(numbers.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    model = transformers.AutoModelForDepthEstimation.from_pretrained(source)
    torch.manual_seed(0)
    for parameter in model.backbone.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(source)
    tosa("convert", str(source), "--layers", "2,3", "--keep-rate", "0.4", *GROUPS, "-o", str(folder))
    before = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    how = ["--objective", "features", "--epochs", "30", "--lr", "1e-3", "-b", "4", "-j", "0", "--device", "cpu"]
    more = ["--feature-layers", "1", "--no-model-ema", "--grad-checkpointing", "--crop-scale", "0.9"]
    done = tosa("finetune", str(folder), "--data-dir", str(photos), *how, *more, "--json")
    found = json.loads(done.out)["held_out"]
    assert found["patch_cosine_after"] > found["patch_cosine_before"]
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    weights, others = model.state_dict(), before.state_dict()
    changed = {name for name in weights if not torch.equal(weights[name], others[name])}
    assert changed and all(".layer.1." in name or ".layer.2." in name or ".layer.3." in name for name in changed)
    assert "finetune" in (folder / "README.md").read_text()
    assert fragments.WAS_FINETUNED_ALREADY in tosa("finetune", str(folder), "--data-dir", str(photos), *how).err
    told = tosa("eval", str(folder), "--data-dir", str(photos), "--max-samples", "2")
    assert str(source) in told.err


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
