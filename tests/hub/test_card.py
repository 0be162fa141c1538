"""The model card says what is known of a model, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from timm.models._hub import save_for_hf

import tosa_cli
from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.hub.checkpoint import load, with_results
from tosa_cli.hub.source import load_source
from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import COMMANDS, Provenance
from tosa_cli.recipe import load_recipe
from tosa_cli.workflow.convert import convert_source
from tosa_cli.workflow.save import save

from ..model.tiny_models import LAYERS, make_images, make_tosa, make_vit
from .conftest import assert_same, contents
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    metadata, _, body = text.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(metadata), body


EVAL = {
    "task": "classification",
    "samples": 100,
    "dataset": "digits",
    "top1": 71.25,
    "top5": 95.5,
    "gmacs": 0.03,
    "dense_gmacs": 0.04,
    "reduction": 0.25,
    "images_per_second": 812.0,
    "device": "a processor",
    "batch_size": 8,
    "dtype": "float32",
    "dense": {"top1": 72.5, "top5": 96.0, "images_per_second": 700.0},
}


def test_the_card_has_the_metadata_that_the_hub_reads(tmp_path: Path, model: TosaViT) -> None:
    model.provenance = Provenance(base_model="org/base", base_hub_id="org/base", license="apache-2.0")
    folder = save(model, tmp_path / "model")
    metadata, _ = read_card(folder)
    assert metadata["library_name"] == "tosa" and metadata["pipeline_tag"] == "image-classification"
    assert metadata["base_model"] == "org/base" and metadata["base_model_relation"] == "finetune"
    assert metadata["license"] == "apache-2.0" and "tosa" in metadata["tags"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "tosa" and card.data.base_model == "org/base"


@pytest.mark.parametrize("source", ["test_vit", "org/name"])
def test_a_model_of_random_weights_does_not_claim_those_of_its_source(
    tmp_path: Path, stub_hub: StubHub, source: str
) -> None:
    backbone = make_vit(num_classes=5)
    backbone.pretrained_cfg["license"] = "mit"
    save_for_hf(backbone, str(tmp_path / "dense"), safe_serialization=True)
    stub_hub.put("org/name", contents(tmp_path / "dense"))
    model = convert_source(load_source(source, pretrained=False), TosaConfig(layers=LAYERS), source)
    folder = save(model, tmp_path / "model")
    metadata, body = read_card(folder)
    assert not {"base_model", "base_model_relation", "license"} & set(metadata)
    assert "made from the architecture `test_vit` with random weights." in body and "r160_in1k" not in body
    block = json.loads((folder / "config.json").read_text())["tosa"]
    assert (block["source"], block["base_model"]) == (source, "test_vit")
    assert block["base_hub_id"] is block["base_revision"] is block["license"] is None
    assert load_recipe(str(folder / "recipe.yaml")).sections["convert"]["pretrained"] is False


def test_the_card_claims_nothing_that_is_not_known(folder: Path) -> None:
    metadata, body = read_card(folder)
    assert not {"model-index", "base_model", "base_model_relation", "license"} & set(metadata)
    assert "## Measured" not in body


def test_a_model_without_a_head_is_for_features(tmp_path: Path) -> None:
    metadata, _ = read_card(save(make_tosa(make_vit(num_classes=0)), tmp_path / "model"))
    assert metadata["pipeline_tag"] == "image-feature-extraction"


def test_results_stand_in_the_card_once_measured_with_their_conditions(folder: Path, model: TosaViT) -> None:
    with_results(model, "eval", EVAL)
    save(model, folder, overwrite=True)
    metadata, body = read_card(folder)
    (entry,) = metadata["model-index"]
    assert entry["name"] == "model"
    metrics = [metric for result in entry["results"] for metric in result["metrics"]]
    assert {metric["name"]: metric["value"] for metric in metrics} == {"top-1": 71.25, "top-5": 95.5}
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert results is not None and {result.dataset_name for result in results} == {"digits"}
    assert "100 images of digits, a processor, batch size 8, float32." in body
    assert "| source | 72.50 | 96.00 | 0.040 | 700.0 |" in body
    assert "| this model | 71.25 | 95.50 | 0.030 | 812.0 |" in body
    assert load(folder).provenance.results == {"eval": EVAL}


def test_results_on_features_have_no_accuracy_and_still_stand_in_the_card(folder: Path, model: TosaViT) -> None:
    features = {key: value for key, value in EVAL.items() if key not in ("top1", "top5", "dense")}
    with_results(model, "eval", {**features, "task": "features", "patch_cosine": 0.9512, "class_cosine": None})
    save(model, folder, overwrite=True)
    metadata, body = read_card(folder)
    assert "model-index" not in metadata and "0.9512" in body


def test_results_of_distillation_stand_in_the_card(folder: Path, model: TosaViT) -> None:
    layer = {"layer": 2, "kl_before": 1.5, "kl_after": 0.25, "found": 0.9, "found_previous": 0.8, "found_random": 0.3}
    with_results(model, "distill", {"samples": 16, "layers": [layer]})
    save(model, folder, overwrite=True)
    metadata, body = read_card(folder)
    assert "model-index" not in metadata
    assert "Selectors on 16 held-out images" in body and "| 2 | 1.500 | 0.250 | 90.0% | 80.0% | 30.0% |" in body


@pytest.mark.parametrize(("stage", "says"), [("distilled", "is trained or fitted"), ("finetuned", "was finetuned")])
def test_the_card_says_what_was_done(folder: Path, model: TosaViT, stage: Any, says: str) -> None:
    _, body = read_card(folder)
    assert "Nothing of it is trained or fitted yet." in body and "was not finetuned" in body
    model.provenance = model.provenance.after(stage, {"data_dir": "/home/me/photos", "lr": 0.02, "seed": 0})
    save(model, folder, overwrite=True)
    _, body = read_card(folder)
    assert says in body and f"$ tosa {COMMANDS[stage]} --data-dir photos --lr 0.02\n" in body and "/home" not in body
    assert ("The backbone was not finetuned" in body) == (stage != "finetuned")


@pytest.mark.parametrize(
    ("settings", "stages", "says"),
    [
        ({}, ("distilled",), "The selectors are trained, and the bypass is as it was before `tosa distill`, whose fit"),
        ({"selector": "probe"}, ("distilled",), "What selects and bypasses is as it was before `tosa distill`"),
        ({"selector": "similarity"}, ("finetuned", "distilled"), "was not kept; the backbone was finetuned before."),
    ],
    ids=str,
)
def test_the_card_says_that_a_fit_was_not_kept(
    tmp_path: Path, settings: dict[str, Any], stages: tuple[Any, ...], says: str
) -> None:
    model = make_tosa(make_vit(num_classes=5), bypass="nearest+affine", **settings)
    for stage in stages:
        model.provenance = model.provenance.after(stage, {}, {COMMANDS[stage]: {"samples": 3, "fit_kept": False}})
    _, body = read_card(save(model, tmp_path / "model"))
    assert says in body and "or fitted" not in body


@pytest.mark.parametrize(
    ("stages", "whose"),
    [
        (("distilled",), "the source model's"),
        (("distilled", "finetuned"), "the source model's"),
        (("finetuned", "distilled"), "those of the same weights with every token computed"),
    ],
    ids=str,
)
def test_the_card_says_whose_final_tokens_were_compared(
    folder: Path, model: TosaViT, stages: tuple[Any, ...], whose: str
) -> None:
    results = {"samples": 3, "patch_cosine_before": 0.5, "patch_cosine_after": 0.75}
    for stage in stages:
        model.provenance = model.provenance.after(stage, {}, {COMMANDS[stage]: results})
    save(model, folder, overwrite=True)
    _, body = read_card(folder)
    assert f"Cosine of the final tokens to {whose} on 3 held-out images" in body


def test_the_card_shows_the_accuracy_on_held_out_images(folder: Path, model: TosaViT) -> None:
    figures = {"top1_before": 50.0, "top5_before": 75.0, "top1_after": 62.5, "top5_after": 87.25}
    results = {"samples": 8, **figures, "measurements": 3, "best_step": 4}
    model.provenance = model.provenance.after("finetuned", {}, {"finetune": results})
    save(model, folder, overwrite=True)
    _, body = read_card(folder)
    assert "Accuracy in percent on 8 held-out images" in body and "The weights are the best of 3 measurements" in body
    assert "| before | 50.00 | 75.00 |" in body and "| after | 62.50 | 87.25 |" in body


def test_the_card_gives_the_macs_of_the_model_and_how_to_load_it(folder: Path, model: TosaViT) -> None:
    _, body = read_card(folder)
    report = count_flops(model)
    assert f"{report.gmacs:.3f} GMACs for an image of 160x160 pixels" in body and f"{report.reduction:.1%} less" in body
    assert body.count("| feeding |") == 3 and body.count("| tosa |") == 3
    assert "| keep_rate | 0.3, 0.5, 0.7 |" in body
    assert 'tosa_cli.load("model")' in body and 'timm.create_model("local-dir:model", pretrained=True)' in body


@pytest.mark.parametrize("name", ["model: of mine", "modèle", "it's #1", "{a}"])
def test_a_strange_name_of_a_folder_does_not_break_the_card(model: TosaViT, tmp_path: Path, name: str) -> None:
    with_results(model, "eval", EVAL)
    folder = save(model, tmp_path / name)
    metadata, body = read_card(folder)
    assert metadata["model-index"][0]["name"] == name and f"# {name}\n" in body
    assert_same(load(folder), model)


def test_timm_loads_from_the_hub_a_card_without_its_tag(stub_hub: StubHub, tmp_path: Path, model: TosaViT) -> None:
    folder = save(model, tmp_path / "model")
    assert "timm" not in ModelCard.load(folder / "README.md").data.tags
    stub_hub.put("me/model", {path.name: path.read_bytes() for path in folder.iterdir()})
    loaded = timm.create_model("hf-hub:me/model", pretrained=True).eval()
    images = make_images(size=tuple(model.patch_embed.img_size))  # type: ignore[arg-type]
    assert torch.equal(loaded(images), model(images))


def test_the_card_of_a_model_with_nothing_to_fit_does_not_say_that_something_is_missing(tmp_path: Path) -> None:
    model = make_tosa(selector="ward", bypass="mean")
    tosa_cli.save(model, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert fragments.NEEDS_TO_BE_TRAINED_OR in card and fragments.FITTED_YET not in card
