"""What goes to the Hub names folders, and not where they lie."""

import json
from typing import Any

import pytest
import yaml

from tests.sentences import fragments
from tosa_cli.hub.public import (
    add_pictures,
    address_card,
    how_to_load,
    public_card,
    public_config,
    public_recipe,
    without_paths,
)


@pytest.mark.parametrize(
    ("key", "value", "public"),
    [
        ("source", "/home/me/vit", "vit"),
        ("source", "local-dir:../models/vit/", "vit"),
        ("source", "models/vit", "vit"),
        ("source", "~/weights/deit_tiny.pth", "deit_tiny.pth"),
        ("source", "C:\\models\\vit", "vit"),
        ("source", "deit_tiny", "deit_tiny"),
        ("source", "vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("source", "org/base", "org/base"),
        ("source", "hf-hub:org/base@v1", "hf-hub:org/base@v1"),
        ("data_dir", "photos", "photos"),
        ("data_dir", "data/photos/", "photos"),
        ("val_dir", "/mnt/imagenet/val", "val"),
        ("data_dir", "https://host/shards", "https://host/shards"),
        ("data_dir", "file:///home/me/shards", "shards"),
        ("data_dir", "wds/photos", "photos"),
        ("dataset", "hfds/org/name", "hfds/org/name"),
        ("dataset", "hfds//home/me/imagenet", "hfds/imagenet"),
        ("dataset", "HFDS/~/imagenet/", "HFDS/imagenet"),
        ("dataset", "hfids/../data/imagenet", "hfids/imagenet"),
        ("dataset", "hfds/work/mine/imagenet", "hfds/imagenet"),
        ("dataset", "hfds/C:\\data\\imagenet", "hfds/imagenet"),
        ("dataset", "wds//mnt/shards", "wds/shards"),
        ("dataset", "wds/file:///mnt/shards", "wds/shards"),
        ("dataset", "hfds/hf://datasets/org/name", "hfds/hf://datasets/org/name"),
        ("dataset", "tfds/imagenet2012:5.1.0", "tfds/imagenet2012:5.1.0"),
        ("split", "/mnt/train-{0000..0009}.tar|9", "train-{0000..0009}.tar|9"),
        ("model", "/home/me/vit-tosa", "vit-tosa"),
        ("skipped", ["/home/me/a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        ("auto_augment", "rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
        ("lr", 0.1, 0.1),
    ],
)
def test_a_path_becomes_a_name_and_all_else_stays(key: str, value: Any, public: Any) -> None:
    assert without_paths({"step": {key: value}}, "org/base") == {"step": {key: public}}


def test_a_configuration_changes_in_its_provenance_alone_and_not_at_all_without_paths() -> None:
    config = {"architecture": "tosa_vit", "model_args": {"x": "/kept"}, "tosa": {"source": "/a/b", "base_hub_id": None}}
    cleaned = json.loads(public_config(json.dumps(config).encode()))
    assert cleaned == {**config, "tosa": {"source": "b", "base_hub_id": None}}
    plain = b'{"tosa":   {"source": "deit_tiny"}}'
    assert public_config(plain) is plain and public_config(b"{}") == b"{}"


def test_a_recipe_stays_as_it_is_unless_it_has_a_path() -> None:
    plain = b"# mine\nconvert: {source: deit_tiny}\n"
    assert public_recipe(plain, None) is plain
    cleaned = public_recipe(b"# mine\ndistill: {data_dir: /home/me/photos, lr: 0.01}\n", None)
    assert yaml.safe_load(cleaned) == {"distill": {"data_dir": "photos", "lr": 0.01}}


def test_a_card_loses_the_paths_that_are_known_and_nothing_like_them() -> None:
    steps = {"distill": {"data_dir": "/a/b/photos", "val_dir": "val"}, "finetune": {"dataset": "hfds//a/b"}}
    config = {"tosa": {"source": "/a/b", "steps": steps}}
    card = "made from /a/b, with data_dir /a/b/photos, and /a/b-c, x/a/b, val, --dataset hfds//a/b"
    assert public_card(card, config) == "made from b, with data_dir photos, and /a/b-c, x/a/b, val, --dataset hfds/b"
    assert public_card(card, {}) == card


def test_a_card_tells_how_to_load_from_the_hub_if_it_still_has_the_section() -> None:
    card = f"# my model\n\n{how_to_load('my model')}\n"
    addressed = address_card(card, "org/name")
    assert addressed == f"# my model\n\n{how_to_load('my model', 'org/name')}\n"
    assert addressed.count("org/name") == 3 and "local-dir" not in addressed
    assert address_card(addressed, "me/name", before="org/name") == address_card(card, "me/name")
    for other in ("# my model\n\nBy hand.\n", "no title"):
        assert address_card(other, "org/name") == other


def test_pictures_stand_before_the_settings_or_at_the_end() -> None:
    card = add_pictures("# a\n\ntext\n\n## Settings\n\ntable\n", ["one.png", "two.png"], {})
    assert card.startswith("# a\n\ntext\n\n## What it computes\n\n![") and card.endswith("\n\n## Settings\n\ntable\n")
    assert card.index("(one.png)") < card.index("(two.png)")
    assert add_pictures("by hand", ["one.png"], {}).startswith("by hand\n\n## What it computes")
    assert add_pictures("by hand", [], {}) == "by hand"


@pytest.mark.parametrize(
    ("args", "skips", "predicts"),
    [
        ({"layers": [2]}, True, ""),
        ({"layers": [2], "task": "depth"}, True, "Depth in metres as predicted"),
        ({"task": "segmentation"}, False, "Classes as predicted"),
    ],
    ids=str,
)
def test_pictures_are_told_by_what_the_model_is_made_of(args: dict[str, Any], skips: bool, predicts: str) -> None:
    card = add_pictures("by hand", ["one.png"], {"model_args": args})
    assert (fragments.DIMMED_ONES_SKIP_IT in card) == (fragments.TOSA_LAYER in card) == skips
    assert (fragments.AS_PREDICTED in card) == bool(predicts) and predicts in card


def test_split_files_and_depth_folders_are_named_without_where_they_lie() -> None:
    for key in ("split_file", "val_split_file", "depth_dir", "val_depth_dir"):
        assert without_paths({key: "work/mine/part.txt"}, None) == {key: "part.txt"}
