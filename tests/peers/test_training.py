"""Peers are finetuned by the same loop as converted models."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.model.tiny_models import make_vit
from tests.sentences import fragments
from tests.train.tiny_runs import StopAt, run_features, run_finetune, same, weights, write_digits
from tosa_cli.errors import ConfigError, TrainingError
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.peers.copying import CopiedViT
from tosa_cli.peers.merging import MergedViT
from tosa_cli.peers.pruning import PrunedViT
from tosa_cli.tasks.classification import FinetuneObjective
from tosa_cli.train.checkpoint import fingerprint
from tosa_cli.train.finetune import set_drop_path

PEERS: dict[str, Callable[[Any], FinetunableViT]] = {
    "prune": lambda dense: PrunedViT(dense, 0.7, (2, 4)),
    "copy": lambda dense: CopiedViT(dense, 0.7, 2),
    "merge": lambda dense: MergedViT(dense, "merge", [2] * 6),
    "merge-unmerge": lambda dense: MergedViT(dense, "merge-unmerge", [3] * 6),
}


def tiny_peer(name: str) -> FinetunableViT:
    """A peer of 6 layers, 16 patches and a class token."""
    return PEERS[name](make_vit("test_vit", img_size=32, patch_size=8, num_classes=10))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "digits", 60)


@pytest.mark.parametrize("name", PEERS)
def test_the_loss_of_a_peer_falls_and_all_of_its_backbone_changes(name: str, digits: Path, tmp_path: Path) -> None:
    model: Any = tiny_peer(name)
    before = weights(model, "backbone")
    report = run_finetune(model, digits, tmp_path / "run", epochs=6, batch_size=12, crop_scale=0.9, smoothing=0.0)
    assert report.updates == 30 and report.last_loss < 0.6 * report.first_loss
    assert not any(value.equal(before[name]) for name, value in weights(model, "backbone").items())
    assert not model.training


@pytest.mark.parametrize(
    "settings",
    [
        {"amp": "bf16", "drop_path": 0.3},
        {"mixup": 0.8, "model_ema": True, "layer_decay": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_trained_in_all_ways(name: str, digits: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    plain: Any = tiny_peer(name)
    before = weights(plain, "backbone")
    report = run_finetune(plain, digits, tmp_path / "run", epochs=1, **settings)
    after = weights(plain, "backbone")
    assert not same(before, after) and all(value.isfinite().all() for value in after.values())
    assert report.updates == 7 and torch.isfinite(torch.tensor(report.last_loss))


@pytest.mark.parametrize("name", PEERS)
def test_gradients_reach_the_backbone_under_autocast(name: str) -> None:
    model: Any = tiny_peer(name)
    set_drop_path(model, 0.1)
    objective = FinetuneObjective(model, nn.CrossEntropyLoss()).train()
    images, targets = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)

    def gradients(amp: bool) -> torch.Tensor:
        torch.manual_seed(0)
        objective.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = objective(images, targets)
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.backbone.parameters())
        return torch.cat([parameter.grad.flatten() for parameter in model.backbone.parameters()])

    assert torch.cosine_similarity(gradients(True), gradients(False), dim=0) > 0.9


@pytest.mark.parametrize("name", PEERS)
def test_checkpointed_gradients_are_the_same(name: str, digits: Path, tmp_path: Path) -> None:
    plain: Any = tiny_peer(name)
    checkpointed: Any = copy.deepcopy(plain)
    run_finetune(plain, digits, tmp_path / "run", epochs=1)
    run_finetune(checkpointed, digits, tmp_path / "run", epochs=1, grad_checkpointing=True)
    for key, value in weights(plain, "backbone").items():
        torch.testing.assert_close(value, checkpointed.backbone.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_the_weights_of_fusing_have_a_gradient_and_the_choice_has_none() -> None:
    model: Any = PrunedViT(make_vit("test_vit", img_size=32, patch_size=8, num_classes=10), 0.5, (6,))
    attention = model.blocks[5].attn
    # Without the attention's own output, queries matter in the last layer for what is kept and fused alone.
    nn.init.zeros_(attention.proj.weight)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens, _ = model.run_layers(model.embed(images)[0])
    weights_of = partial(torch.autograd.grad, inputs=attention.qkv.weight, retain_graph=True)
    queries = slice(0, attention.attn_dim)
    assert weights_of(tokens[:, -1].square().sum())[0][queries].abs().max() > 1e-4
    assert weights_of(tokens[:, :-1].square().sum())[0][queries].abs().max() == 0


def test_a_peer_goes_on_where_it_stopped(digits: Path, tmp_path: Path) -> None:
    whole: Any = tiny_peer("prune")
    run_finetune(whole, digits, tmp_path / "whole")
    halted: Any = tiny_peer("prune")
    with pytest.raises(TrainingError, match="--resume"):
        run_finetune(halted, digits, tmp_path / "run", progress=StopAt(9))
    resumed: Any = tiny_peer("prune")
    run_finetune(resumed, digits, tmp_path / "run", resume=True)
    assert same(weights(whole, "backbone"), weights(resumed, "backbone"))


def test_peers_around_the_same_weights_are_told_apart() -> None:
    dense: Any = make_vit("test_vit", img_size=32, patch_size=8)
    peers = [*(make(dense) for make in PEERS.values()), PrunedViT(dense, 0.6, (2, 4)), PrunedViT(dense, 0.7, (2, 5))]
    assert len({fingerprint(peer) for peer in peers}) == len(peers)


def test_features_are_for_converted_models(digits: Path, tmp_path: Path) -> None:
    model: Any = tiny_peer("prune")
    with pytest.raises(ConfigError, match=fragments.FEATURES_PRUNEDVIT):
        run_features(model, digits, tmp_path / "run")
