"""What is said where tokens cannot be merged or pruned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock

from tests.model.tiny_models import make_images, make_vit
from tests.peers.test_training import tiny_peer
from tests.train.tiny_runs import run_features, write_digits
from tosa_cli.peers.compare import build_peers
from tosa_cli.peers.copied_flops import solve_copied_keep_rate
from tosa_cli.peers.copying import CopiedViT
from tosa_cli.peers.merged_flops import solve_num_merged
from tosa_cli.peers.merging import MergedViT
from tosa_cli.peers.pruned_flops import count_pruned_macs, solve_pruned_keep_rate
from tosa_cli.peers.pruning import PrunedViT

from .rows import Row, check, table


def merged(name: str, **settings: Any) -> MergedViT:
    return MergedViT(timm.create_model(name, **settings), "merge", [0])


def pruned(name: str, **settings: Any) -> PrunedViT:
    return PrunedViT(make_vit(name, **settings), 0.7, (1,))


def run_pruned_without_fused_attention() -> None:
    model: Any = make_vit()
    model.blocks[1].attn.fused_attn = False
    with torch.no_grad():
        PrunedViT(model, 0.7, (2,))(make_images())


def features_of_a_peer() -> None:
    model: Any = tiny_peer("prune")
    run_features(model, write_digits(Path("digits"), 60), Path("run"))


PEERS: list[Row] = [
    (
        "a reduction that merging cannot reach",
        lambda: solve_num_merged(make_vit(), "merge", 0.9),
        "The reduction 90.0% cannot be reached: merge saves at most 65.9% of this model's MACs.",
    ),
    (
        "a reduction that merging and unmerging cannot reach",
        lambda: solve_num_merged(make_vit(), "merge-unmerge", 0.9),
        "The reduction 90.0% cannot be reached: merge-unmerge saves at most 43.6% of this model's MACs.",
    ),
    (
        "a reduction that pruning cannot reach",
        lambda: solve_pruned_keep_rate(make_vit(), (2, 4), 0.9),
        "The reduction 90.0% cannot be reached: prune saves at most 62.9% of this model's MACs in layers 2,4.",
    ),
    (
        "pruning without a class token, solved",
        lambda: solve_pruned_keep_rate(make_vit("test_vit2"), (2, 4), 0.1),
        "The model has no class token, by whose attention tokens are pruned: use token merging, which needs none.",
    ),
    (
        "a layer to prune that is not there, counted",
        lambda: count_pruned_macs(make_vit(), 0.7, (8,)),
        "The layers to prune in are 8, but must be different ones of 1 to 6.",
    ),
    (
        "peers at no reduction",
        lambda: build_peers(make_vit(), 0.0),
        "Peers are compared at the model's reduction of MACs, but that is 0.0%: convert with a smaller --keep-rate.",
    ),
    (
        "merging in blocks that norm after attention",
        lambda: merged("test_vit", block_fn=ResPostBlock),
        "Layer 1 is a ResPostBlock, which tokens cannot be merged in: token merging knows timm's Block with "
        "Attention only.",
    ),
    (
        "merging in parallel blocks",
        lambda: merged("test_vit", block_fn=ParallelScalingBlock),
        "Layer 1 is a ParallelScalingBlock, which tokens cannot be merged in: token merging knows timm's "
        "Block with Attention only.",
    ),
    (
        "merging with relative positions",
        lambda: merged("test_vit_relpos"),
        "Layer 1 is a RelPosBlock, which tokens cannot be merged in: token merging knows timm's Block with "
        "Attention only.",
    ),
    (
        "merging in a ResNet",
        lambda: merged("test_resnet"),
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "a schedule of one layer",
        lambda: MergedViT(make_vit(), "merge", [1]),
        "1 numbers of merged tokens were given for 6 layers: give one a layer.",
    ),
    (
        "a schedule of too many tokens",
        lambda: MergedViT(make_vit(), "merge", [0, 500, 0, 0, 0, 0]),
        "Layer 2 cannot merge 500 of its 101 tokens, but 0 to 50.",
    ),
    (
        "pruning without a class token",
        lambda: PrunedViT(make_vit("test_vit2"), 0.7, (2,)),
        "The model has no class token, by whose attention tokens are pruned: use token merging, which needs none.",
    ),
    (
        "pruning in blocks that norm after attention",
        lambda: pruned("test_vit", block_fn=ResPostBlock),
        "Layer 1 is a ResPostBlock, which tokens cannot be pruned in: pruning by the class token's attention "
        "knows timm's Block with Attention only.",
    ),
    (
        "pruning with relative positions",
        lambda: pruned("test_vit_relpos"),
        "Layer 1 is a RelPosBlock, which tokens cannot be pruned in: pruning by the class token's attention "
        "knows timm's Block with Attention only.",
    ),
    (
        "pruning in a ResNet",
        lambda: pruned("test_resnet"),
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "pruning at 0.0",
        lambda: PrunedViT(make_vit(), 0.0, (2,)),
        "The keep rate is 0.0, but must be above 0 and at most 1, as 0.7.",
    ),
    (
        "pruning at -0.5",
        lambda: PrunedViT(make_vit(), -0.5, (2,)),
        "The keep rate is -0.5, but must be above 0 and at most 1, as 0.7.",
    ),
    (
        "pruning at 1.5",
        lambda: PrunedViT(make_vit(), 1.5, (2,)),
        "The keep rate is 1.5, but must be above 0 and at most 1, as 0.7.",
    ),
    (
        "pruning at float('nan')",
        lambda: PrunedViT(make_vit(), float("nan"), (2,)),
        "The keep rate is nan, but must be above 0 and at most 1, as 0.7.",
    ),
    (
        "pruning in layers ()",
        lambda: PrunedViT(make_vit(), 0.7, ()),
        "The layers to prune in are none, but must be different ones of 1 to 6.",
    ),
    (
        "pruning in layers (0,)",
        lambda: PrunedViT(make_vit(), 0.7, (0,)),
        "The layers to prune in are 0, but must be different ones of 1 to 6.",
    ),
    (
        "pruning in layers (7,)",
        lambda: PrunedViT(make_vit(), 0.7, (7,)),
        "The layers to prune in are 7, but must be different ones of 1 to 6.",
    ),
    (
        "pruning in layers (2, 2)",
        lambda: PrunedViT(make_vit(), 0.7, (2, 2)),
        "The layers to prune in are 2,2, but must be different ones of 1 to 6.",
    ),
    (
        "pruning by attention that is not fused",
        run_pruned_without_fused_attention,
        "The model runs without PyTorch's fused attention, so its queries and keys cannot be read: unset "
        "TIMM_FUSED_ATTN.",
    ),
    (
        "a reduction that copying cannot reach",
        lambda: solve_copied_keep_rate(make_vit(), 2, 0.9),
        "The reduction 90.0% cannot be reached: copy saves at most 33.6% of this model's MACs behind layer 2.",
    ),
    (
        "copying with a keep rate of 0",
        lambda: CopiedViT(make_vit(), 0.0, 2),
        "The keep rate is 0.0, but must be above 0 and at most 1, as 0.7.",
    ),
    (
        "copying behind the last layer",
        lambda: CopiedViT(make_vit(), 0.7, 6),
        "Tokens cannot be taken out behind layer 6 of 6, but behind 1 to 5.",
    ),
    (
        "copying in blocks that are not known",
        lambda: CopiedViT(make_vit("test_vit", block_fn=ResPostBlock), 0.7, 2),
        "Layer 1 is a ResPostBlock, which tokens cannot be taken out in: copying of neighbours knows timm's Block with "
        "Attention only.",
    ),
    (
        "features of a peer",
        features_of_a_peer,
        "The objective features is for converted models, not for a PrunedViT: use labels.",
    ),
]
"""What the peers refuse."""


@table(PEERS)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
