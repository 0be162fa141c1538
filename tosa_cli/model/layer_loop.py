"""The loop over the layers of a ToSA model: the one place where layers are run one after the other."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from tosa_cli.model.choice import Choice
from tosa_cli.model.places import Places
from tosa_cli.model.stream import Stream
from tosa_cli.model.timm_interface import LayersInterface
from tosa_cli.model.tosa_layers import Read, TosaLayers
from tosa_cli.model.tracing import trace_layers


@dataclass
class LayerOutputs:
    """What a pass through the layers leaves.

    Attributes:
        tokens: Tokens after the last layer, (B, N, D).
        intermediates: Tokens (B, N, D) after each layer that was asked for.
        choices: What each ToSA layer selected.
    """

    tokens: Tensor
    intermediates: list[Tensor] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)

    @property
    def keep_indices(self) -> dict[int, Tensor]:
        """Selected tokens of each ToSA layer: (B, K), or (B, H, K) for per-head selection."""
        return {layer: choice.keep_indices for layer, choice in self.choices.items()}


class LayerLoop(LayersInterface, TosaLayers):
    """A model around a timm ViT that runs its layers one by one, and selects tokens in some.

    Attributes:
        outputs: For each layer a module that passes on all tokens behind it, in their order, as long as it has a hook:
            in a ToSA layer the block itself sees the selected ones only.
    """

    blocks: nn.Sequential
    outputs: nn.ModuleDict

    def run_layers(
        self, tokens: Tensor, places: Places, take: Iterable[int] = (), last: int | None = None
    ) -> LayerOutputs:
        """Run the layers on embedded tokens.

        Args:
            tokens: Tokens (B, N, D) that enter layer 1.
            places: Where they stand.
            take: Layers, numbered from 1, whose output is kept.
            last: Stop after this layer; None runs all.

        Returns:
            The final tokens, the outputs taken and the selections made.
        """
        if isinstance(tokens, Proxy):
            return LayerOutputs(*trace_layers(self, tokens, places, take, last))
        stream, take = Stream(tokens, places), frozenset(take)
        del tokens  # the stream lets go of them as soon as they are not needed
        intermediates: list[Tensor] = []
        choices: dict[int, Choice] = {}
        for layer in self.layers(stream, last):
            if layer in self.keep_rates and stream.choice is not None:
                choices[layer] = stream.choice
            if layer in take:
                intermediates.append(stream.tokens)
        return LayerOutputs(stream.tokens, intermediates, choices)

    def show(self, layer: int, stream: Stream) -> None:
        """Pass the tokens behind a layer through its module in `outputs`, and go on with what hooks make of them."""
        shown = self.outputs[str(layer)]
        if not (shown._forward_hooks or shown._forward_pre_hooks or shown._backward_hooks):
            return
        tokens = stream.tokens
        given = shown(tokens)
        if given is not tokens or not stream.in_groups:  # to take groups apart again would round their means anew
            stream.replace(given)

    @torch.no_grad()
    def dense_logits(
        self, images: Tensor, layers: Iterable[int], query_rows: int | str | None = None
    ) -> dict[int, Tensor]:
        """Attention logits of the source model, in which every token is computed.

        Args:
            images: Images (B, C, height, width).
            layers: Layers whose logits are read; the pass stops after the last.
            query_rows: Number of query rows M, or `"all"`; None takes the config's.

        Returns:
            Scaled logits (B, H, M, N) of each layer.
        """
        wanted: dict[int, Read] = dict.fromkeys(layers, lambda logits: logits)
        stream = Stream(*self.embed(images))
        passed = self.dense_layers(stream, max(wanted), wanted, query_rows)
        return {layer: stream.scores for layer in passed if layer in wanted and stream.scores is not None}
