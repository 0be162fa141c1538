"""Mean intersection over union, by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.measure.test_depth import Batches
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.tasks.segmentation import SegmentationMeasure, figures_of


def test_intersection_over_union_is_that_counted_by_hand() -> None:
    # Of class 0: 3 right, 1 taken for class 1; of class 1: 2 right, 2 taken for class 0.
    found = figures_of(np.array([[3, 1], [2, 2]]))
    assert found.miou == pytest.approx((3 / 6 + 2 / 5) / 2) and found.pixel_accuracy == pytest.approx(5 / 8)


def test_a_class_that_occurs_nowhere_is_left_out() -> None:
    assert figures_of(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]])).miou == 1.0


def test_only_classes_that_the_masks_have_are_measured() -> None:
    # Class 2 is in no mask, and one pixel of class 1 is taken for it.
    found = figures_of(np.array([[4, 0, 0], [0, 3, 1], [0, 0, 0]]))
    assert found.miou == pytest.approx((1 + 3 / 4) / 2) and found.pixel_accuracy == pytest.approx(7 / 8)


def test_masks_without_a_pixel_of_a_class_give_no_figure() -> None:
    found = figures_of(np.zeros((2, 2), dtype=np.int64))
    assert np.isnan(found.miou) and np.isnan(found.pixel_accuracy)


def test_pixels_of_no_class_do_not_count_and_maps_are_brought_to_the_size_of_the_mask() -> None:
    class Channels(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 1] = logits[0, 0, 0, 0] = 1.0  # left half class 0, right half class 1
    labels = torch.tensor([[0, 0, 1, 255], [1, 0, 1, 255]])
    measure = SegmentationMeasure(2)
    report = measure_models({"a": Channels()}, Batches((logits, [labels])), measure)
    assert report.samples == 1 and report.models["a"].pixel_accuracy == pytest.approx(5 / 6)
    assert report.models["a"].miou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert measure.pixels == [3, 3, 2]
