"""Other ways to spare tokens in a whole model, beside a converted one: at the same true MACs, in turns.

Token merging before each block, un-merged behind the last by both of its schedules (`merge`, `merge-decreasing`) or
behind every one (`merge-unmerge`), a smaller input whose outputs are resized (`smaller`), A-MoD's routing by the layer
before (`previous`) and chance (`random`). EViT's pruning and IPCV's copying take a block apart, which is not done with
the blocks of a whole model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError, UnsupportedModelError
from tosa_cli.measure.agreement import AgreementReport, compare_outputs
from tosa_cli.methods import SELECTORS
from tosa_cli.model.runs.calls import Call, tensors_of
from tosa_cli.model.runs.find import ImageRun, converted_runs, find_runs
from tosa_cli.model.runs.flops import WholeFlops, count_run, solve_run_rate
from tosa_cli.model.runs.insert import dense_copy, insert_run
from tosa_cli.model.runs.run import Patches, Run
from tosa_cli.peers.compare import Peer
from tosa_cli.peers.merged_run import merge_in, solve_run_merges
from tosa_cli.peers.merging import MergeMode
from tosa_cli.peers.smaller_whole import SmallerWhole, make_smaller

WholePeerName = Literal["merge", "merge-decreasing", "merge-unmerge", "smaller", "previous", "random"]
WHOLE_PEERS: tuple[WholePeerName, ...] = get_args(WholePeerName)

TAKES_APART = {
    "prune": "EViT drops tokens between the attention and the MLP of a block, and those of a whole model are called as "
    "they are.",
    "copy": "IPCV copies what neighbours change by in each half of a block, and those of a whole model are called as "
    "they are.",
}
"""Peers that an encoder has and a whole model has not, with the reason."""


def build_whole_peers(model: nn.Module, flops: WholeFlops) -> tuple[dict[str, Peer], dict[str, str]]:
    """Make all peers that reach the reduction of MACs of a converted whole model.

    Args:
        model: The converted model, or the part of it that takes images, whose weights they share; it is not changed.
        flops: Its MACs.

    Returns:
        The peers by name; and for each that cannot be had the reason.

    Raises:
        ConfigError: If the model saves no MACs.
    """
    if not 0 < flops.encoder_reduction < 1:
        raise ConfigError(
            f"Peers are compared at the model's reduction of MACs, but that is {flops.encoder_reduction:.1%} of its "
            f"layers: convert with a smaller --keep-rate."
        )
    run = converted_runs(model)[0].run
    assert run is not None
    peers: dict[str, Peer] = {}
    missing = dict(TAKES_APART)
    for name in WHOLE_PEERS:
        dense = dense_copy(model)
        try:
            peers[name] = make_whole_peer(dense, name, run.patch_embed, flops)
            _check_works(peers[name].model, converted_runs(model)[0], run.patch_embed)
        except (ConfigError, UnsupportedModelError) as error:
            peers.pop(name, None)
            missing[name] = str(error)
    return peers, missing


def make_whole_peer(dense: nn.Module, name: WholePeerName, patches: Patches, flops: WholeFlops) -> Peer:
    """Make one peer that saves as much as a converted model.

    Args:
        dense: The dense model, or the part of it that takes images; it is changed.
        name: Which peer.
        patches: The tokens of an image.
        flops: MACs of the converted model.

    Raises:
        ConfigError: If the reduction is out of its reach.
        UnsupportedModelError: If it cannot be made of this model.
    """
    if name == "smaller":
        smaller, saved = make_smaller(dense, find_runs(dense)[0], patches, flops.reduction)
        return Peer(smaller, (1 - saved) * flops.dense_gmacs, saved, smaller.settings)
    found = find_runs(dense)[0]
    if name in SELECTORS:
        run, config = _every_other(found, name, patches, flops.encoder_reduction)
        saved, settings = count_run(run, config), config.to_dict()
    else:
        mode: MergeMode = "merge-unmerge" if name == "merge-unmerge" else "merge"
        decreasing = name == "merge-decreasing"
        num_merged, saved = solve_run_merges(found, patches, mode, flops.encoder_reduction, decreasing=decreasing)
        merge_in(found, mode, num_merged, patches)
        settings = {"num_merged": list(num_merged)}
    gmacs = flops.dense_gmacs - saved * flops.encoder_dense_gmacs
    return Peer(dense, gmacs, 1 - gmacs / flops.dense_gmacs, settings)


def _every_other(found: ImageRun, selector: str, patches: Patches, target: float) -> tuple[Run, TosaConfig]:
    """Let every second layer of a run select tokens, as many as save a share of the MACs of the layers."""
    method, layers = Method(selector=selector), found.eligible_layers[1::2]
    run = insert_run(found, method.at(layers, 1.0), patches)
    config = method.at(layers, solve_run_rate(run, method, layers, target))
    run.config, run.keep_rates = config, config.keep_rates
    return run, config


def _check_works(model: nn.Module, found: ImageRun, patches: Patches) -> None:
    """Run a peer on an image once.

    Raises:
        UnsupportedModelError: If it does not run, as where the attention takes no sizes of merged tokens.
    """
    weight = next(model.parameters())
    image = torch.zeros(1, found.patches.in_channels, *patches.img_size, device=weight.device, dtype=weight.dtype)
    Call(model.eval(), (image,), {}).outputs()


class WithTokens(nn.Module):
    """A model whose outputs are joined by the encoder's tokens, layer-normalised without weights.

    Args:
        model: The model, or the part of it that takes images.
        layer: The layer behind which the tokens are taken, of the model.
        patches: The tokens of an image of the model's own size.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, patches: Patches) -> None:
        super().__init__()
        self.model, self.patches = model, patches
        vars(self)["layer"] = layer

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The outputs by name, and `patch_tokens` (B, P, D) and `class_token` (B, D)."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handle = vars(self)["layer"].register_forward_hook(keep)
        try:
            outputs = tensors_of(self.model(pixel_values))
        finally:
            handle.remove()
        tokens = self.model.resized_tokens(seen[-1]) if isinstance(self.model, SmallerWhole) else seen[-1]
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
        first = self.patches.num_prefix_tokens
        outputs["patch_tokens"] = tokens[:, first : first + self.patches.num_patches]
        return {**outputs, "class_token": tokens[:, 0]} if first else outputs


def measure_whole_quality(
    model: nn.Module, models: Mapping[str, nn.Module], batches: Callable[[], Iterable[Any]]
) -> dict[str, AgreementReport]:
    """Compare outputs and tokens of models with the dense model's, on the same images.

    Args:
        model: The converted model, or the part of it that takes images.
        models: Models made of it by name, itself and its peers.
        batches: Gives the images, of the model's own size, each time anew.

    Raises:
        DataError: If there is no image.
    """
    found = converted_runs(model)[0]
    assert found.run is not None
    patches, last = found.run.patch_embed, found.eligible_layers[-1] - 1

    def with_tokens(each: nn.Module) -> WithTokens:
        inner = each.model if isinstance(each, SmallerWhole) else each
        layers: Any = inner.get_submodule(found.path)
        return WithTokens(each, layers[last], patches)

    dense = with_tokens(dense_copy(model))
    return {name: compare_outputs(dense, with_tokens(each), batches()) for name, each in models.items()}
