"""ToSA models under `torch.fx`: each layer that chooses tokens, or is read by one that does, is one call in the graph.

Which tokens are computed is decided on the way, which a symbolic trace cannot follow. All else is traced as it is in
the source: what embeds the images, the other layers, and the head.
"""

from collections.abc import Iterable
from copy import copy
from typing import Any

from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.graph_nodes import one_node
from tosa_cli.model.places import Places
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layers import TosaLayers


def trace_layers(
    model: Any, tokens: Any, places: Places, take: Iterable[int] = (), last: int | None = None
) -> tuple[Any, list[Any]]:
    """Write the layers of a model into the graph that is traced.

    What a layer gives is all tokens (B, N, D) in their old order, under the name of its block and under that of its
    module in `outputs`.

    Args:
        model: The `LayerLoop`.
        tokens: What stands for the tokens that enter layer 1, a `torch.fx.Proxy`.
        places: Where they stand.
        take: Layers whose output is returned too.
        last: Stop after this layer; None runs all.

    Returns:
        What stands for the final tokens, and for the outputs taken.
    """
    taken: list[Any] = []
    stream: Any = None
    take = frozenset(take)
    for layer in range(1, 1 + (last or len(model.blocks))):
        if layer in model.keep_rates or model.is_read(layer):
            if stream is None:
                stream = stream_of(tokens, places, layer - 1)
            stream, tokens = _in_block(model, layer, stream)
        else:
            stream, tokens = None, model.run_block(layer, tokens, places)
        tokens = model.outputs[str(layer)](tokens)
        if layer in take:
            taken.append(tokens)
    return tokens, taken


def _in_block(model: Any, layer: int, stream: Any) -> tuple[Any, Any]:
    """A layer of the graph, whose nodes stand under the name of its block."""

    def step(stream: Any) -> tuple[Any, Any]:
        widths = (model.embed_dim, model.num_prefix_tokens)
        parts = (model.blocks, model.selectors, model.keys, model.bypasses)
        layers = layers_of(stream, *parts, model.config, model.keep_rates, model.choosing_layers, widths)
        behind = run_layer(layers, layer, stream)
        return behind, all_tokens(behind)

    block, tracer = model.blocks[layer - 1], stream.tracer
    if tracer.is_leaf_module(block, tracer.path_of_module(block)):
        return step(stream)  # its users want no look into it, and it is not called by itself
    behind: tuple[Any, Any] = tracer.call_module(block, step, (stream,), {})
    return behind


class GraphLayers(TosaLayers):
    """The layers of a model without the model: modules that are a graph's, and constants."""


@one_node
def layers_of(
    stream: Stream,
    blocks: nn.Sequential,
    selectors: nn.ModuleDict,
    keys: nn.ModuleDict,
    bypasses: nn.ModuleDict,
    config: TosaConfig,
    keep_rates: dict[int, float],
    choosing_layers: dict[int, int],
    widths: tuple[int, int],
) -> GraphLayers:
    """The layers that a stream goes through.

    Args:
        stream: The stream, which says that a graph is traced.
        blocks: The blocks.
        selectors: The selectors, by layer.
        keys: Keys by which tokens are compared, by layer.
        bypasses: The bypasses, by layer.
        config: Where and how tokens are selected.
        keep_rates: Keep rate of each ToSA layer.
        choosing_layers: Of each ToSA layer, the one whose choice of tokens it uses.
        widths: Width D of the tokens, and number of prefix tokens.
    """
    layers = GraphLayers()
    layers.blocks, layers.selectors, layers.keys, layers.bypasses = blocks, selectors, keys, bypasses
    layers.config, layers.keep_rates, layers.choosing_layers = config, keep_rates, choosing_layers
    layers.embed_dim, layers.num_prefix_tokens = widths
    return layers


@one_node
def stream_of(tokens: Tensor, places: Places, layer: int) -> Stream:
    """A stream of tokens (B, N, D), which stand at `places` and come from a layer."""
    return Stream(tokens, places, layer)


@one_node
def run_layer(layers: TosaLayers, layer: int, stream: Stream) -> Stream:
    """The stream behind a layer; the one that enters it is left as it is."""
    stream = copy(stream)
    layers.step(layer, stream)
    return stream


@one_node
def all_tokens(stream: Stream) -> Tensor:
    """All tokens of a stream, (B, N, D), in their old order."""
    return stream.tokens
