"""A model with its own data, in Python: converted, calibrated, its rates chosen, and compared with the dense one."""

import copy
from typing import Any

import pytest
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import tosa_cli
from tests.model.whole_models import batch_for, clip, depth_anything, vitpose, yolos
from tests.sentences import fragments
from tosa_cli import TosaConfig
from tosa_cli.errors import ConfigError, DataError, UnsupportedModelError
from tosa_cli.measure.outputs import compare_depth
from tosa_cli.model.runs import converted_runs

NEAREST = TosaConfig(layers=(2, 3, 4), keep_rate=0.6, selector="similarity", bypass="nearest+affine", neighbors=1)
GROUPED = TosaConfig(layers=(2, 3, 4), keep_rate=(0.8, 0.7, 0.5), selector="ward", bypass="mean")


class OwnViT(nn.Module):
    """Somebody's own model: timm's blocks in a loop of its own, and a map for a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = PatchEmbed(64, 16, 3, 64)
        self.blocks = nn.ModuleList([Block(64, 4) for _ in range(4)])
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.transpose(1, 2).unflatten(2, (4, 4)))


def random_model(make: Any) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_calibration_brings_the_outputs_nearer_to_the_dense_model() -> None:
    dense = random_model(vitpose)
    torch.manual_seed(1)
    batches = [{"pixel_values": torch.randn(2, 3, 64, 48)} for _ in range(4)]
    model = tosa_cli.convert(copy.deepcopy(dense), NEAREST)
    before = tosa_cli.compare(dense, model, batches)
    (report,) = tosa_cli.calibrate(model, iter(batches))
    after = tosa_cli.compare(None, model, batches)
    assert report.images == 8
    assert list(report.errors) == [2, 3, 4]
    assert after.samples == 8
    assert after.outputs["heatmaps"]["distance"] <= before.outputs["heatmaps"]["distance"]
    images = batches[0]["pixel_values"]
    assert (model(images).heatmaps - dense(images).heatmaps).norm() > 0


def test_images_of_several_sizes_are_calibrated_on() -> None:
    model = tosa_cli.convert(random_model(depth_anything), NEAREST)
    tosa_cli.calibrate(model, [torch.randn(1, 3, 56, 70), (torch.randn(2, 3, 84, 56),)])
    assert torch.isfinite(model(torch.randn(1, 3, 70, 56)).predicted_depth).all()


@pytest.mark.parametrize(
    ("make", "output", "figure"),
    [(clip, "image_embeds", "cosine"), (yolos, "pred_boxes", "matched_iou"), (vitpose, "heatmaps", "keypoints_near")],
)
def test_a_model_agrees_with_itself(make: Any, output: str, figure: str) -> None:
    model = random_model(make)
    report = tosa_cli.compare(model, model, [batch_for(model)])
    assert report.outputs[output][figure] == pytest.approx(1)


def test_chosen_rates_save_the_share_asked_for() -> None:
    model = random_model(depth_anything)
    names = list(model.state_dict())
    config = tosa_cli.choose_rates(model, [torch.randn(2, 3, 56, 56)], 0.2)
    assert list(model.state_dict()) == names
    assert not converted_runs(model)
    from tosa_cli.model.runs.flops import count_whole

    assert count_whole(tosa_cli.convert(model, config)).encoder_reduction >= 0.2


def test_a_cosine_holds_on_batches_held_out() -> None:
    model = random_model(yolos)
    batches = [{"pixel_values": torch.randn(2, 3, 56, 70)} for _ in range(3)]
    rates = {target: tosa_cli.choose_rates(model, batches, min_cosine=target).keep_rates for target in (0.9, 0.99)}
    assert sum(rates[0.99].values()) > sum(rates[0.9].values())
    with pytest.raises(DataError, match=fragments.HELD_OUT):
        tosa_cli.choose_rates(model, batches[:1], min_cosine=0.9)
    with pytest.raises(ConfigError, match=fragments.PASS_ONE):
        tosa_cli.choose_rates(model, batches)


def test_a_drop_holds_on_batches_held_out() -> None:
    model = random_model(yolos)
    batches = [{"pixel_values": torch.randn(2, 3, 56, 70)} for _ in range(3)]
    configs = {points: tosa_cli.choose_rates(model, batches, max_drop=points) for points in (2.0, 20.0)}
    bypassed = {points: sum(1 - rate for rate in config.keep_rates.values()) for points, config in configs.items()}
    assert 0 < bypassed[2.0] < bypassed[20.0]
    tosa_cli.convert(model, configs[20.0])
    assert 0.8 <= tosa_cli.compare(None, model, batches[1:]).outputs["pred_boxes"]["matched_iou"] < 1


def test_somebodys_own_model_with_known_blocks_is_converted() -> None:
    model = OwnViT().eval()
    image = torch.randn(2, 3, 64, 64)
    expected = model(image)
    assert tosa_cli.convert(model, GROUPED, example=image) is model
    assert model(image).shape == expected.shape
    assert not torch.equal(model(image), expected)
    assert tosa_cli.compare(None, model, [image]).outputs["output"]["cosine"] > 0


def test_what_is_missing_is_told() -> None:
    with pytest.raises(UnsupportedModelError, match=fragments.LIST_OF_BLOCKS):
        tosa_cli.convert(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten()), GROUPED)
    with pytest.raises(ConfigError, match=fragments.NOT_CONVERTED):
        tosa_cli.calibrate(depth_anything(), [])
    model = tosa_cli.convert(depth_anything(), NEAREST)
    with pytest.raises(DataError, match=fragments.NO_BATCH):
        tosa_cli.calibrate(model, [])
    with pytest.raises(ConfigError, match=fragments.CONVERTED_ALREADY):
        tosa_cli.convert(model, NEAREST)


class AsDepth(nn.Module):
    """A model that takes pixels for depths."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"predicted_depth": pixel_values[:, 0] * self.scale}


@pytest.mark.parametrize("level", [0.0, 3.3, -1.0])
def test_depth_that_is_the_same_everywhere_says_nothing_and_is_told(level: float) -> None:
    images = torch.rand(3, 1, 8, 8) + 1
    told = tosa_cli.compare(AsDepth(), AsDepth(), [images])
    images[1] = level
    with_level = tosa_cli.compare(AsDepth(), AsDepth(), [images, images[1:2]])
    assert told.outputs["predicted_depth"]["delta1"] == with_level.outputs["predicted_depth"]["delta1"] == 1
    assert with_level.samples == 4 and with_level.left_out == {"predicted_depth": 2}
    assert fragments.OF_PREDICTED_DEPTH_2_OF in with_level.notes[0]
    nothing = tosa_cli.compare(AsDepth(), AsDepth(), [images[1:2]])
    assert nothing.outputs == {} and nothing.left_out == {"predicted_depth": 1}


def test_depth_that_is_not_finite_is_refused() -> None:
    images = torch.rand(1, 1, 8, 8)
    images[0, 0, 0, 0] = torch.inf
    with pytest.raises(DataError, match=fragments.PREDICTED_DEPTH_NO_FINITE):
        tosa_cli.compare(AsDepth(), AsDepth(), [images])


def test_depth_is_compared_by_form_and_not_by_scale_and_shift() -> None:
    depth = torch.linspace(0, 4, 64).reshape(1, 8, 8)
    figures = compare_depth(depth, 3 * depth + 2)
    assert figures["abs_rel"].item() == pytest.approx(0, abs=1e-6)
    assert figures["delta1"].item() == pytest.approx(1)
    assert figures["correlation"].item() == pytest.approx(1)
    assert tosa_cli.compare(AsDepth(), AsDepth(), [depth[None]]).notes == []
    noisy = depth + torch.where(torch.arange(64).reshape(1, 8, 8) % 2 == 0, 0.5, -0.5)
    assert 0 < compare_depth(depth, noisy)["abs_rel"].item() < 1
