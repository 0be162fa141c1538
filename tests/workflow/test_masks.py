"""Values of masks that mean nothing are told: 0 and 255, counting from 1, a class that no pixel has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tests.train.tiny_runs import tiny_tosa
from tests.workflow.test_labels import Heard
from tosa_cli import save
from tosa_cli.data.maps import read_mask
from tosa_cli.errors import DataError
from tosa_cli.measure.config import EvalConfig
from tosa_cli.workflow.evaluate import evaluate
from tosa_cli.workflow.finetune import finetune

QUICK: dict[str, Any] = {
    **{"task": "segmentation", "num_labels": 2, "decoder": "linear", "epochs": 1, "batch_size": 4, "workers": 0},
    "device": "cpu",
}
READ: dict[str, Any] = {"workers": 0, "device": "cpu"}


def with_masks(root: Path, values: tuple[int, int]) -> Path:
    """Scenes whose masks have other values for wall and floor than 0 and 1."""
    for path in (write_folder(root) / "mask").iterdir():
        Image.fromarray(np.array(values, np.uint8)[np.asarray(Image.open(path))]).save(path)
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tiny_tosa(), tmp_path / "model")


def trained(model: Path, data: Path, **settings: Any) -> tuple[Any, list[str]]:
    heard = Heard()
    config = {**QUICK, "data_dir": str(data), **settings}
    report = finetune(model, None, config, output=model.parent / "seg", listener=heard)  # type: ignore[arg-type]
    return report, [said for said in heard.told if said.startswith("No pixel")]


def test_masks_of_0_and_255_are_told_to_lack_a_class(tmp_path: Path, model: Path) -> None:
    data = with_masks(tmp_path / "data", (0, 255))
    report, told = trained(model, data)
    assert len(told) == 1 and told[0].startswith("No pixel in the 11 masks of data is of class 1 (of 0 to 1), and ")
    assert fragments.HAVE_A_VALUE_THAT_IS in told[0]
    heard = Heard()
    evaluate(report.model, data, EvalConfig(**READ), listener=heard)  # type: ignore[arg-type]
    assert [said for said in heard.told if said.startswith("No pixel in the 12 masks is of class 1")]


def test_a_value_that_was_no_class_in_training_is_none_in_evaluation(tmp_path: Path, model: Path) -> None:
    data = with_masks(tmp_path / "data", (0, 7))
    report, _ = trained(model, data, ignore_index=7)
    heard = Heard()
    found = evaluate(report.folder, data, EvalConfig(**READ), listener=heard).values  # type: ignore[arg-type]
    named = evaluate(report.folder, data, EvalConfig(**READ, ignore_index=7), listener=Heard()).values  # type: ignore
    assert found["miou"] == named["miou"] and found["pixel_accuracy"] == named["pixel_accuracy"]
    assert any(said.startswith("In the masks 7 is no class, as it was when") for said in heard.told)


def test_masks_without_a_class_are_refused_before_the_training_and_have_no_figures(tmp_path: Path, model: Path) -> None:
    report, _ = trained(model, with_masks(tmp_path / "data", (0, 1)))
    empty = with_masks(tmp_path / "empty", (255, 255))
    with pytest.raises(DataError, match=fragments.NO_PIXEL_IN_THE_11):
        finetune(model, empty, QUICK, output=tmp_path / "none", listener=Heard())  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match=fragments.NO_PIXEL_IN_THE_12):
        evaluate(report.model, empty, EvalConfig(**READ), listener=Heard())  # type: ignore[arg-type]


def test_masks_that_have_every_class_are_read_without_a_word(tmp_path: Path, model: Path) -> None:
    assert trained(model, with_masks(tmp_path / "data", (0, 1)))[1] == []


def test_masks_that_count_from_1_are_told_what_to_pass(tmp_path: Path, model: Path) -> None:
    data = with_masks(tmp_path / "data", (1, 2))
    with pytest.raises(DataError, match=fragments.HAS_CLASS_2_PASS_NUM):
        trained(model, data)
    assert "of class 0 (of 0 to 2)" in trained(model, data, num_labels=3)[1][0]


def test_a_value_that_is_named_is_no_class(tmp_path: Path, model: Path) -> None:
    data = with_masks(tmp_path / "data", (1, 7))
    report, told = trained(model, data, ignore_index=7)
    assert fragments.OF_CLASS_0 in told[0]
    path = next((data / "mask").iterdir())
    assert set(np.unique(read_mask(path, 7))) == {1, 255} and set(np.unique(read_mask(path))) == {1, 7}
    found = evaluate(report.model, data, EvalConfig(**READ, ignore_index=7)).to_dict()
    assert 0 <= found["miou"] <= 1
    with pytest.raises(DataError, match=fragments.NO_PIXEL_IN_THE_12):
        evaluate(report.model, with_masks(tmp_path / "none", (7, 255)), EvalConfig(**READ, ignore_index=7))


def test_a_value_that_is_no_class_is_of_masks_alone(tmp_path: Path) -> None:
    from tosa_cli.data.pairs import open_pairs

    with pytest.raises(DataError, match=fragments.IGNORE_INDEX_GOES_WITH_MASKS):
        open_pairs(str(write_folder(tmp_path)), task="depth", ignore_index=0)
