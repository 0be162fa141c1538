"""The picture shows computed patches as they are and skipped ones dimmed."""

import builtins
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from tests.model.tiny_models import make_images, make_tosa, make_vit
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.data.photos import find_photos, photo_transform, read_photo, to_pixels
from tosa_cli.draw.page import PageEntry, render_page
from tosa_cli.draw.picture import make_picture
from tosa_cli.draw.selection_figure import draw_layer
from tosa_cli.draw.selection_maps import SelectionMap
from tosa_cli.errors import DataError, InputError


class Axes:
    """Takes what is drawn, in matplotlib's place."""

    def imshow(self, pixels: np.ndarray, **_: Any) -> None:
        self.pixels = pixels

    def set_title(self, title: str, **_: Any) -> None:
        self.title = title

    def add_collection(self, lines: Any) -> None:
        self.lines = lines.get_segments()


def test_computed_patches_are_as_in_the_image_and_skipped_ones_dimmed() -> None:
    kept = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    pixels = torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(0))
    axes = Axes()
    draw_layer(axes, pixels, SelectionMap(6, 0.8, kept, None))
    assert axes.title == "layer 6, keep rate 0.8\n5 of 6 patches"
    assert np.array_equal(axes.pixels[20:], pixels[20:]) and np.array_equal(axes.pixels[:20, :20], pixels[:20, :20])
    skipped = axes.pixels[:20, 20:40]
    assert skipped.max() < 0.5 and skipped.std() < 0.3 * pixels.std()
    # Its left, its right and its lower side; the upper one is the edge of the image.
    assert sorted(np.array(axes.lines).mean(1).tolist()) == [[19.5, 9.5], [29.5, 19.5], [39.5, 9.5]]


@pytest.mark.parametrize("settings", [{}, {"selector": "random"}, {"selection": "per-head"}], ids=str)
@pytest.mark.parametrize("compared", [True, False])
def test_a_picture_is_a_png_with_a_row_for_what_there_is(settings: dict[str, Any], compared: bool) -> None:
    model = make_tosa(**settings)
    picture = make_picture(model, make_images(1), model.backbone if compared else None, title="a <cat> & $dogs")
    image = Image.open(io.BytesIO(picture.png))
    assert image.format == "PNG" and image.width == 4 * round(1.9 * 120)
    rows = 1 + (settings.get("selector") != "random") + compared
    assert rows - 0.2 < image.height / (1.9 * 120) < rows + 0.9
    assert (picture.tokens is not None) == compared and len(picture.maps) == 3


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"tosa-cli\[plot\]"):
        make_picture(make_tosa(), make_images(1))


# ---------------------------------------------------------------------- image files


def test_a_photo_is_read_as_evaluation_reads_it_and_shown_as_it_was(tmp_path: Path) -> None:
    model = make_tosa(make_vit(img_size=64))
    values = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype("uint8")
    Image.fromarray(values).save(tmp_path / "photo.png")
    images = read_photo(tmp_path / "photo.png", model, photo_transform(model))
    assert images.shape == (1, 3, 64, 64)
    config = {**resolve_model_data_config(model), "input_size": (3, 64, 64)}
    expected = create_transform(**config, is_training=False)(Image.fromarray(values))
    assert torch.equal(images[0], expected)
    mean, std = (torch.tensor(config[key]) for key in ("mean", "std"))
    assert torch.allclose(to_pixels(images, model), (expected.permute(1, 2, 0) * std + mean).clamp(0, 1), atol=1e-6)


def test_a_photo_taken_sideways_is_seen_as_evaluation_sees_it(tmp_path: Path) -> None:
    model = make_tosa(make_vit(img_size=64))
    photo = Image.new("RGB", (64, 64), "black")
    photo.paste("white", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    photo.save(tmp_path / "photo.png", exif=exif)
    images = read_photo(tmp_path / "photo.png", model, photo_transform(model))
    (batch,) = images_to_read(open_dataset(str(tmp_path)), model, batch_size=1).batches(strict=True)
    assert torch.equal(images, batch.images)
    pixels = to_pixels(images, model)
    assert pixels[4:28].min() > 0.9 and pixels[36:60].max() < 0.1


def test_gray_images_fit_models_of_one_channel(tmp_path: Path) -> None:
    model = make_tosa(make_vit(img_size=64, in_chans=1))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    images = read_photo(tmp_path / "photo.png", model, photo_transform(model))
    assert images.shape == (1, 1, 64, 64) and to_pixels(images, model).shape == (64, 64, 3)


def test_folders_are_searched_in_order_and_each_image_comes_once(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "deep/c.jpeg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_photos([tmp_path, tmp_path / "b.jpg"])
    assert [path.name for path in found] == ["a.PNG", "b.jpg", "c.jpeg"]


def test_what_is_missing_empty_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cat\.jpg"):
        find_photos([tmp_path / "cat.jpg"])
    with pytest.raises(DataError, match=str(tmp_path)):
        find_photos([tmp_path])
    (tmp_path / "cat.jpg").write_bytes(b"meow")
    model = make_tosa(make_vit(img_size=64))
    with pytest.raises(DataError, match=r"cat\.jpg"):
        read_photo(tmp_path / "cat.jpg", model, photo_transform(model))


# ---------------------------------------------------------------------- the page


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alternatives: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        self.alternatives += [value or "" for name, value in attributes if name == "alt"]


def test_a_page_needs_nothing_from_outside_and_its_names_are_only_names(tmp_path: Path) -> None:
    png = tmp_path / "a.png"
    png.write_bytes(b"\x89PNG")
    page = "".join(render_page("A <b>", ["x < y"], [PageEntry("<script>.png", png, 0.5), PageEntry("b.png", png)]))
    parser = Links()
    parser.feed(page)
    assert parser.alternatives == ["Selection in <script>.png", "Selection in b.png"]
    assert all(link.startswith(("data:image/png;base64,", "#image-")) for link in parser.links)
    assert "<script" not in page and not re.search(r"https?://|@import|url\(", page)
    assert "<td>0.5000</td><td>-</td>" in page
