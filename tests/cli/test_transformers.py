"""The commands on a checkpoint in transformers' format, as it comes from the Hub."""

import json
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

from tests.cli.conftest import Tosa
from tests.hub.stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)
from tests.hub.transformers_models import make, make_pixels, output_of, published, save
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.labels import match_names
from tosa_cli.data.loading import Augmentation, images_to_read
from tosa_cli.hub.source import load_source

DIGITS = {index: str((3 * index + 5) % 10) for index in range(10)}
"""Class names in an order that is not the alphabet's."""


@pytest.fixture
def classifier(work: Path) -> Path:
    """`theirs`: ten classes, named by digits in disorder, and an image processor."""
    model = make(published("google/vit-base-patch16-224"), id2label=DIGITS)
    return save(model, work / "theirs", published("google/vit-base-patch16-224", "preprocessor_config.json"))


def test_a_repository_goes_through_convert_flops_and_inspect(stub_hub: StubHub, work: Path, tosa: Tosa) -> None:
    theirs = make(published("facebook/dinov2-small"))
    folder = save(theirs, work / "theirs", published("facebook/dinov2-small", "preprocessor_config.json"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = stub_hub.put("facebook/dinov2-small", files)
    stub_hub.put("facebook/dinov2-small", {"model.safetensors": b"broken since then"})
    source = f"facebook/dinov2-small@{commit.oid}"
    done = tosa(f"convert {source} --layers 2 --keep-rate 1.0 --json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"] == "dinov2-small-tosa"
    assert fragments.ITS_IMAGE_PROCESSOR_GIVES_224X224 in done.err
    model, images = load("dinov2-small-tosa"), make_pixels(theirs)
    assert torch.allclose(model(images), output_of(theirs, images), atol=1e-5)
    assert timm.data.resolve_model_data_config(model)["crop_pct"] == 0.875
    assert (model.provenance.base_hub_id, model.provenance.base_revision) == ("facebook/dinov2-small", commit.oid)
    done = tosa(f"convert {source} --layers 2 --img-size 224 --dry-run")
    assert done.code == 0 and fragments.IMAGE_PROCESSOR not in done.err
    for command in (f"flops {source}", f"inspect {source}"):
        done = tosa(command)
        assert done.code == 0 and "facebook/dinov2-small" in done.out, done.err


def test_labels_are_matched_by_name_where_all_names_are_known(classifier: Path, work: Path, tosa: Tosa) -> None:
    assert tosa("convert theirs --layers 2 --keep-rate 1.0").code == 0
    done = tosa("eval theirs-tosa --data-dir digits -j 0 --json")
    assert done.code == 0 and fragments.MATCHED_WITH_THE_MODEL_S in done.err
    by_name = done.json
    assert by_name["labels"] == "by name"
    # The same pictures under names that the model does not know are taken in their order.
    for folder in (work / "digits" / "validation").iterdir():
        folder.rename(folder.with_name(f"digit {folder.name}"))
    done = tosa("eval theirs-tosa --data-dir digits -j 0 --json")
    assert done.json["labels"] == "by position" and fragments.BY_NAME not in done.err
    by_position = done.json
    # And when the folders are put into the model's order, position is what the names said.
    for folder in (work / "digits" / "validation").iterdir():
        position = {name: index for index, name in DIGITS.items()}[folder.name.removeprefix("digit ")]
        folder.rename(folder.with_name(f"{position}th"))
    reordered = tosa("eval theirs-tosa --data-dir digits -j 0 --json").json
    assert reordered["labels"] == "by position"
    assert (reordered["top1"], reordered["top5"]) == (by_name["top1"], by_name["top5"])
    assert (by_position["top1"], by_position["top5"]) != (by_name["top1"], by_name["top5"])


def test_some_of_a_models_classes_can_be_evaluated(classifier: Path, work: Path, tosa: Tosa) -> None:
    assert tosa("convert theirs --layers 2").code == 0
    for name in "0123456":
        for path in (work / "digits" / "validation" / name).iterdir():
            path.unlink()
        (work / "digits" / "validation" / name).rmdir()
    done = tosa("eval theirs-tosa --data-dir digits -j 0 --json")
    assert done.code == 0 and done.json["labels"] == "by name", done.err


def test_training_sees_the_models_order_of_classes_too(classifier: Path, work: Path) -> None:
    model = load_source(str(classifier)).model
    opened = open_dataset("digits", split="train")
    images = images_to_read(opened, model, batch_size=7, augment=Augmentation(), name="digits")
    assert images.by_name and images.classes == list(DIGITS.values())
    seen = Counter(DIGITS[int(target)] for batch in images.batches(strict=True) for target in batch.targets)
    there = {folder.name: len(list(folder.iterdir())) for folder in (work / "digits" / "train").iterdir()}
    assert there.keys() == seen.keys() and sum(seen.values()) == 7 * (sum(there.values()) // 7)
    assert all(there[name] - 5 <= count <= there[name] for name, count in seen.items())
    read = images_to_read(opened, model, batch_size=7, name="digits")
    assert Counter(DIGITS[int(target)] for batch in read.batches(strict=True) for target in batch.targets) == there


def test_what_cannot_be_converted_is_said_in_one_sentence(work: Path, tosa: Tosa) -> None:
    (work / "theirs").mkdir()
    (work / "theirs" / "config.json").write_text('{"model_type": "swin"}')
    done = tosa("convert theirs --layers 2")
    assert done.code == 2 and done.out == ""
    assert "'swin'" in done.err and "windows" in done.err


@pytest.mark.parametrize(
    ("classes", "names", "order"),
    [
        (["cat", "dog"], ["dog", "cat"], [1, 0]),
        (["apple_pie", "Baby Back Ribs"], ["baby_back_ribs", "apple pie", "owl"], [1, 0]),
        (["cat", "cow"], ["dog", "cat"], None),
        (["n01440764"], ["tench, Tinca tinca"], None),
        (["cat"], [], None),
        ([], ["cat"], None),
        (["cat"], ["cat", "Cat"], None),
        (["cat", "Cat"], ["cat", "dog"], None),
    ],
)
def test_names_match_but_for_case_and_underscores(
    classes: list[str], names: list[str], order: list[int] | None
) -> None:
    assert match_names(classes, names) == order
