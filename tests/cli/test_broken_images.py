"""Images that cannot be read are named and counted, or stop a strict command."""

from pathlib import Path

import pytest

from tests.cli.conftest import TRAIN, Tosa, rewrite
from tests.sentences import fragments

from .image_sources import (
    contents,
    share_converted,  # noqa: F401 (the fixture `converted`)
)


def add_broken(folder: Path, like: Path) -> list[str]:
    """A text, an empty file and half an image among good ones, sorted between them."""
    (folder / "0005b.png").write_text("This is not an image.")
    (folder / "0009b.jpg").write_bytes(b"")
    whole = like.read_bytes()
    (folder / f"0013b{like.suffix}").write_bytes(whole[: len(whole) // 2])
    return ["0005b.png", "0009b.jpg", f"0013b{like.suffix}"]


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_names_and_counts_what_it_cannot_read(converted: Path, tosa: Tosa, workers: int) -> None:
    broken = add_broken(Path("digits/validation/3"), Path("digits/validation/3/0003.png"))
    done = tosa(f"eval --data-dir digits -b 4 -j {workers} --json")
    report = done.json
    assert done.code == 0 and report["samples"] == 33 and len(report["skipped"]) == 3
    assert fragments.COULD_NOT_BE_READ_WERE in done.err
    for name in broken:
        assert name in done.err and any(name in skipped for skipped in report["skipped"])
    assert "\n" not in report["skipped"][0]


@pytest.mark.parametrize("workers", [0, 2])
def test_distill_names_and_counts_what_it_cannot_read(converted: Path, tosa: Tosa, workers: int) -> None:
    broken = add_broken(Path("photos"), Path("photos/003.jpg"))
    done = tosa(f"distill --data-dir photos -b 6 -j {workers} --epochs 2 --device cpu --json")
    assert done.code == 0, done.err
    assert len(done.json["skipped"]) == 3 and done.json["updates"] == 8
    assert all(name in done.err for name in broken)


def test_a_broken_image_among_the_held_out_ones_is_named_too(converted: Path, tosa: Tosa) -> None:
    rewrite(Path("digits/validation/0/0000.png"), b"")
    for command in ("distill", "finetune"):
        done = tosa(f"{command} --data-dir digits --val-split validation {TRAIN} --json")
        assert done.json["held_out"]["samples"] == 32
        assert len(done.json["skipped"]) == 1 and "0000.png" in done.err


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "command",
    [
        "eval --data-dir digits --strict",
        "distill --data-dir digits --split validation --strict -b 8",
        "finetune --data-dir digits --split validation --strict -b 8",
    ],
)
def test_strict_stops_at_a_broken_image(converted: Path, tosa: Tosa, command: str, workers: int) -> None:
    add_broken(Path("digits/validation/3"), Path("digits/validation/3/0003.png"))
    before = contents(converted)
    done = tosa(f"{command} -j {workers}")
    assert done.code == 2 and done.out == ""
    last = done.err.splitlines()[-1]
    assert last.startswith("Error: digits/validation/3/00") and fragments.CANNOT_BE_READ_REMOVE_IT in last
    assert contents(converted) == before


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("command", ["eval", f"distill {TRAIN}", f"finetune {TRAIN}"])
def test_a_folder_of_broken_images_is_refused(converted: Path, tosa: Tosa, command: str, workers: int) -> None:
    for label in range(10):
        for i in range(4):
            path = Path(f"bad/{label}/{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"bad")
    done = tosa(f"{command} dense-tosa --data-dir bad -j {workers}")
    assert done.code == 2 and "Traceback" not in done.err
    assert ("held-out" in done.err) == (command != "eval") and " bad/" in done.err


def test_many_broken_images_in_a_row_stop_the_training(converted: Path, tosa: Tosa) -> None:
    for i in range(200):
        Path(f"photos/x{i:03d}.jpg").write_bytes(b"bad")
    for workers in (0, 2):
        done = tosa(f"distill --data-dir photos --val-dir digits -b 8 --epochs 1 --device cpu -j {workers}")
        assert done.code == 2 and " photos/x" in done.err
        assert "Traceback" not in done.err
