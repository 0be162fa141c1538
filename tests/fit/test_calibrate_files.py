"""A fit that stops, however, leaves no files, and images that cannot be read are named."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.sentences import fragments
from tests.train.tiny_runs import StopAt, distill_config, read, tiny_tosa, weights, write_photos
from tosa_cli.errors import DataError, TrainingError
from tosa_cli.fit.calibration import Calibration

from .fits import (
    Count,
    fit,
    make_photos,  # noqa: F401 (the fixture `photos`)
    make_scratch,  # noqa: F401 (the fixture `scratch`)
)


def test_tokens_on_disk_are_removed_at_the_end_and_lie_there_until_then(photos: Path, scratch: Path) -> None:
    seen: list[int] = []

    class Look(Count):
        def advance(self, num_images: int, text: str) -> None:
            super().advance(num_images, text)
            seen.append(sum(len(list(folder.iterdir())) for folder in scratch.iterdir()))

    progress = Look()
    fit(tiny_tosa(selector="similarity", bypass="nearest+linear"), photos, progress=progress)
    assert max(seen) == 3 and not list(scratch.iterdir())
    assert progress.done == progress.total == 3 * 4  # batches times layers, and once more to the end


def test_tokens_on_disk_are_removed_also_after_an_interruption(photos: Path, scratch: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_tosa(selector="similarity", bypass="linear"), photos, progress=StopAt(7))
    assert not list(scratch.iterdir())


def test_a_fit_that_is_not_finite_stops_and_leaves_no_files(photos: Path, scratch: Path) -> None:
    model = tiny_tosa(selector="similarity", bypass="nearest+linear")
    with torch.no_grad():
        model.blocks[2].mlp.fc2.bias[0] = float("inf")
    with pytest.raises(TrainingError, match="layer 4"):
        fit(model, photos)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("selector", ["similarity", "probe"])
def test_a_broken_image_is_skipped_and_named(photos: Path, selector: str) -> None:
    (photos / "005.jpg").write_bytes(b"not an image")
    model, without = (tiny_tosa(selector=selector, bypass="nearest+linear") for _ in range(2))
    report = fit(model, photos)
    assert report.images == 23 and [Path(name).name.split()[0] for name in report.failed] == ["005.jpg"]
    (photos / "005.jpg").unlink()
    assert fit(without, photos).failed == []
    for name, value in weights(model, "bypasses").items():
        torch.testing.assert_close(value, weights(without, "bypasses")[name], rtol=1e-2, atol=1e-3)


def test_a_broken_image_stops_a_strict_fit_and_leaves_no_files(photos: Path, scratch: Path) -> None:
    (photos / "020.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"020\.jpg .*--strict"):
        fit(tiny_tosa(selector="similarity", bypass="linear"), photos, strict=True)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("own", [0, 1])
def test_an_image_that_stops_one_of_two_processes_stops_both_in_the_same_turn(photos: Path, own: int) -> None:
    (photos / "014.jpg").write_bytes(b"not an image")  # in the fourth batch of four, which the second process computes

    class Process(Accelerator):
        num_processes, process_index = 2, own  # type: ignore[assignment]

    model = tiny_tosa(selector="similarity", bypass="linear")
    images = read(model, photos, distill_config(batch_size=4), None)
    run = Calibration(Process(cpu=True), model, images, True, None)
    numbers = []
    batches = run.read()
    with pytest.raises(DataError, match=r"014\.jpg"):
        while True:
            numbers.append(next(batches)[0])
    assert numbers == [own]


def test_images_none_of_which_can_be_read_are_refused(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 3)
    for path in folder.iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=fragments.PHOTOS_000_JPG):
        fit(tiny_tosa(selector="similarity", bypass="linear"), folder)
