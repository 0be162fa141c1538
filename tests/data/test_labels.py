"""Which label is which class: by a map, by names wherever they are known, and otherwise in an order that is told."""

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.sentences import fragments
from tests.train.tiny_runs import tiny_tosa
from tosa_cli.data.class_folders import ClassFolders, natural_key
from tosa_cli.data.class_map import read_class_map
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.labels import Labels, check_labels, find_labels
from tosa_cli.data.loading import images_to_read
from tosa_cli.errors import DataError
from tosa_cli.model.class_names import class_descriptions, set_class_names


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / path)
    return root


def labels(root: Path) -> dict[str, int]:
    reader = ClassFolders(root)
    return {os.path.relpath(path, root): label for path, label in reader.samples}


# ---------------------------------------------------------------------- folders


def test_folders_are_numbered_in_natural_order_whatever_their_case(tmp_path: Path) -> None:
    reader = ClassFolders(write(tmp_path, "c10/1.png", "C2/1.png", "b/1.png", "B/1.png", "c²/1.png"))
    assert list(reader.class_to_idx) == ["B", "b", "C2", "c10", "c²"]
    assert sorted(["01", "1", "a10", "a9", "A9"], key=natural_key) == ["01", "1", "A9", "a9", "a10"]


def test_the_folders_at_the_top_are_the_classes_wherever_the_images_lie(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/images/1.png", "dog/images/1.png", "dog/2.png")
    assert labels(root) == {"cat/images/1.png": 0, "dog/2.png": 1, "dog/images/1.png": 1}
    facts = ClassFolders(root).label_facts
    assert facts.notes == (
        f"Images of {root} lie in sub-folders of 'cat', 'dog': the folders at the top are the classes.",
    )
    assert not facts.problem


def test_hidden_folders_and_files_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/1.png", ".cache/1.png", "cat/.ipynb_checkpoints/1.png", "cat/._1.png")
    assert labels(root) == {"cat/1.png": 0}
    assert ClassFolders(root).label_facts.notes == (
        f"Hidden folders of {root} are left out: '.cache', 'cat/.ipynb_checkpoints'.",
    )


def test_folders_that_a_system_puts_there_are_hidden_ones(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/1.png", "__MACOSX/cat/1.png", "cat/@eaDir/1.png/thumb.jpg")
    assert labels(root) == {"cat/1.png": 0}


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "cat/1.png", "dog/1.png")
    other = write(tmp_path / "other", "2.png")
    (root / "cat" / "back").symlink_to(root)
    (root / "dog" / "more").symlink_to(other)
    assert labels(root) == {"cat/1.png": 0, "dog/1.png": 1, "dog/more/2.png": 1}


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/1.png")
    os.mkfifo(root / "cat" / "2.png")
    reader = ClassFolders(root)
    contents = [reader[index][0].read() for index in range(2)]
    assert contents[0] and not contents[1]


def test_a_class_folder_without_an_image_keeps_its_number(tmp_path: Path) -> None:
    root = write(tmp_path, "a/1.png", "c/1.png")
    (root / "b").mkdir()
    assert labels(root) == {"a/1.png": 0, "c/1.png": 2}
    assert "without an image, which are counted: 'b'" in ClassFolders(root).label_facts.notes[0]


def test_images_beside_class_folders_belong_to_no_class(tmp_path: Path) -> None:
    root = write(tmp_path, "a/1.png", "b/1.png", "2.png")
    reader = ClassFolders(root)
    assert labels(root)["2.png"] == -1
    assert reader.label_facts.problem.startswith(f"{root}/2.png lies in no class folder")
    images = images_to_read(open_dataset(str(root)), tiny_tosa(), batch_size=3, name="photos")
    assert sum(len(batch.images) for batch in images.batches(strict=True)) == 3  # where no label is read
    with pytest.raises(DataError, match=r"2\.png lies in no class folder"):
        check_labels(images, 2)


def test_photos_in_one_folder_have_no_classes(tmp_path: Path) -> None:
    root = write(tmp_path, "2.png", "10.png")
    (root / "notes").mkdir()
    reader = ClassFolders(root)
    assert not reader.class_to_idx and labels(root) == {"2.png": -1, "10.png": -1}


# ---------------------------------------------------------------------- by names


NAMES = ["cat", "dog", "fox"]


def found(classes: list[str] | None, names: list[str] = NAMES, **rest: object) -> Labels:
    return find_labels(classes, names, num_classes=len(names) or 3, shown="photos", **rest)  # type: ignore[arg-type]


def test_labels_go_by_name_where_all_names_are_known_and_a_few_are_enough() -> None:
    assert (found(["fox", "Cat"]).order, found(["fox", "Cat"]).by) == ([2, 0], "name")
    assert found(["fox", "Cat"]).classes == NAMES


def test_a_class_that_a_model_does_not_know_among_those_it_knows_is_refused() -> None:
    assert found(["a red fox", "cat", "dog"]).problem == (
        "Of the 3 classes of photos, 2 are among the model's (cat, dog, fox), but 'a red fox' is not: rename its "
        "folder, or say with --class-map FILE which class each folder is."
    )
    assert "called alike" in found(["cat", "Cat"], ["cat", "dog"]).problem


def test_of_held_out_images_every_class_must_be_one_that_is_learned() -> None:
    assert "'bird' is not" in found(["bird"], must_match=True).problem
    assert found(["bird", "ant", "cow"]).by == "position"  # as a model may learn others


def test_names_that_a_model_has_twice_tell_the_other_classes_still() -> None:
    assert found(["crane", "dog"], ["crane", "dog", "crane"]).problem
    assert found(["dog"], ["crane", "dog", "crane"]).order == [1]


def test_folders_named_by_imagenets_synsets_are_matched_with_a_model_of_its_classes() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    for names in ([], info.label_names(), info.label_descriptions()):
        for classes in (["n02123045", "n01440764"], ["Tabby", "tench"], ["tabby, tabby cat", "tench, Tinca tinca"]):
            labels = find_labels(classes, names, num_classes=1000, shown="photos")
            assert labels.order == [281, 0] and labels.by == "name"
    others = [f"class {index}" for index in range(1000)]
    assert find_labels(["n02123045", "n01440764"], others, num_classes=1000, shown="photos").by == "position"


def test_classes_may_be_called_as_they_are_described() -> None:
    labels = found(["A red fox", "a cat"], descriptions=["a cat", "a dog", "a red fox"])
    assert (labels.order, labels.classes) == ([2, 0], NAMES)
    model = tiny_tosa()
    set_class_names(model, [f"n{index}" for index in range(10)])
    described = {f"n{index}": f"number {index}" for index in range(10)}
    model.pretrained_cfg = {**model.pretrained_cfg, "label_descriptions": described}
    assert class_descriptions(model) == [f"number {index}" for index in range(10)]


# ---------------------------------------------------------------------- by position


def test_where_two_orders_differ_the_one_taken_is_told(tmp_path: Path) -> None:
    root = write(tmp_path, "c1/1.png", "c2/1.png", "c10/1.png")
    model = tiny_tosa()
    images = images_to_read(open_dataset(str(root)), model, batch_size=3, name="photos")
    assert images.labels.notes == (
        "The folders of photos are numbered in natural order, as by timm: class 1 is 'c2'. By torchvision, which sorts "
        "by code point, it is 'c10': for a model that was trained so, pass --class-map FILE with the folders in its "
        "order.",
    )
    other = images_to_read(open_dataset(str(write(tmp_path / "b", "c1/1.png", "c2/1.png"))), model, batch_size=2)
    assert not other.labels.notes
    set_class_names(model, [f"c{index}" for index in range(10, 0, -1)])
    assert not images_to_read(open_dataset(str(root)), model, batch_size=3).labels.notes  # names tell


# ---------------------------------------------------------------------- by a class map


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"a red fox": 2, "cat": 0, "tench, Tinca tinca": 1}'),
        ("map.csv", "a red fox,2\ncat,0\n\ntench, Tinca tinca,1\n"),
        ("map.tsv", "a red fox\t2\ncat\t0\ntench, Tinca tinca\t1"),
        ("map.txt", "cat\ntench, Tinca tinca\na red fox\n"),
    ],
)
def test_a_class_map_is_json_or_lines(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_class_map(str(tmp_path / name)) == {"cat": 0, "tench, Tinca tinca": 1, "a red fox": 2}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[1]"),
        ("a.json", '{"a": "b"}'),
        ("a.json", '{"a": -1}'),
        ("a.txt", " "),
        ("a.txt", "a\na"),
    ],
)
def test_a_class_map_that_is_none_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"class map .*{name} cannot be read"):
        read_class_map(str(tmp_path / name))
    assert read_class_map("") is None


def test_a_class_map_goes_before_names_and_says_what_it_lacks() -> None:
    labels = found(["cat", "dog"], class_map={"cat": 1, "dog": 1})
    assert (labels.order, labels.by, labels.classes) == ([1, 1], "class map", NAMES)
    assert "says nothing of 'dog'" in found(["cat", "dog"], class_map={"cat": 1}).problem
    assert "index 3, but the model's head has 3 classes" in found(["cat"], class_map={"cat": 3}).problem
    assert "does not name its classes" in found(None, class_map={"cat": 0}).problem
    whole = {"c": 2, "b": 1, "a": 0}
    assert found(["b"], [], class_map=whole).classes == found(["b"], class_map=whole).classes == ["a", "b", "c"]
    assert found(["b"], [], class_map={"b": 1}).classes is None


def test_a_map_that_names_a_class_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text('{"cat": 0, "dog": 1, "cat": 2}')
    with pytest.raises(DataError, match=fragments.IT_NAMES_CAT_TWICE):
        read_class_map(str(file))
