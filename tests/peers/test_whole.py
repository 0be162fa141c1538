"""Peers of a whole model: made of the same weights, at the same MACs, and compared by outputs and tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tosa_cli
from tests.model.whole_models import CONVERTED, depth_anything, eomt, vitpose, yolos
from tosa_cli import TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.calls import Call, tensors_of
from tosa_cli.model.runs.find import find_runs
from tosa_cli.model.runs.flops import count_whole, counted_call
from tosa_cli.model.runs.insert import dense_copy
from tosa_cli.peers.merged_run import Merged, _averaged, merge_in
from tosa_cli.peers.merging import MergeMode
from tosa_cli.peers.whole import TAKES_APART, WHOLE_PEERS, build_whole_peers, measure_whole_quality

MODELS: dict[str, Any] = {
    name: CONVERTED[name][0] for name in ("depth_anything", "dinov3_vit", "eomt", "siglip", "yolos")
}


def converted(make: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    config = {"layers": (2, 3), "keep_rate": 0.6, "selector": "ward", "bypass": "mean", **settings}
    model = getattr(tosa_cli.convert(model, TosaConfig(**config)), "vision_model", model)
    return model


def images_for(model: Any, count: int = 2) -> Tensor:
    run = converted_runs(model)[0].run
    assert run is not None
    return torch.randn(count, 3, *run.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return tensors_of(model(images))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["merge", "merge-unmerge"])
def test_blocks_that_merge_nothing_are_the_dense_model(name: str, mode: MergeMode) -> None:
    model = converted(MODELS[name])
    run, images, dense = converted_runs(model)[0].run, images_for(model), dense_copy(model)
    assert run is not None
    merging = dense_copy(model)
    found = find_runs(merging)[0]
    merge_in(found, mode, [0] * len(found.eligible_layers), run.patch_embed)
    made = outputs(merging, images)
    for key, value in outputs(dense, images).items():
        torch.testing.assert_close(made[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_peers_save_as_much_and_their_macs_are_those_that_pytorch_counts(name: str) -> None:
    model = converted(MODELS[name])
    names, flops, images = list(model.state_dict()), count_whole(model), images_for(model, 1)
    peers, missing = build_whole_peers(model, flops)
    assert {*peers, *missing} == {*WHOLE_PEERS, *TAKES_APART}
    assert set(missing) == {*TAKES_APART, *(["smaller"] if name == "eomt" else [])}
    for peer in peers.values():
        assert peer.reduction >= flops.reduction - 1e-9
        assert peer.gmacs == pytest.approx(counted_call(Call(peer.model, (images,), {})) / 1e9, rel=1e-6)
        assert peer.reduction == pytest.approx(1 - peer.gmacs / flops.dense_gmacs)
    assert list(model.state_dict()) == names and converted_runs(model)[0].run is not None


def test_outputs_and_tokens_are_held_against_the_dense_model() -> None:
    def make() -> Any:
        model = depth_anything()
        model.head.conv3.bias.data.fill_(1.0)  # as it is made it predicts 0 everywhere
        return model

    model = converted(make)
    images, (peers, _) = images_for(model), build_whole_peers(model, count_whole(model))
    models = {"dense": dense_copy(model), "tosa": model, **{name: peer.model for name, peer in peers.items()}}
    quality = measure_whole_quality(model, models, lambda: [images])
    for name, found in quality.items():
        assert found.samples == 2 and set(found.outputs) == {"predicted_depth", "patch_tokens", "class_token"}
        cosine = found.outputs["patch_tokens"]["cosine"]
        assert cosine == pytest.approx(1) if name == "dense" else cosine < 0.9999
    small = outputs(peers["smaller"].model, images)["predicted_depth"]
    assert small.shape == outputs(model, images)["predicted_depth"].shape


def test_a_model_of_one_image_size_has_no_smaller_input() -> None:
    model = converted(vitpose)
    peers, missing = build_whole_peers(model, count_whole(model))
    assert set(peers) == set(WHOLE_PEERS) - {"smaller"}
    assert "VitPoseForPoseEstimation" in missing["smaller"]


def test_what_a_model_does_between_its_layers_reaches_merged_tokens() -> None:
    """YOLOS adds positions behind each layer: merged tokens get the mean of theirs."""
    tokens = torch.arange(8.0).reshape(1, 4, 2)
    sizes, position = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2, 2]])
    merged = Merged(torch.zeros(1, 3, 2), sizes, position, torch.tensor([[0, 1, 3]]))
    assert _averaged(tokens, merged).tolist() == [[[0, 1], [2, 3], [5, 6]]]


def test_tokens_of_queries_are_not_merged() -> None:
    model = converted(eomt)
    peers, _ = build_whole_peers(model, count_whole(model))
    assert len(peers["merge"].settings["num_merged"]) == 4


def test_a_model_that_saves_nothing_has_no_peers() -> None:
    model = converted(yolos, keep_rate=1.0, selector="random", bypass="identity")
    with pytest.raises(ConfigError, match=r"0\.0%"):
        build_whole_peers(model, count_whole(model))
