"""Errors of depth maps are those of the field: by hand, masked, cropped, and averaged image by image."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tosa_cli.data.maps import measured_pixels
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.tasks.depth import DEPTH_FIGURES, DepthMeasure, depth_errors
from tosa_cli.tasks.predictor import flip_averaged


def errors(predicted: list[float], depth: list[float]) -> dict[str, float]:
    return dict(zip(DEPTH_FIGURES, depth_errors(torch.tensor(predicted), torch.tensor(depth)).tolist(), strict=True))


def test_the_errors_of_two_pixels_are_those_computed_by_hand() -> None:
    found = errors([1.0, 5.0], [2.0, 4.0])
    assert found["abs_rel"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["sq_rel"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["rmse"] == pytest.approx(1.0)
    assert found["rmse_log"] == pytest.approx(math.sqrt((math.log(2) ** 2 + math.log(1.25) ** 2) / 2))
    assert found["log10"] == pytest.approx((math.log10(2) + math.log10(1.25)) / 2)
    assert (found["d1"], found["d2"], found["d3"]) == (0.0, 0.5, 0.5)  # ratios 2 and 1.25: below it, not at it


def test_the_relative_errors_differ_where_the_error_is_not_one_metre() -> None:
    found = errors([3.0, 3.0], [1.0, 6.0])
    assert found["abs_rel"] == pytest.approx((2 + 0.5) / 2)
    assert found["sq_rel"] == pytest.approx((4 / 1 + 9 / 6) / 2)
    assert found["rmse"] == pytest.approx(math.sqrt((4 + 9) / 2))


def test_a_perfect_map_has_no_error_and_a_ratio_counts_either_way() -> None:
    found = errors([2.0, 7.5], [2.0, 7.5])
    assert [found[name] for name in DEPTH_FIGURES] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert errors([1.2], [1.0])["d1"] == errors([1.0], [1.2])["d1"] == 1.0
    assert errors([1.5], [1.0])["d2"] == errors([1.0], [1.5])["d2"] == 1.0
    assert errors([1.9], [1.0])["d3"] == 1.0 and errors([2.0], [1.0])["d3"] == 0.0


def test_pixels_without_a_depth_or_beyond_the_cap_do_not_count() -> None:
    depth = torch.tensor([[0.0, 0.5, 9.9], [10.0, 80.0, 0.001]])
    assert measured_pixels(depth, 1e-3, 10).tolist() == [[False, True, True], [False, False, False]]


def test_the_eigen_crop_is_rows_45_to_471_and_columns_41_to_601() -> None:
    inside = measured_pixels(torch.ones(480, 640), 1e-3, 10, "eigen").nonzero()
    assert inside.min(dim=0).values.tolist() == [45, 41] and inside.max(dim=0).values.tolist() == [470, 600]
    assert len(inside) == (471 - 45) * (601 - 41)
    half = measured_pixels(torch.ones(240, 320), 1e-3, 10, "eigen").nonzero()
    assert half.min(dim=0).values.tolist() == [22, 20] and half.max(dim=0).values.tolist() == [235, 299]


def test_the_garg_crop_of_a_kitti_map_is_rows_153_to_371_and_columns_44_to_1197() -> None:
    inside = measured_pixels(torch.ones(375, 1242), 1e-3, 80, "garg").nonzero()
    assert inside.min(dim=0).values.tolist() == [153, 44] and inside.max(dim=0).values.tolist() == [370, 1196]


class Batches:
    """Images with depth maps, as a loader gives them."""

    failed: tuple[str, ...] = ()

    def __init__(self, *batches: tuple[Tensor, list[Tensor]]) -> None:
        self.parts = batches

    def batches(self, strict: bool) -> Any:
        for images, targets in self.parts:
            yield type("Batch", (), {"images": images, "targets": targets})


class Brightness(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1]


def test_each_image_counts_the_same_however_many_of_its_pixels_do() -> None:
    images = torch.stack([torch.full((3, 2, 2), 2.0), torch.full((3, 2, 2), 3.0)])
    full, sparse = torch.ones(2, 2), torch.zeros(2, 2)
    sparse[0, 0] = 3.0
    report = measure_models({"a": Brightness()}, Batches((images, [full, sparse])), DepthMeasure(1e-3, 10))
    assert report.samples == 2
    assert report.models["a"].abs_rel == pytest.approx((1 + 0) / 2)  # of all five pixels it would be 0.8
    assert report.models["a"].d1 == pytest.approx(0.5)


def test_a_prediction_is_brought_to_the_size_of_the_map_and_clamped_to_its_range() -> None:
    images = torch.full((1, 3, 2, 2), 50.0)
    depth = torch.full((4, 6), 10.0)
    report = measure_models({"a": Brightness()}, Batches((images, [depth])), DepthMeasure(1e-3, 10))
    assert report.models["a"].rmse == 0.0


def test_flip_averaging_averages_with_the_mirrored_images_own_map() -> None:
    class Ramp(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.arange(1.0, 5.0).expand(len(images), 1, 2, 4)

    images, depth = torch.zeros(1, 3, 2, 4), torch.full((2, 4), 2.5)
    assert torch.equal(flip_averaged(Ramp())(images), torch.full((1, 1, 2, 4), 2.5))
    report = measure_models({"a": Ramp()}, Batches((images, [depth])), DepthMeasure(1e-3, 10, flip=True))
    assert report.models["a"].rmse == 0.0
