"""What a converted model is compared with: its source, or else its own weights, and what its card says of it."""

import json
from pathlib import Path

import pytest
import yaml
from timm.models import save_for_hf

from tests.cli.conftest import Tosa
from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.recipe import load_recipe

TRAIN = "-b 20 -j 0 --epochs 1 --device cpu"
DISTILL = f"distill --data-dir photos {TRAIN}"
FINETUNE = f"finetune --data-dir digits {TRAIN} --lr 1e-2"
EVAL = "eval --data-dir digits -j 0 -b 33"


def card(folder: str) -> str:
    return " ".join((Path(folder) / "README.md").read_text(encoding="utf-8").split())


def published(folder: str) -> list[dict[str, object]]:
    """What the card's `model-index` says was measured; none without one."""
    metadata = yaml.safe_load((Path(folder) / "README.md").read_text(encoding="utf-8").split("---")[1])
    return [result for model in metadata.get("model-index", []) for result in model["results"]]


def run(tosa: Tosa, *commands: str) -> None:
    for command in commands:
        done = tosa(command)
        assert done.code == 0, done.err


def test_a_model_distilled_after_its_finetuning_keeps_its_source(converted: Path, tosa: Tosa) -> None:
    before = tosa(f"{EVAL} --compare --json").json["dense"]
    run(tosa, FINETUNE, DISTILL)
    after = tosa(f"{EVAL} --compare --json").json["dense"]
    assert (after["top1"], after["top5"]) == (before["top1"], before["top5"]) and after["weights"] == "source"
    said = card("dense-tosa")
    assert fragments.THE_BACKBONE_WAS_FINETUNED_AND in said
    assert fragments.THE_BACKBONE_S_WEIGHTS_ARE not in said and fragments.WAS_NOT_FINETUNED not in said
    Path("dense").rename("elsewhere")
    assert fragments.DENSE_CANNOT_BE_LOADED in tosa(f"{EVAL} --compare").err


def test_every_step_stands_in_card_and_recipe_in_the_order_in_which_it_was_done(converted: Path, tosa: Tosa) -> None:
    run(tosa, FINETUNE, DISTILL, f"{FINETUNE} --seed 3")
    steps = load("dense-tosa").provenance.steps
    assert list(steps) == ["convert", "finetune", "distill", "finetune-2"]
    lines = [line.split()[2] for line in Path("dense-tosa/README.md").read_text().splitlines() if line.startswith("$ ")]
    assert lines == ["convert", "finetune", "distill", "finetune"]
    sections = load_recipe("dense-tosa/recipe.yaml").sections
    assert list(sections) == list(steps)
    assert (sections["finetune"]["seed"], sections["finetune-2"]["seed"]) == (0, 3)


def test_what_selects_is_known_to_be_untrained_after_finetuning_too(converted: Path, tosa: Tosa) -> None:
    run(tosa, FINETUNE)
    assert fragments.THE_SELECTORS_WERE_NOT_TRAINED in tosa(FINETUNE).err


@pytest.mark.parametrize("conversion", ["few --num-classes 10", "dense --no-pretrained"])
def test_without_a_source_that_can_classify_a_finetuned_model_is_compared_with_its_own_weights(
    work: Path, tosa: Tosa, conversion: str
) -> None:
    vit = make_vit("test_vit", img_size=32, patch_size=8, num_classes=4)
    save_for_hf(vit, "few", safe_serialization=True)
    run(tosa, f"convert {conversion} --layers 2,4 --keep-rate 1.0 --selector previous -o made", f"{FINETUNE} made")
    for _ in range(2):  # the same each time, and with every token kept the same as the model
        report = tosa("eval made --data-dir digits -j 0 -b 33 --compare --json").json
        assert report["dense"]["weights"] == "own"
        assert (report["dense"]["top1"], report["dense"]["top5"]) == (report["top1"], report["top5"])
    done = tosa("eval made --data-dir digits -j 0 -b 33 --compare --update-card")
    assert fragments.EVERY_TOKEN in done.out and fragments.COMPARED_WITH_ITS_OWN_WEIGHTS in " ".join(done.err.split())
    assert "| every token computed |" in card("made") and "| source |" not in card("made")


def test_final_tokens_are_compared_with_the_source_whatever_the_head(work: Path, tosa: Tosa) -> None:
    run(tosa, "convert dense --layers 2,4 --num-classes 12 -o new")
    run(tosa, f"finetune new --objective features --data-dir photos {TRAIN} --lr 1e-2")
    report = tosa("eval new --data-dir photos -j 0 --task features --json").json
    assert report["dense"]["weights"] == "source"


def test_a_source_of_random_weights_that_are_gone_teaches_nothing(work: Path, tosa: Tosa) -> None:
    run(tosa, "convert dense --no-pretrained --layers 2,4 --selector previous -o made", f"{FINETUNE} made")
    done = tosa(f"finetune made --objective features --data-dir photos {TRAIN}")
    assert done.code == 2 and fragments.WHOSE_WEIGHTS_WERE_RANDOM in " ".join(done.err.split())
    done = tosa("eval made --data-dir photos -j 0 --task features --update-card")
    assert done.code == 0 and fragments.COMPARED_WITH_ITS_OWN_WEIGHTS in " ".join(done.err.split())
    assert fragments.SOURCE_MODEL_S not in card("made")


def test_a_source_is_found_from_any_directory(work: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tosa, "convert ./dense --layers 2,4 --keep-rate 0.5", FINETUNE)
    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")
    run(tosa, "eval ../dense-tosa --data-dir ../digits -j 0 --compare")
    assert str(work) not in card("../dense-tosa")


def test_an_accuracy_stands_in_the_card_with_its_conditions(converted: Path, tosa: Tosa) -> None:
    run(tosa, f"{EVAL} --update-card")
    assert "33 images of digits at 32x32 pixels, " in card("dense-tosa")
    assert {result["dataset"]["name"] for result in published("dense-tosa")} == {"digits"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--max-samples 3", "3 of 33 images of digits at 32x32 pixels, "),
        ("--img-size 48", "33 images of digits at 48x48 pixels, "),
    ],
)
def test_the_hub_gets_no_accuracy_on_part_of_the_data_or_at_another_size(
    converted: Path, tosa: Tosa, options: str, says: str
) -> None:
    done = tosa(f"{EVAL} {options} --update-card")
    assert says in card("dense-tosa") and published("dense-tosa") == []
    assert fragments.NOT_IN_THE_CARD_S in " ".join(done.err.split())
    results = json.loads((converted / "config.json").read_text())["tosa"]["results"]
    assert results["eval"]["dataset_samples"] == 33
