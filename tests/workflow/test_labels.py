"""What labels mean, from the folders of a run to the model that it writes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.sentences import fragments
from tests.train.tiny_runs import tiny_tosa, write_digits
from tosa_cli import load, save
from tosa_cli.data.description import Data
from tosa_cli.errors import DataError, MeasureError
from tosa_cli.measure.config import EvalConfig
from tosa_cli.model.class_names import class_names, set_class_names
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.workflow.evaluate import evaluate
from tosa_cli.workflow.finetune import finetune

QUICK = {"epochs": 1, "batch_size": 8, "workers": 0, "device": "cpu"}
READ = EvalConfig(workers=0, device="cpu")


class Heard:
    """Remembers what was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, message: str) -> None:
        self.told.append(message)

    warn = say

    def progress(self, description: str) -> object:
        from tosa_cli.progress import Nobody

        return Nobody().progress(description)


def named(root: Path, names: list[str]) -> Path:
    """Digits in folders that are called so, in the order of the digits."""
    for digit, folder in enumerate(sorted(write_digits(root).iterdir())):
        folder.rename(root / names[digit])
    return root


def test_a_finetuned_model_has_the_names_of_the_folders_that_it_learned(tmp_path: Path) -> None:
    names, heard = [f"number {digit}" for digit in range(10)], Heard()
    model = tiny_tosa()
    set_class_names(model, [f"old {digit}" for digit in range(10)])
    save(model, tmp_path / "model")
    data = named(tmp_path / "train", names)
    finetune(tmp_path / "model", data, FinetuneConfig(**QUICK), listener=heard)  # type: ignore[arg-type]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["label_names"] == names == class_names(load(tmp_path / "model"))
    assert "`number 0`" in (tmp_path / "model" / "README.md").read_text()
    assert any(fragments.LEARNS_THESE_IN_THEIR_PLACE in said for said in heard.told)
    # From then on labels go by name, whatever their order.
    (data / "number 0").rename(data / "Number_0")
    assert evaluate(tmp_path / "model", data, READ).to_dict()["labels"] == "by name"


def test_held_out_images_may_lack_a_class_and_may_have_no_other(tmp_path: Path) -> None:
    for split in ("train", "val"):
        named(tmp_path / split, [f"c{digit}" for digit in range(10)])
    for path in (tmp_path / "val" / "c1").iterdir():
        path.unlink()
    (tmp_path / "val" / "c1").rmdir()
    data, config = Data(data_dir=str(tmp_path), val_split="val"), FinetuneConfig(**QUICK)  # type: ignore[arg-type]
    report = finetune(tiny_tosa(), data, config)
    assert report.held_out["samples"] == sum(1 for _ in (tmp_path / "val").rglob("*.png"))
    (tmp_path / "val" / "c2").rename(tmp_path / "val" / "bird")
    with pytest.raises(DataError, match=fragments.BIRD_IS_NOT):
        finetune(tiny_tosa(), data, config)


def test_a_class_map_says_which_folder_is_which_class(tmp_path: Path) -> None:
    model = tiny_tosa()
    digits = write_digits(tmp_path / "digits", 60)
    plain = evaluate(model, digits, READ).to_dict()
    mapped = named(tmp_path / "mapped", list("jihgfedcba"))
    for folder in mapped.iterdir():
        for path in (digits / str("jihgfedcba".index(folder.name))).iterdir():
            Image.open(path).save(folder / path.name)
    (tmp_path / "map.txt").write_text("\n".join("jihgfedcba"))
    found = evaluate(model, mapped, EvalConfig(workers=0, device="cpu", class_map=str(tmp_path / "map.txt"))).to_dict()
    assert (found["top1"], found["top5"], found["labels"]) == (plain["top1"], plain["top5"], "by class map")


def test_outputs_that_are_not_finite_give_no_accuracy(tmp_path: Path) -> None:
    model, digits = tiny_tosa(), write_digits(tmp_path / "digits", 20)
    with torch.no_grad():
        model.backbone.get_classifier().bias[3] = float("nan")
    for task in ("classification", "features"):
        if task == "features":
            with torch.no_grad():
                model.backbone.norm.bias[0] = float("nan")  # type: ignore[index]
        with pytest.raises(MeasureError, match=fragments.NOT_FINITE):
            evaluate(model, digits, EvalConfig(workers=0, device="cpu", task=task))  # type: ignore[arg-type]
