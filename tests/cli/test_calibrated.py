"""Layers by measurement, fitted bypasses, presets, and the oracle, as a user meets them."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf

from tests.cli.conftest import Tosa, row_of
from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_runs import fit_head
from tosa_cli import load

CPU = "-b 4 -j 0 --device cpu"


def test_the_calibrated_preset_needs_one_command(work: Path, tosa: Tosa) -> None:
    done = tosa("convert dense --img-size 64 --preset calibrated --data-dir photos --max-samples 6")
    assert done.code == 0, done.err
    assert fragments.KEEP_RATES_FOUND_ON_THE in done.out and fragments.NEXT_TOSA_EVAL in done.err
    model = load("dense-tosa")
    assert (model.config.selector, model.config.bypass) == ("ward", "mean")
    assert model.provenance.results["budget"]["search"]["images"] == 6
    done = tosa(f"distill --preset calibrated --data-dir photos {CPU}")
    assert done.code == 2 and "'ward'" in done.err
    assert tosa("convert --recipe dense-tosa/recipe.yaml -o again").code == 0
    assert load("again").config == model.config


def test_a_cosine_that_is_held_is_told_with_how_sure_it_is(work: Path, tosa: Tosa) -> None:
    done = tosa("convert dense --img-size 64 --preset calibrated --data-dir photos --min-cosine 0.95")
    assert done.code == 0, done.err
    held = load("dense-tosa").provenance.results["budget"]["search"]["held"]
    assert min(held["patch_cosine"], held["class_cosine"]) >= 0.95
    card = (work / "dense-tosa" / "README.md").read_text()
    for text in (done.err, card):
        for kind in ("patch", "class"):
            assert f"{kind} tokens {held[f'{kind}_cosine']:.4f} ± {held[f'{kind}_error']:.4f}" in text
        assert (
            f"{held['images']} held-out images" in text
            and f"above {held['sure']:.4f} {fragments.WITH_95_CONFIDENCE}" in text
        )


def test_an_accuracy_that_is_held_is_told_with_how_sure_it_is(work: Path, tosa: Tosa) -> None:
    model = fit_head(make_vit("test_vit", img_size=32, patch_size=8, num_classes=10), work / "digits" / "validation")
    save_for_hf(model, "reads", safe_serialization=True)
    done = tosa("convert reads --preset calibrated --data-dir digits --max-drop 10")
    assert done.code == 0, done.err
    assert fragments.ON_11_IMAGES_OF_DIGITS in done.err
    held = load("reads-tosa").provenance.results["budget"]["search"]["held"]
    assert (held["images"], held["measure"]) == (22, "top-1 accuracy") and held["drop"] <= 10
    assert held["drop"] == pytest.approx(100 * (held["lost"] - held["gained"]) / 22)
    told = f"On 22 held-out images top-1 accuracy is {held['converted']:.2f} %, and {held['dense']:.2f} % dense: "
    card = (work / "reads-tosa" / "README.md").read_text()
    for text in (done.err, card):
        assert told in text and f"less than {held['sure']:.2f} with 95 % confidence" in text


def test_the_matched_preset_goes_from_source_to_card(work: Path, tosa: Tosa) -> None:
    done = tosa("convert dense --img-size 64 --preset matched --data-dir photos --max-samples 6")
    assert done.code == 0, done.err
    assert "chosen" in done.out and fragments.NEXT_TOSA_DISTILL in done.err
    model = load("dense-tosa")
    assert (model.config.selector, model.config.bypass) == ("similarity", "nearest+affine")
    assert model.provenance.results["budget"]["curves"][0]["layers"] == [1, 2]
    # On the images that it was made on a fit is kept.
    shutil.copytree("photos", "same")
    done = tosa(f"distill --preset matched --data-dir photos --val-dir same {CPU} --json")
    assert done.code == 0, done.err
    assert done.json["held_out"]["fit_kept"]
    assert set(map(int, done.json["held_out"]["bypass_errors"])) == set(model.config.layers)
    card = (work / "dense-tosa" / "README.md").read_text()
    assert "| after |" in card and fragments.THE_FIT_WAS_KEPT_AS in card
    assert tosa("convert --recipe dense-tosa/recipe.yaml -o again").code == 0
    assert load("again").config == model.config


def test_layers_by_measurement_meet_the_target(work: Path, tosa: Tosa) -> None:
    command = "convert dense --img-size 64 --layers auto --selector similarity --bypass nearest --max-samples 4 --json"
    done = tosa(f"{command} --target-reduction 0.2 --data-dir photos")
    assert done.code == 0 and 0.2 <= done.json["reduction"] < 0.23
    assert [curve["layers"] for curve in done.json["curves"]] == [[1], [2], [3], [4]]


def test_the_paper_preset_is_the_papers(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --img-size 64 --preset paper --layers 2,4 -o paper").code == 0
    config = load("paper").config
    assert (config.query_rows, config.selector, config.bypass, config.keep_rate) == (
        "all",
        "attention",
        "identity",
        0.8,
    )


def test_inspect_measures_and_draws_what_each_layer_can_spare(work: Path, tosa: Tosa) -> None:
    done = tosa("inspect dense --img-size 64 --data-dir photos --max-samples 4 --plot curves.png --json")
    assert done.code == 0, done.err
    assert len(done.json["curves"]) == 4 and done.json["allocations"][0]["reduction"] == 0.1
    assert (work / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert tosa("inspect dense --plot other.png").code == 2


def test_the_oracle_is_nearer_to_the_dense_model_than_chance_and_saves_nothing(work: Path, tosa: Tosa) -> None:
    settings = "--layers 1,2,3,4 --keep-rate 0.8 --selector random --bypass nearest"
    assert tosa(f"convert dense {settings} -o m").code == 0
    command = "eval m --data-dir photos --task features -j 0 --device cpu"
    own, oracle = tosa(f"{command} --json").json, tosa(f"{command} --selector oracle --json").json
    assert (own["selector"], oracle["selector"]) == ("random", "oracle")
    assert 0 < 1 - oracle["patch_cosine"] < 0.7 * (1 - own["patch_cosine"])
    assert own["reduction"] == pytest.approx(1 - own["gmacs"] / own["dense_gmacs"]) and own["reduction"] > 0
    assert oracle["gmacs"] is None and oracle["reduction"] is None and oracle["dense_gmacs"] == own["dense_gmacs"]
    assert fragments.FEWER_MACS in tosa(command).err
    shown = tosa(f"{command} --selector oracle")
    assert row_of("oracle", shown.out)[3] == "-" and fragments.FEWER_MACS not in shown.err
    assert tosa(f"{command} --selector oracle --update-card").code == 2


def test_a_fit_on_images_unlike_the_held_out_ones_is_not_kept(work: Path, tosa: Tosa) -> None:
    (work / "black").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64)).save(work / "black" / f"{name}.png")
    assert tosa("convert dense --layers 2,3 --selector similarity --bypass nearest+linear -o m").code == 0
    before = load_file("m/model.safetensors")
    done = tosa(f"distill m --data-dir black --val-dir photos {CPU}")
    assert done.code == 0 and fragments.THE_FIT_WAS_NOT_KEPT in done.err
    after = load_file("m/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    held_out = load("m").provenance.results["distill"]
    assert not held_out["fit_kept"] and held_out["patch_cosine_before"] == held_out["patch_cosine_after"]
    assert "bypass_errors" not in held_out and fragments.ERROR_OF_THE_BYPASS not in done.out
    card = (work / "m" / "README.md").read_text()
    assert fragments.AS_IT_WAS_BEFORE_TOSA in card
    assert fragments.IS_TRAINED_OR_FITTED not in card and fragments.AS_IT_DID_NO_BETTER in card


def test_before_is_before_the_selectors_were_trained(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2,4 --keep-rate 0.5 --bypass linear -o m").code == 0
    start = tosa("eval m --data-dir digits/train -j 0 --device cpu --task features --json").json
    done = tosa(f"distill m --data-dir photos --val-dir digits/train {CPU} --epochs 4 --lr 0.05 --json")
    assert done.code == 0, done.err
    held_out = done.json["held_out"]
    for name in ("patch_cosine", "class_cosine"):
        assert held_out[f"{name}_before"] == pytest.approx(start[name], abs=1e-5)
    end = tosa("eval m --data-dir digits/train -j 0 --device cpu --task features --json").json
    assert held_out["patch_cosine_after"] == pytest.approx(end["patch_cosine"], abs=1e-5)


def test_a_model_with_nothing_to_fit_is_told_so(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2,3 --selector similarity --bypass nearest -o m").code == 0
    done = tosa(f"distill m --data-dir photos {CPU}")
    assert done.code == 2 and "'nearest'" in done.err


def test_inspect_measures_with_no_selector_that_says_nothing_before_it_is_trained(work: Path, tosa: Tosa) -> None:
    done = tosa("inspect dense --data-dir photos --selector attention --bypass identity")
    assert done.code == 2 and "'attention'" in done.err


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_inspect_takes_a_model_of_few_layers(work: Path, tosa: Tosa, depth: int) -> None:
    save_for_hf(make_vit("test_vit", img_size=32, patch_size=8, depth=depth), "flat", safe_serialization=True)
    done = tosa("inspect flat")
    assert done.code == 0, done.err
    command = done.err.splitlines()[-1].removeprefix("Next: tosa ")
    layers = {1: "1 --selector similarity", 2: "2", 3: "2"}[depth]
    assert command == f"convert flat --layers {layers}" and tosa(command).code == 0
    proposed = {tuple(one["layers"]) for one in tosa("inspect flat --json").json["savings"]}
    assert proposed == ({(2,)} if depth > 1 else set())
