"""Peers stand at the same true MACs as the model, and what cannot be had is told."""

import itertools
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import nn
from torch.nn import functional as F

from tests.sentences import fragments
from tosa_cli.data.datasets import open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.model.flops import count_flops
from tosa_cli.peers.compare import PEERS, Peer, build_peers, compare_peers, measure_quality
from tosa_cli.peers.copying import CopiedViT
from tosa_cli.peers.merged_flops import count_merged_macs, solve_num_merged
from tosa_cli.peers.merging import MergedViT, MergeMode
from tosa_cli.peers.pruned_flops import count_pruned_macs, solve_pruned_keep_rate
from tosa_cli.peers.pruning import PrunedViT, paper_layers
from tosa_cli.peers.smaller import SmallerInput, solve_img_size

from ..model.counting import run_and_count
from ..model.tiny_models import MODELS, make_images, make_vit
from ..train.tiny_runs import tiny_tosa, write_photos
from .test_pruning import KINDS

MODES: tuple[MergeMode, ...] = ("merge", "merge-unmerge")


def photos_for(model: Any, folder: Any) -> Any:
    return images_to_read(open_dataset(str(write_photos(folder, count=7))), model, batch_size=3)


# ---------------------------------------------------------------- MACs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", [(0,), (5,), (0, 3), (50, 0)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_macs_of_merging_are_those_of_the_running_model(
    name: str, pattern: tuple[int, ...], mode: MergeMode
) -> None:
    dense = make_vit(name)
    schedule = [0] * len(dense.blocks)
    schedule[: len(pattern)] = pattern
    assert run_and_count(MergedViT(dense, mode, schedule)) == count_merged_macs(dense, mode, schedule)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_vit", {"img_size": (64, 96)}),
        ("test_vit", {"num_classes": 0}),
        ("test_vit", {"qkv_bias": False, "qk_norm": True}),
        ("test_vit2", {"class_token": False}),
    ],
)
def test_other_shapes_are_counted_too(name: str, args: dict[str, Any], mode: MergeMode) -> None:
    dense = make_vit(name, **args)
    schedule = [2] * len(dense.blocks)
    assert run_and_count(MergedViT(dense, mode, schedule)) == count_merged_macs(dense, mode, schedule)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [0.02, 0.1, 0.25, 0.35])
@pytest.mark.parametrize("name", MODELS)
def test_the_schedule_saves_what_is_asked_for_and_hardly_more(name: str, target: float, mode: MergeMode) -> None:
    dense = make_vit(name)
    dense_macs = round(count_flops(dense).dense_gmacs * 1e9)
    schedule = solve_num_merged(dense, mode, target)
    reduction = 1 - count_merged_macs(dense, mode, schedule) / dense_macs
    assert target <= reduction < target + 0.02
    assert max(schedule) - min(schedule) <= 1 or mode == "merge"


@pytest.mark.parametrize("target", [0.2, 0.35])
def test_the_decreasing_schedule_falls_to_none_and_saves_what_is_asked_for(target: float) -> None:
    dense = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    schedule = solve_num_merged(dense, "merge", target, decreasing=True)
    reduction = 1 - count_merged_macs(dense, "merge", schedule) / (count_flops(dense).dense_gmacs * 1e9)
    assert target <= reduction < target + 0.01
    falls = [before - after for before, after in itertools.pairwise(schedule)]
    assert min(falls) >= -1 and schedule[0] > 1.5 * sum(schedule) / len(schedule) and schedule[-1] <= schedule[0] / 8


@pytest.mark.parametrize("mode", MODES)
def test_a_budget_out_of_reach_is_told_with_what_can_be_reached(mode: MergeMode) -> None:
    with pytest.raises(ConfigError, match=rf"90\.0% .*{mode} .*\d\d\.\d%"):
        solve_num_merged(make_vit(), mode, 0.9)


@pytest.mark.parametrize("layers", [(2, 4, 5), (1,), (3, 6)], ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.995, 0.99, 0.7, 0.3, 0.001])
@pytest.mark.parametrize(("name", "args"), KINDS, ids=str)
def test_the_macs_of_pruning_are_those_of_the_running_model(
    name: str, args: dict[str, Any], rate: float, layers: tuple[int, ...]
) -> None:
    dense = make_vit(name, **args)
    layers = tuple(layer for layer in layers if layer <= len(dense.blocks))
    assert run_and_count(PrunedViT(dense, rate, layers)) == count_pruned_macs(dense, rate, layers)


@pytest.mark.parametrize("target", [0.02, 0.1, 0.25, 0.35])
def test_the_keep_rate_saves_what_is_asked_for_and_hardly_more(target: float) -> None:
    dense = make_vit()
    dense_macs = round(count_flops(dense).dense_gmacs * 1e9)
    rate = solve_pruned_keep_rate(dense, (2, 4, 5), target)
    reduction, next_reduction = (
        1 - count_pruned_macs(dense, keep_rate, (2, 4, 5)) / dense_macs for keep_rate in (rate, rate + 0.001)
    )
    assert next_reduction < target <= reduction < target + 0.02


def test_the_papers_pruning_of_deit_small_costs_what_the_paper_says() -> None:
    with torch.device("meta"):
        dense = timm.create_model("deit_small_patch16_224")
    # Published for keep rates 0.9 to 0.5: 4.0, 3.5, 3.0, 2.6 and 2.3 GMACs, and 4.6 for the dense model.
    rates = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    gmacs = [count_pruned_macs(dense, rate, paper_layers(12)) / 1e9 for rate in rates]
    assert [round(number, 1) for number in gmacs] == [4.6, 4.0, 3.5, 3.0, 2.6, 2.3]


def test_a_budget_that_pruning_cannot_reach_is_told_with_what_can_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"90\.0% .*prune .*\d\d\.\d%"):
        solve_pruned_keep_rate(make_vit(), (2, 4), 0.9)
    with pytest.raises(UnsupportedModelError, match=fragments.CLASS_TOKEN):
        solve_pruned_keep_rate(make_vit("test_vit2"), (2, 4), 0.1)
    with pytest.raises(ConfigError, match=r"\b8\b.* 1 to 6\b"):
        count_pruned_macs(make_vit(), 0.7, (8,))


# ---------------------------------------------------------------- the models


@pytest.mark.parametrize("target", [0.1, 0.2])
def test_all_peers_save_as_much_and_run_as_counted(target: float) -> None:
    dense = make_vit("test_vit")
    peers, missing = build_peers(dense, target)
    assert tuple(peers) == PEERS and missing == {}
    for peer in peers.values():
        # An image is smaller by whole patches, which are few here.
        assert target <= peer.reduction < target + (0.2 if isinstance(peer.model, SmallerInput) else 0.03)
        runs = peer.model.model if isinstance(peer.model, SmallerInput) else peer.model
        assert run_and_count(runs) == round(peer.gmacs * 1e9)
    assert peers["previous"].settings["layers"] == [2, 4, 6]
    assert len(peers["merge"].settings["num_merged"]) == len(dense.blocks)
    assert peers["prune"].settings["layers"] == [2, 4, 5]
    assert peers["copy"].settings["layer"] == 2


def test_a_peer_that_cannot_be_had_is_told_and_the_others_stay() -> None:
    peers, missing = build_peers(make_vit("test_vit"), 0.55)
    assert "previous" in missing and "random" in missing
    assert " 2,4,6 " in missing["previous"]
    peers, missing = build_peers(make_vit("test_vit", block_fn=ResPostBlock), 0.1)
    assert set(peers) == {"smaller", "previous", "random"} and "timm's Block" in missing["merge"]
    peers, missing = build_peers(make_vit("test_vit2"), 0.1)
    assert set(missing) == {"prune"} and "no class token" in missing["prune"]
    with pytest.raises(UnsupportedModelError):
        count_merged_macs(make_vit("test_vit", block_fn=ResPostBlock), "merge", [0])


@pytest.mark.parametrize("reduction", [0.0, -0.1, 1.0])
def test_a_model_that_saves_nothing_has_no_peers(reduction: float) -> None:
    with pytest.raises(ConfigError, match="--keep-rate"):
        build_peers(make_vit(), reduction)


def test_the_dense_model_comes_first_and_speed_is_told_against_it() -> None:
    dense = tiny_tosa().backbone
    images = make_images(2, 32)
    models = {"dense": Peer(dense, 2.0, 0.0), "same": Peer(dense, 1.0, 0.5, {"a": 1})}
    report = compare_peers(models, images, missing={"x": "no"}, quality={}, rounds=2, seconds=0.0)
    values = report.to_dict()
    assert values["missing"] == {"x": "no"} and values["batch_size"] == 2 and values["rounds"] == 2
    assert list(values["models"]) == ["dense", "same"]
    assert values["models"]["dense"]["speedup"] == 1 and values["models"]["same"]["ideal_speedup"] == 2
    assert values["models"]["same"]["settings"] == {"a": 1}


def test_a_smaller_input_gives_every_token_in_its_place() -> None:
    dense: Any = make_vit("test_vit2", img_size=(96, 128))
    size, gmacs = solve_img_size(dense, 0.2)
    assert size == (80, 112) and gmacs == count_flops(make_vit("test_vit2", img_size=size)).dense_gmacs
    model, images = SmallerInput(dense, size), make_images(2, (96, 128))
    with torch.no_grad():
        tokens = model.forward_features(images)
        same = SmallerInput(dense, (96, 128)).forward_features(images)
        expected = dense.forward_features(images)
    assert tokens.shape == expected.shape and torch.allclose(same, expected, atol=1e-4)
    assert dense.patch_embed.img_size == (96, 128)
    with pytest.raises(ConfigError, match=fragments.NO_SMALLER_IMAGE_SAVES_99):
        solve_img_size(dense, 0.999)


# ---------------------------------------------------------------- quality


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quality_is_the_cosine_to_the_dense_models_tokens(tmp_path: Any, dtype: torch.dtype) -> None:
    model = tiny_tosa()
    dense = model.backbone.to(dtype)
    depth = len(dense.blocks)
    models: dict[str, nn.Module] = {
        "same": dense,
        "merge": MergedViT(dense, "merge", [1] * depth),
        "merge-unmerge": MergedViT(dense, "merge-unmerge", [3] * depth),
        "prune": PrunedViT(dense, 0.7, (2, 4)),
        "copy": CopiedViT(dense, 0.7, 2),
        "smaller": SmallerInput(dense, (24, 24)),
        "tosa": model.to(dtype),
    }
    photos = photos_for(model, tmp_path)
    quality, samples = measure_quality(dense, models, photos, device=torch.device("cpu"), dtype=dtype)
    assert samples == 7 and list(quality) == list(models)
    assert quality["same"].patch_cosine == pytest.approx(1, abs=1e-3)
    assert quality["same"].class_cosine == pytest.approx(1, abs=1e-3)
    for name in ("merge", "merge-unmerge", "prune", "copy", "smaller", "tosa"):
        found = quality[name]
        assert found.class_cosine is not None and 0 < found.patch_cosine < 1 and 0 < found.class_cosine < 1, name
        assert found.patch_worst_tenth <= found.patch_median and found.class_worst_tenth <= found.class_median  # type: ignore[operator]


def test_quality_by_hand(tmp_path: Any) -> None:
    model = tiny_tosa()
    dense = model.backbone
    merged = MergedViT(dense, "merge-unmerge", [4] * len(dense.blocks))
    quality, _ = measure_quality(
        dense, {"merged": merged}, photos_for(model, tmp_path), device=torch.device("cpu"), dtype=torch.float32
    )
    images = torch.cat([batch.images for batch in photos_for(model, tmp_path / "again").batches(True)])
    with torch.no_grad():
        cosine = F.cosine_similarity(merged.forward_features(images), dense.forward_features(images), dim=-1)
    assert quality["merged"].class_cosine == pytest.approx(cosine[:, 0].mean().item(), rel=1e-4)
    assert quality["merged"].patch_cosine == pytest.approx(cosine[:, 1:].mean().item(), rel=1e-4)


def test_without_a_class_token_none_is_compared(tmp_path: Any) -> None:
    dense: Any = make_vit("test_vit2", img_size=32, patch_size=8, class_token=False, reg_tokens=0)
    quality, _ = measure_quality(
        dense, {"same": dense}, photos_for(dense, tmp_path), device=torch.device("cpu"), dtype=torch.float32
    )
    assert quality["same"].class_cosine is None and quality["same"].patch_cosine == pytest.approx(1)
