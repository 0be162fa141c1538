"""`inspect` of a whole model: whether its encoder can be converted, and what that would save of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tosa_cli.config import CALIBRATED
from tosa_cli.errors import InputError
from tosa_cli.hub.whole import is_converted, load_whole
from tosa_cli.model.families import num_heads
from tosa_cli.model.runs.calls import example_call
from tosa_cli.model.runs.find import check_runs
from tosa_cli.model.runs.flops import WholeFlops, count_whole
from tosa_cli.model.runs.insert import insert_run, measure_patches
from tosa_cli.workflow.inspect import TARGETS


@dataclass(frozen=True)
class WholeInspectReport:
    """What can be converted of a whole model, and what that would save.

    Attributes:
        flops: Its MACs, with every token computed.
        facts: What it is, as JSON values.
        eligible: Layers of the encoder, numbered from 1, that can be ToSA layers.
        savings: Share of the MACs of the whole that is saved, by the share of the encoder's layers.
    """

    flops: WholeFlops
    facts: Mapping[str, Any]
    eligible: tuple[int, ...]
    savings: Mapping[float, float]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        savings = [{"target_reduction": target, "reduction": saved} for target, saved in self.savings.items()]
        return {**self.facts, "eligible": list(self.eligible), "savings": savings}


@torch.no_grad()
def inspect_whole(source: str) -> WholeInspectReport:
    """Tell what can be converted of a model of transformers; its weights are not read.

    Args:
        source: A folder, or the id of a Hub repository.

    Raises:
        TosaError: If it cannot be found, read or converted, or is converted already; the subclass and the message say
            which.
    """
    model = load_whole(source, pretrained=False).model
    if is_converted(model):
        raise InputError(
            f"{source} is a whole model that is converted already: `tosa flops {source}` tells what it saves."
        )
    found = check_runs(model)[0]
    eligible, block = found.eligible_layers, found.blocks[found.eligible_layers[0] - 1]
    config = CALIBRATED.at(eligible, 1.0)
    run = insert_run(found, config, measure_patches(found, example_call(model, found)))
    flops = count_whole(model, name=source)
    encoder = flops.encoder_dense_gmacs / flops.dense_gmacs
    facts = {
        "model": source,
        "convertible": True,
        "kind": type(model).__name__,
        "encoder": found.path,
        "block": type(block).__name__,
        "depth": len(found.blocks),
        "embed_dim": run.embed_dim,
        "num_heads": num_heads(block),
        "num_prefix_tokens": run.num_prefix_tokens,
        "tokens": run.patch_embed.num_patches + run.num_prefix_tokens,
        "img_size": list(run.patch_embed.img_size),
        "counted": flops.counted,
        "dense_gmacs": flops.dense_gmacs,
        "encoder_gmacs": flops.encoder_dense_gmacs,
        "params": flops.params - sum(parameter.numel() for parameter in run.parameters()),
    }
    return WholeInspectReport(flops, facts, eligible, {target: target * encoder for target in TARGETS})
