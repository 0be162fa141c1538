"""`tosa finetune --task depth` and `--task segmentation`, and `tosa eval` of what they write."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from timm.models import save_for_hf

import tosa_cli
from tests.cli.conftest import Tosa
from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder, write_kitti, write_nyu, write_nyu_mat
from tests.train.tiny_runs import StopAt
from tosa_cli.model.predictor import Predictor

TRAIN = "--decoder-dim 16 -b 4 -j 0 --device cpu --lr 2e-3 --color-jitter 0"
FIGURES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "d1", "d2", "d3")


@pytest.fixture
def scenes(work: Path) -> Path:
    """Images with depth maps and masks: `scenes/train` and `scenes/validation`."""
    write_folder(work / "scenes/train", 16)
    write_folder(work / "scenes/validation", 6)
    return work / "scenes"


@pytest.mark.parametrize("decoder", ["linear", "dpt", "newcrfs"])
def test_depth_is_learned_and_the_selectors_stay(converted: Path, scenes: Path, tosa: Tosa, decoder: str) -> None:
    before = load_file(converted / "model.safetensors")
    done = tosa(
        f"finetune --task depth --decoder {decoder} --data-dir scenes --val-split validation --epochs 12 {TRAIN} --json"
    )
    assert done.code == 0, done.err
    held_out = done.json["held_out"]
    assert done.json["model"] == "dense-tosa-depth" and held_out["samples"] == 6
    assert held_out["abs_rel_after"] < 0.7 * held_out["abs_rel_before"]
    after = load_file("dense-tosa-depth/model.safetensors")
    selectors = [name for name in after if name.startswith("selectors.")]
    assert selectors and all(after[name].equal(before[name]) for name in selectors)
    assert not after["blocks.0.attn.qkv.weight"].equal(before["blocks.0.attn.qkv.weight"])
    assert any(name.startswith("decoder.") for name in after) and "head.weight" not in after
    report = tosa("eval dense-tosa-depth --task depth --data-dir scenes -j 0 -b 4 --device cpu --json").json
    assert report["abs_rel"] == pytest.approx(held_out["abs_rel_after"], abs=1e-6)
    assert all(key in report for key in FIGURES) and report["samples"] == 6 and report["img_size"] == [32, 32]
    assert 0 < report["encoder_gmacs"] < report["dense_encoder_gmacs"] and report["encoder_reduction"] > 0
    assert report["gmacs"] > report["encoder_gmacs"]


def test_a_dense_source_trains_the_same_way(work: Path, scenes: Path, tosa: Tosa) -> None:
    done = tosa(f"finetune dense --task depth --data-dir scenes --epochs 2 {TRAIN}")
    assert done.code == 0, done.err
    assert fragments.ABS_REL in done.out and fragments.NEXT_TOSA_EVAL_DENSE_DEPTH in done.err
    report = tosa("eval dense-depth --data-dir scenes -j 0 --device cpu --json").json
    assert report["encoder_gmacs"] == report["dense_encoder_gmacs"] and report["encoder_reduction"] == 0
    done = tosa("eval dense-depth --data-dir scenes -j 0 --device cpu")
    assert "dense" in done.out and fragments.FEWER_MACS not in done.err and fragments.MEASURED_0_001_TO_10 in done.err
    assert fragments.COMPUTES_EVERY_TOKEN_ALREADY in tosa("eval dense-depth --data-dir scenes --compare").err


def test_a_model_in_whose_folder_one_works_gets_its_decoder_beside_it(
    converted: Path, scenes: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(converted)
    before = sorted(converted.iterdir())
    done = tosa(f"finetune . --task depth --decoder linear --data-dir {scenes} --epochs 1 {TRAIN}")
    assert done.code == 0, done.err
    assert (converted.parent / "dense-tosa-depth/config.json").is_file() and sorted(converted.iterdir()) == before


def test_a_frozen_encoder_stays_as_it_is(converted: Path, scenes: Path, tosa: Tosa) -> None:
    done = tosa(
        f"finetune --task depth --decoder linear --freeze-encoder --data-dir scenes --epochs 1 {TRAIN} -o frozen"
    )
    assert done.code == 0, done.err
    before, after = load_file(converted / "model.safetensors"), load_file("frozen/model.safetensors")
    shared = set(before) & set(after)
    assert shared == {name for name in before if not name.startswith("head.")}
    assert all(before[name].equal(after[name]) for name in shared)


def test_eval_compares_with_every_token_averages_with_the_mirror_and_updates_the_card(
    converted: Path, scenes: Path, tosa: Tosa
) -> None:
    tosa(f"finetune --task depth --data-dir scenes --epochs 2 {TRAIN} -o depth")
    command = "eval depth --data-dir scenes -j 0 --device cpu"
    plain = tosa(f"{command} --json").json
    done = tosa(f"{command} --flip --compare --update-card --json")
    report = done.json
    assert report["flip"] and report["abs_rel"] != plain["abs_rel"]
    assert set(FIGURES) <= set(report["dense"]) and report["dense"]["abs_rel"] != report["abs_rel"]
    card = Path("depth/README.md").read_text()
    assert (
        fragments.PIPELINE_TAG_DEPTH_ESTIMATION in card
        and f"| `tosa eval` | abs_rel | {report['abs_rel']:.4f} |" in card
    )
    height, width = report["img_size"]
    assert f"{report['samples']} images of {report['dataset']} at {height}x{width} pixels, " in card
    assert fragments.EACH_MAP_IS_AVERAGED_WITH in card
    assert str(Path.cwd()) not in card
    done = tosa(f"{command} --compare")
    out = done.out
    assert (
        fragments.FEWER_MACS_IN_THE_ENCODER in done.err
        and "every token" in out
        and "δ<1.25³" in out
        and "encoder GMACs" in out
    )


def test_the_best_weights_by_held_out_images_are_kept(converted: Path, scenes: Path, tosa: Tosa) -> None:
    settings = f"--data-dir scenes --epochs 3 --eval-every 2 {TRAIN} --model-ema --model-ema-decay 0.5 --max-watched 3"
    report = tosa(f"finetune --task depth {settings} -o depth --json").json
    best = min(report["history"], key=lambda row: row["abs_rel"])
    assert report["held_out"]["best_step"] == best["step"] and report["held_out"]["samples"] <= 3
    assert report["held_out"]["abs_rel_after"] == best["abs_rel"]
    said = f"The weights are the best of {len(report['history'])} measurements on these same images"
    assert f"`tosa finetune`, on held-out images: {said}" in Path("depth/README.md").read_text()


def test_an_interrupted_run_goes_on_with_resume(
    converted: Path, scenes: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"finetune --task depth --data-dir scenes --epochs 3 {TRAIN}"
    assert tosa(f"{command} -o whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("tosa_cli.cli.console.TrainProgress.advance", StopAt(7).advance)
        done = tosa(f"{command} -o part")
    assert done.code == 1 and "--resume" in done.err and not Path("part").exists()
    done = tosa(f"{command} -o part --resume")
    assert done.code == 0, done.err
    whole, part = load_file("whole/model.safetensors"), load_file("part/model.safetensors")
    assert all(value.equal(part[name]) for name, value in whole.items())


def test_a_scene_folder_that_is_a_dot_is_called_by_its_name(
    converted: Path, scenes: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    tosa(f"finetune --task depth --data-dir scenes --epochs 1 {TRAIN} -o depth")
    monkeypatch.chdir("scenes/validation")
    done = tosa("eval ../../depth --data-dir . -j 0 --device cpu --json")
    assert done.code == 0 and done.json["dataset"] == "validation", done.err


def test_a_model_with_a_decoder_goes_on_in_its_own_folder(converted: Path, scenes: Path, tosa: Tosa) -> None:
    tosa(f"finetune --task depth --data-dir scenes --epochs 1 {TRAIN} -o depth")
    go_on = "finetune depth --data-dir scenes --epochs 1 -b 4 -j 0 --device cpu"
    done = tosa(go_on)
    assert done.code == 0 and fragments.WROTE_DEPTH in done.err, done.err
    done = tosa(f"{go_on} --decoder linear")
    assert done.code == 2 and re.search(r"dpt.*linear", done.err)


def test_segmentation_is_learned(converted: Path, scenes: Path, tosa: Tosa) -> None:
    settings = f"--decoder linear --num-labels 2 --data-dir scenes --val-split validation --epochs 10 {TRAIN}"
    done = tosa(f"finetune --task segmentation {settings} --json")
    assert done.code == 0, done.err
    held_out = done.json["held_out"]
    assert held_out["miou_after"] > held_out["miou_before"] and held_out["pixel_accuracy_after"] > 0.8
    report = tosa("eval dense-tosa-segmentation --data-dir scenes -j 0 --device cpu --compare --json").json
    assert report["miou"] == pytest.approx(held_out["miou_after"], abs=1e-6) and "miou" in report["dense"]
    model = tosa_cli.load("dense-tosa-segmentation")
    assert isinstance(model, Predictor) and model.config.num_labels == 2


@pytest.mark.parametrize(
    ("recipe", "size"), [("nyu_newcrfs", (480, 640)), ("kitti_newcrfs", (352, 1120))], ids=["nyu", "kitti"]
)
def test_the_recipes_of_the_paper_run_on_files_in_the_real_formats(
    work: Path, tosa: Tosa, recipe: str, size: tuple[int, int]
) -> None:
    # Patches of 32 pixels, as the images are large.
    save_for_hf(make_vit("test_vit", img_size=64, patch_size=32), "coarse", safe_serialization=True)
    done = tosa(f"convert coarse --recipe {recipe} --layers 2,4,6 -o tiny")
    assert done.code == 0, done.err
    if recipe == "nyu_newcrfs":
        _, split = write_nyu(work / "nyu", 3)
        data = f"--data-dir nyu --split-file {split}"
        held_out = f"--val-dir nyu --val-split-file {shutil.copy(split, 'val.txt')}"
        Path("val.txt").write_text("\n".join(split.read_text().splitlines()[:1]))
    else:
        raw, annotated, split = write_kitti(work / "kitti", 3)
        data = f"--data-dir {raw} --depth-dir {annotated} --split-file {split}"
        held_out = f"--val-split-file {shutil.copy(split, 'val.txt')}"
        Path("val.txt").write_text("\n".join(split.read_text().splitlines()[:2]))
    small = "--decoder-dim 8 -b 1 --epochs 1 -j 0 --device cpu --amp no --max-samples 2"
    done = tosa(f"finetune tiny --recipe {recipe} {data} {held_out} {small} -o depth")
    assert done.code == 0, done.err
    model = tosa_cli.load("depth")
    assert isinstance(model, Predictor) and model.config.decoder == "newcrfs" and model.img_size == size
    steps = json.loads(Path("depth/config.json").read_text())["tosa"]["steps"]["finetune"]
    assert steps["task"] == "depth" and steps["data_format"] == recipe.partition("_")[0]
    evaluate = data.replace(str(split), "val.txt")
    report = tosa(
        f"eval depth --data-format {steps['data_format']} {evaluate} -b 1 -j 0 --device cpu --flip --json"
    ).json
    expected = {"nyu": ([480, 640], "eigen", 10), "kitti": ([352, 1216], "garg", 80)}[steps["data_format"]]
    assert (report["img_size"], report["crop"], report["max_depth"]) == expected and report["samples"] == 1


def test_the_labelled_file_of_nyu_is_trained_on_and_evaluated_by_its_own_split(
    converted: Path, work: Path, tosa: Tosa
) -> None:
    write_nyu_mat(work / "nyu", 12)
    data = "--data-format nyu --data-dir nyu"
    done = tosa(f"finetune --task depth {data} --val-split test --epochs 1 {TRAIN} -o depth --json")
    assert done.code == 0 and done.json["held_out"]["samples"] == 6, done.err
    report = tosa(f"eval depth {data} -j 0 --device cpu --json").json
    assert report["samples"] == 6 and report["crop"] == "eigen" and report["img_size"] == [48, 64]
    assert report["abs_rel"] == pytest.approx(done.json["held_out"]["abs_rel_after"], abs=1e-6)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("finetune --decoder dpt --data-dir scenes", "--decoder (dpt) goes with --task depth or --task segmentation"),
        ("finetune --task depth --mixup 0.8 --data-dir scenes", "--mixup (0.8) goes with the task classification"),
        ("finetune --task depth --data-dir photos", "photos has no folder rgb"),
        ("finetune --task segmentation --data-dir scenes", "num_labels must be 2 or more for segmentation"),
        ("finetune --task depth --img-size x --data-dir scenes", "--img-size must be a number of pixels"),
        ("finetune --task depth --data-dir scenes -o photos", "photos already exists"),
        ("finetune --task depth --data-dir scenes --val-dir scenes/train --val-split train", "would be the training"),
        ("eval --task depth --data-dir scenes", "dense-tosa has no decoder: train one with `tosa finetune dense-tosa"),
        ("finetune --task depth --data-dir scenes --dataset hfds/x", "--dataset (hfds/x) has no maps"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    converted: Path, scenes: Path, tosa: Tosa, command: str, sentence: str
) -> None:
    done = tosa(f"{command} --device cpu" if "img-size" not in command else command)
    assert done.code == 2 and sentence in done.err and "Traceback" not in done.err


def test_other_commands_refuse_a_model_with_a_decoder(converted: Path, scenes: Path, tosa: Tosa) -> None:
    tosa(f"finetune --task depth --data-dir scenes --epochs 1 {TRAIN} -o depth")
    for command in ("export depth", "distill depth --data-dir photos", "bench depth"):
        done = tosa(command)
        assert done.code == 2 and "decoder" in done.err, command
    done = tosa("eval depth --data-dir scenes --task segmentation")
    assert done.code == 2 and "--task" in done.err
