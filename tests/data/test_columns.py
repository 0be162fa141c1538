"""Which columns of a Hugging Face data set are read: those there are one of, or those that are named."""

from pathlib import Path
from typing import Any

import pytest

from tests.sentences import fragments
from tests.train.tiny_runs import tiny_tosa
from tosa_cli.data.columns import find_columns
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.errors import DataError

datasets: Any = pytest.importorskip("datasets")
IMAGE, CLASSES, NUMBER = datasets.Image(), datasets.ClassLabel(names=["car", "ship"]), datasets.Value("int64")


@pytest.mark.parametrize(
    ("features", "columns"),
    [
        ({"image": IMAGE, "label": CLASSES}, ("image", "label")),
        ({"img": IMAGE, "label": CLASSES}, ("img", "label")),
        ({"image": IMAGE, "labels": CLASSES, "id": NUMBER}, ("image", "labels")),
        ({"image": IMAGE, "mask": IMAGE, "cls": CLASSES}, ("image", "cls")),
        ({"image": IMAGE, "labels": NUMBER, "id": NUMBER}, ("image", "labels")),
        ({"image": IMAGE, "label": CLASSES, "coarse": CLASSES}, ("image", "label")),
        ({"photo": IMAGE}, ("photo", None)),
        ({"image": datasets.Value("string"), "img": IMAGE, "label": CLASSES}, ("img", "label")),
        ({"image": IMAGE, "fine": CLASSES, "coarse": CLASSES}, ("image", None)),
    ],
)
def test_the_columns_of_images_and_labels_are_found(features: Any, columns: tuple[str, str | None]) -> None:
    found = find_columns(features, "hfds/me/data")
    assert (found.image, found.label) == columns
    assert bool(found.label_facts.problem) == (found.label is None)


def test_columns_that_are_named_are_taken_and_must_be_there() -> None:
    features = {"image": IMAGE, "mask": IMAGE, "fine": CLASSES, "coarse": CLASSES}
    found = find_columns(features, "hfds/me/data", "mask", "coarse")
    assert (found.image, found.label, found.label_facts.problem) == ("mask", "coarse", "")
    with pytest.raises(DataError, match=fragments.NO_COLUMN_X_BUT_IMAGE):
        find_columns(features, "hfds/me/data", "x")
    with pytest.raises(DataError, match=fragments.NO_COLUMN_X_LABEL_COLUMN):
        find_columns(features, "hfds/me/data", label="x")


def test_which_columns_there_are_is_said_where_none_can_be_chosen() -> None:
    with pytest.raises(DataError, match=fragments.IMAGES_IN_LEFT_AND_RIGHT):
        find_columns({"left": IMAGE, "right": IMAGE}, "hfds/me/data")
    with pytest.raises(DataError, match=fragments.NO_COLUMN_OF_IMAGES_OF):
        find_columns({"text": datasets.Value("string")}, "hfds/me/data")
    problem = find_columns({"image": IMAGE, "fine": CLASSES, "coarse": CLASSES}, "hfds/me/data").label_facts.problem
    assert "labels in 'fine' and 'coarse'" in problem and problem.endswith("with --label-column.")


def test_columns_of_other_names_are_read(tmp_path: Path) -> None:
    from PIL import Image

    rows = {"img": [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)], "labels": [0, 1, 1, 0]}
    features = datasets.Features({"img": IMAGE, "labels": CLASSES})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    opened = open_dataset(str(tmp_path / "cache"), f"hfds/{tmp_path}/data", "train")
    assert [label for _, label in opened] == [0, 1, 1, 0] and opened.reader.class_to_idx == {"car": 0, "ship": 1}


def test_columns_are_of_tables_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fragments.LABEL_COLUMN_GOES_WITH_A):
        open_dataset(str(tmp_path), label_column="label")


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (datasets.Value("string"), "string"),
        (datasets.Value("float32"), "float32"),
        (datasets.List(CLASSES), "List"),
        (IMAGE, "PIL.Image.Image"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_named_and_are_not_called_missing(kind: Any, named: str) -> None:
    found = find_columns({"image": IMAGE, "label": kind}, "hfds/me/data")
    assert found.label is None and f"in its column 'label' but {named}" in found.label_facts.problem


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    from PIL import Image

    rows = {"image": [None, Image.new("RGB", (8, 8))], "label": [0, 1]}
    (tmp_path / "data").mkdir()
    made = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": IMAGE, "label": CLASSES}))
    made.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    opened = open_dataset(str(tmp_path / "cache"), f"hfds/{tmp_path}")
    images = images_to_read(opened, tiny_tosa(), batch_size=2)
    assert [len(batch.images) for batch in images.batches(strict=False)] == [1]
    assert len(images.failed) == 1 and next(iter(images.failed)).startswith("image 0 (")
