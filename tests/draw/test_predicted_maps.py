"""What a model with a decoder predicts is drawn as it is: both encoders on one scale, in the form of the image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.model.tiny_models import MODELS, make_images, make_tosa, make_vit
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tosa_cli.data.pair_images import pairs_to_read
from tosa_cli.data.pairs import open_pairs
from tosa_cli.data.photos import open_photo, to_pixels, whole_photo_transform
from tosa_cli.draw.draw_maps import AS_CONVERTED, EVERY_TOKEN, SCALE_SHARES, class_color, draw_maps, num_panels
from tosa_cli.draw.picture import make_predicted_picture
from tosa_cli.draw.predicted_maps import PredictedMaps, class_shares, predict_maps
from tosa_cli.errors import ConfigError
from tosa_cli.model.predictor import Predictor
from tosa_cli.task import TaskConfig


def make_predictor(converted: bool = True, keep_rate: float = 0.5, name: str = "test_vit", **task: Any) -> Predictor:
    source = make_vit(name, dynamic_img_size=True)
    config = TaskConfig(**{"decoder": "dpt", "decoder_dim": 16, **task})
    torch.manual_seed(0)
    return Predictor(make_tosa(source, keep_rate=keep_rate) if converted else source, config).eval()


def drawn(maps: PredictedMaps, ratio: float = 1.0, narrow: bool = False) -> Any:
    """The panels of a row of maps."""
    axes = Figure().subplots(1, num_panels(maps))
    draw_maps(axes, maps, torch.rand(*maps.converted.shape, 3), ratio, narrow)
    return axes


# ---------------------------------------------------------------------- maps


def test_both_depth_maps_are_the_models_own() -> None:
    model, images = make_predictor(), make_images(1, size=(64, 96))
    maps = predict_maps(model, images)
    with torch.no_grad():
        assert torch.equal(maps.converted, model(images)[0, 0])
        assert maps.dense is not None and torch.equal(maps.dense, model.with_dense_encoder()(images)[0, 0])
    assert maps.depth_difference is not None and maps.depth_difference > 1e-3 and maps.equal_pixels is None


def test_with_every_token_kept_nothing_differs() -> None:
    images = make_images(1, size=64)
    assert predict_maps(make_predictor(keep_rate=1.0), images).depth_difference == pytest.approx(0, abs=1e-5)
    labels = make_predictor(keep_rate=1.0, task="segmentation", num_labels=3)
    assert predict_maps(labels, images).equal_pixels == pytest.approx(1, abs=0.01)


def test_how_far_apart_depths_are_is_relative_to_every_token() -> None:
    maps = PredictedMaps("depth", torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.5]]))
    assert maps.disagreement is not None and maps.disagreement.tolist() == [[0.5, pytest.approx(0.2)]]
    assert maps.depth_difference == pytest.approx(0.35) and maps.equal_pixels is None


def test_how_far_apart_masks_are_is_the_share_of_equal_pixels() -> None:
    maps = PredictedMaps("segmentation", torch.tensor([[0, 2, 2, 2]]), torch.tensor([[0, 2, 1, 2]]))
    assert maps.disagreement is not None and maps.disagreement.tolist() == [[0, 0, 1, 0]]
    assert maps.equal_pixels == 0.75 and maps.depth_difference is None
    assert class_shares(maps.converted) == {2: 0.75, 0: 0.25} and list(class_shares(maps.converted)) == [2, 0]


def test_nothing_is_compared_unless_asked() -> None:
    maps = predict_maps(make_predictor(), make_images(1, size=64), compare=False)
    assert maps.dense is None and maps.disagreement is None and maps.depth_difference is None


# ---------------------------------------------------------------------- drawing


def test_both_depth_maps_have_one_scale_whose_bar_is_in_metres() -> None:
    axes = drawn(PredictedMaps("depth", torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 8.0]])))
    images = [panel.images[0] for panel in axes[1:3]]
    assert [image.get_clim() for image in images] == [(1, 8), (1, 8)]
    assert [image.get_array().tolist() for image in images] == [[[2, 8]], [[1, 4]]]
    assert [panel.get_title() for panel in axes[1:3]] == [
        f"{EVERY_TOKEN}\n2.00 to 8.00 m",
        f"{AS_CONVERTED}\n1.00 to 4.00 m",
    ]
    (bar,) = axes[1].child_axes
    assert bar.get_ylim() == (8, 1) and "metres" in axes[0].texts[0].get_text()
    assert axes[3].get_title().endswith("mean 50.0% of the depth")


def test_one_depth_map_of_one_value_is_drawn_with_its_scale() -> None:
    axes = drawn(PredictedMaps("depth", torch.full((4, 4), 2.0)), narrow=True)
    assert axes[1].get_title() == "predicted depth in metres\n2.00 to 2.00 m" and not axes[0].texts
    assert axes[1].child_axes


def test_a_class_has_one_color_in_both_masks_and_what_differs_is_white() -> None:
    converted, dense = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 1], [1, 2]])
    axes = drawn(PredictedMaps("segmentation", converted, dense))
    every, own, apart = (np.asarray(panel.images[0].get_array()) for panel in axes[1:])
    hue = {number: np.array(class_color(number)) for number in range(3)}
    for painted, classes in ((every, dense), (own, converted)):
        for row, column in np.ndindex(2, 2):
            color = painted[row, column]
            assert np.allclose(
                color / color.max(), hue[int(classes[row, column])] / hue[int(classes[row, column])].max()
            )
    assert (apart[1, 0] == 1).all() and apart[0].max() < 0.5
    assert "equal for 75.0%" in axes[3].get_title()
    named = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert sorted(named) == ["0: 25%, 25%", "1: 50%, 25%", "2: 25%, 50%"]


def test_many_classes_are_named_as_far_as_there_is_room() -> None:
    axes = drawn(PredictedMaps("segmentation", torch.arange(150).reshape(10, 15)))
    assert len(axes[0].get_legend().get_texts()) == 8
    assert fragments.AND_142_MORE in axes[0].get_legend().get_title().get_text()
    assert len({class_color(number) for number in range(150)}) == 150


def test_maps_are_drawn_in_the_form_of_the_image_whatever_size_the_model_sees() -> None:
    axes = drawn(PredictedMaps("depth", torch.rand(32, 32) + 1, torch.rand(32, 32) + 1), ratio=0.5)
    assert [panel.get_aspect() for panel in axes[1:]] == [0.5] * 3  # of a pixel, which is twice as wide as high


@pytest.mark.parametrize("task", [{}, {"task": "segmentation", "num_labels": 4}], ids=["depth", "segmentation"])
@pytest.mark.parametrize("compare", [True, False])
@pytest.mark.parametrize("ratio", [None, 0.5, 2.0])
def test_a_picture_has_a_row_for_layers_scores_tokens_and_maps(
    task: dict[str, Any], compare: bool, ratio: float | None
) -> None:
    model, images = make_predictor(**task), make_images(1, size=(64, 96))
    picture = make_predicted_picture(model, images, compare=compare, layers=[2, 4], ratio=ratio, title="a")
    assert [layer.layer for layer in picture.maps] == [2, 4] and picture.maps[0].kept.shape == (4, 6)
    assert (picture.tokens is not None) == compare and picture.predicted is not None
    assert (picture.predicted.dense is not None) == compare
    image = Image.open(io.BytesIO(picture.png))
    columns, rows = (4, 4) if compare else (3, 3)
    panel = image.width / columns * (ratio or 64 / 96)
    assert rows * panel < image.height < rows * panel + 120 * 2.5


@pytest.mark.parametrize("task", [{}, {"task": "segmentation", "num_labels": 4}], ids=["depth", "segmentation"])
def test_a_dense_encoder_has_its_map_beside_the_image_and_nothing_else(task: dict[str, Any]) -> None:
    picture = make_predicted_picture(make_predictor(converted=False, **task), make_images(1, size=64))
    assert not picture.maps and picture.tokens is None and picture.predicted is not None
    assert picture.predicted.dense is None
    image = Image.open(io.BytesIO(picture.png))
    share = SCALE_SHARES[task.get("task", "depth")]
    assert image.width == pytest.approx((2 + share) * 3 * 120, abs=1) and image.height < image.width / 1.7


@pytest.mark.parametrize("name", MODELS)
def test_encoders_of_every_family_are_drawn_at_another_size(name: str) -> None:
    picture = make_predicted_picture(make_predictor(name=name), make_images(1, size=(64, 96)), layers=[4])
    assert picture.maps[0].kept.shape == (4, 6) and picture.tokens is not None
    assert picture.predicted is not None and picture.predicted.converted.shape == (64, 96)


def test_a_layer_that_is_no_tosa_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Layer 3 .*2,4,6"):
        make_predicted_picture(make_predictor(), make_images(1, size=64), layers=[3])


# ---------------------------------------------------------------------- image files


def test_an_image_is_read_whole_and_as_evaluation_reads_it(tmp_path: Path) -> None:
    model = make_predictor()
    write_folder(tmp_path, 1, size=(48, 80))
    pairs = open_pairs(str(tmp_path), task="depth", data_format="folder")
    read = pairs_to_read(pairs, model, model.config, data_format="folder", img_size=(64, 96), batch_size=1)
    photo = open_photo(tmp_path / "rgb/000.png", model)
    images = whole_photo_transform(model, (60, 100))(photo)[None]  # brought to whole patches of 16
    (batch,) = read.batches(strict=True)
    assert images.shape == (1, 3, 64, 96) and torch.equal(images, batch.images)
    assert to_pixels(images, model).shape == (64, 96, 3)
    assert whole_photo_transform(model)(photo).shape[-2:] == model.img_size
