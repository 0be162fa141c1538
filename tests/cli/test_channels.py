"""Models that take greyscale images, or images of channels that no image file has."""

import re
from pathlib import Path

import pytest

from tests.cli.conftest import TRAIN, Tosa, write_dense
from tests.cli.image_sources import write_shards
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder


def convert(tosa: Tosa, in_chans: int, more: str = "--layers 2 --keep-rate 0.5") -> str:
    """Convert a source of so many channels to the folder `dense-tosa`; returns what was said."""
    write_dense(Path("dense"), depth=2, in_chans=in_chans, dynamic_img_size=True)
    done = tosa(f"convert dense {more}")
    assert done.code == 0, done.err
    return done.err


@pytest.mark.parametrize(
    "command",
    [
        f"distill --data-dir photos {TRAIN}",
        f"finetune --data-dir digits {TRAIN}",
        f"finetune --data-dir rooms --task depth --max-depth 6 --decoder linear --decoder-dim 8 -o depth {TRAIN}",
        "eval --data-dir digits -j 0 --compare",
        "inspect dense --data-dir photos --max-samples 4",
        "viz photos/000.jpg",
    ],
)
def test_a_model_of_one_channel_reads_images_in_greyscale(work: Path, tosa: Tosa, command: str) -> None:
    convert(tosa, 1)
    write_folder(work / "rooms", 10)
    done = tosa(command)
    assert done.code == 0, done.err


def test_greyscale_images_are_the_same_in_shards(work: Path, tosa: Tosa) -> None:
    pytest.importorskip("webdataset")
    convert(tosa, 1)
    write_shards(work / "shards", work / "digits")
    folder = tosa("eval --data-dir digits --task features --compare -j 0 --json").json
    shards = tosa("eval --dataset wds/digits --data-dir shards --task features --compare -j 0 --json").json
    assert folder["samples"] == shards["samples"] == 33 and folder["patch_cosine"] < 0.999
    assert shards["patch_cosine"] == pytest.approx(folder["patch_cosine"], abs=1e-5)


def test_layers_of_a_model_of_one_channel_are_chosen_by_measurement(work: Path, tosa: Tosa) -> None:
    auto = "--layers auto --selector similarity --bypass nearest --target-reduction 0.1"
    convert(tosa, 1, f"{auto} --data-dir photos --max-samples 4")


def test_a_model_of_other_channels_converts_but_reads_no_image_files(work: Path, tosa: Tosa) -> None:
    said = convert(tosa, 4)
    assert "--data-dir" not in said and fragments.TOSA_BENCH in said
    for command in (f"distill --data-dir photos {TRAIN}", "inspect dense --data-dir photos", "viz photos/000.jpg"):
        done = tosa(command)
        assert done.code == 2, done.err
        assert re.search(r"\b4\b.*\b1\b.*\b3\b", done.err)
    assert tosa("bench -b 2 --rounds 1 --device cpu").code == 0
