"""The ToSA model: a timm ViT whose block loop is ours (paper, section 2.3)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.bypasses import BYPASSES, Bypass
from tosa_cli.model.families import (
    Backbone,
    attention_input,
    check_convertible,
    embed_with_places,
    kind_of,
    matching_projection,
    num_heads,
)
from tosa_cli.model.keys import MatchingKeys
from tosa_cli.model.matching import Choice
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.places import Places
from tosa_cli.model.precision import full_precision
from tosa_cli.model.selection import num_kept
from tosa_cli.model.selectors import SELECTORS, Entry, Selector
from tosa_cli.model.stream import Stream
from tosa_cli.model.timm_interface import LayersInterface, name_weights_as
from tosa_cli.model.tosa_layer import bypass_reads, run_parts, split_tokens
from tosa_cli.provenance import Provenance

_BACKBONE = "backbone."
_ADDED = ("selectors.", "keys.", "bypasses.")

Chooser = Callable[[int, Stream, Entry], Choice]
"""What chooses the tokens of a ToSA layer: by its number, the tokens that enter it, and what is known of them."""

Read = Callable[[Tensor], Tensor]
"""What is made of scaled attention logits (B, H, M, N)."""


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


class TosaViT(LayersInterface):
    """A timm ViT in which chosen layers compute the selected tokens only, and the others bypass the layer.

    The number and the order of the tokens never change, so the model serves dense prediction as its source does.
    It speaks timm's language: `forward`, `forward_features`, `forward_intermediates`, `forward_head`, and a
    state dict under the backbone's own key names, with what was added under `selectors.<layer>`, `keys.<layer>` and
    `bypasses.<layer>`.

    Args:
        backbone: A timm ViT; it becomes part of the new model and is not changed.
        config: Where and how tokens are selected.

    Raises:
        UnsupportedModelError: If the backbone is of a type that cannot be converted, or a layer is.
        ConfigError: If the backbone does not have the layers asked for.
    """

    def __init__(self, backbone: Backbone, config: TosaConfig) -> None:
        super().__init__()
        check_convertible(backbone, config)
        self.backbone: Backbone = backbone
        self.config = config
        self.keep_rates = config.keep_rates
        self.choosing_layers = config.choosing_layers
        self.selectors = nn.ModuleDict()
        self.keys = nn.ModuleDict()
        self.bypasses = nn.ModuleDict()
        for layer in config.layers:
            self._add_parts(layer)
        weights = next(backbone.parameters())
        for added in (self.selectors, self.keys, self.bypasses):
            added.to(weights.device, weights.dtype)
        name_weights_as(self, _BACKBONE, _ADDED)
        # timm reads this from any model it wraps.
        self.feature_info = getattr(backbone, "feature_info", [])
        self.provenance = Provenance()

    def _add_parts(self, layer: int) -> None:
        """Add what a ToSA layer needs besides its block."""
        config, name = self.config, str(layer)
        self.bypasses[name] = BYPASSES[config.bypass](self.embed_dim)
        if self.choosing_layers[layer] != layer:
            return
        self.selectors[name] = SELECTORS[config.selector].for_layer(self.backbone, layer, config)
        if config.needs_keys:
            self.keys[name] = MatchingKeys(*matching_projection(self.blocks[layer - 1], self.embed_dim))

    # ------------------------------------------------------------------ forward

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their original order."""
        return self.backbone.norm(self.run_layers(*embed_with_places(self.backbone, images)).tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (B, N, D) and classify them, as the backbone does."""
        return self.backbone.forward_head(tokens, pre_logits=pre_logits)

    def forward_selection(self, images: Tensor) -> dict[int, Tensor]:
        """Which tokens each ToSA layer selects in images (B, C, height, width).

        Returns:
            Keep indices of each ToSA layer: (B, K), or (B, H, K) for per-head selection.
        """
        return self.run_layers(*embed_with_places(self.backbone, images)).keep_indices

    # ------------------------------------------------------------------ layers

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

    def layers(self, stream: Stream, last: int | None = None, choose: Chooser | None = None) -> Iterator[int]:
        """Run the layers ahead of a stream one by one.

        Args:
            stream: The stream, which is advanced in place.
            last: Stop after this layer; None runs all.
            choose: What chooses the tokens of ToSA layers; None is `choose`.

        Yields:
            The number of the layer that was run.
        """
        for layer in self._ahead(stream, last):
            if layer not in self.keep_rates:
                self._run_standard_layer(layer, stream, self._reader(layer))
            else:
                if self.choosing_layers[layer] == layer:
                    self._enter_span(layer, stream, choose or self.choose)
                self._run_tosa_layer(layer, stream)
                if layer == last or self.ends_span(layer):
                    stream.join()
            stream.layer = layer
            yield layer

    def dense_layers(
        self,
        stream: Stream,
        last: int | None = None,
        read: Mapping[int, Read] | None = None,
        query_rows: int | str | None = None,
    ) -> Iterator[int]:
        """Run the layers ahead of a stream one by one as the source model does, with every token computed.

        Args:
            stream: The stream, which is advanced in place; what was made of a layer's logits is its `scores`.
            last: Stop after this layer; None runs all.
            read: What is made of the logits of some layers, by their numbers; the others' are not read.
            query_rows: Number of query rows M that are read, or `"all"`; None takes the config's.

        Yields:
            The number of the layer that was run.
        """
        for layer in self._ahead(stream, last):
            self._run_standard_layer(layer, stream, read.get(layer) if read else None, query_rows)
            stream.layer = layer
            yield layer

    def run_block(self, layer: int, tokens: Tensor, places: Places) -> Tensor:
        """Run the block of a layer on all tokens (B, N, D), which stand at `places`, as the source model does."""
        block = self.blocks[layer - 1]
        return kind_of(block).run(block, tokens, places.of(layer))

    def _run_standard_layer(
        self, layer: int, stream: Stream, read: Read | None, query_rows: int | str | None = None
    ) -> None:
        if read is None:
            run_block = partial(self.run_block, layer, places=stream.places)
            stream.tokens, stream.scores = self.run(run_block, stream.tokens), None
        else:
            block, rows = self.blocks[layer - 1], query_rows or self.config.query_rows
            tap = partial(run_and_tap, block, query_rows=rows, read=read, extras=stream.places.of(layer))
            stream.tokens, stream.scores = self.run(tap, stream.tokens)

    def _enter_span(self, layer: int, stream: Stream, choose: Chooser) -> None:
        """Choose the tokens that a span of ToSA layers computes, and take them and the others apart."""
        entry = self.entry(layer, stream)
        choice = choose(layer, stream, entry)
        if self.config.selection == "per-head":
            stream.choice = choice
            return
        parts = stream.split(choice)
        if entry.inputs is not None and self.bypass(layer).reads_inputs:
            stream.parts = parts._replace(reads=bypass_reads(split_tokens(entry.inputs, choice), choice))

    def _run_tosa_layer(self, layer: int, stream: Stream) -> None:
        block, choice = self.blocks[layer - 1], stream.choice
        assert choice is not None  # made by the first layer of the span
        if stream.parts is None:
            run_heads = partial(run_block_per_head, block, keep_indices=choice.keep_indices)
            stream.tokens = self.run(run_heads, stream.tokens)
        else:
            extras = stream.places.of(layer)
            run = partial(run_parts, block, choice=choice, bypass=self.bypass(layer), extras=extras)
            stream.parts = self.run(run, stream.parts)

    def _ahead(self, stream: Stream, last: int | None) -> range:
        return range(stream.layer + 1, 1 + (len(self.blocks) if last is None else last))

    def ends_span(self, layer: int) -> bool:
        """Whether the layer after a ToSA layer does not share its choice."""
        return self.choosing_layers.get(layer + 1, layer + 1) == layer + 1

    def bypass(self, layer: int) -> Bypass:
        """The bypass of a ToSA layer."""
        return self.bypasses[str(layer)]  # type: ignore[return-value]

    def selector(self, layer: int) -> Selector:
        """The selector of a ToSA layer that makes a choice."""
        return self.selectors[str(layer)]  # type: ignore[return-value]

    # ------------------------------------------------------------------ choices

    def entry(self, layer: int, stream: Stream) -> Entry:
        """What is known of a ToSA layer that is about to choose its tokens.

        Args:
            layer: The ToSA layer, which shares its choice with the others of its span.
            stream: The tokens that enter it.
        """
        config, block, tokens = self.config, self.blocks[layer - 1], stream.tokens
        reads = config.needs_keys or self.selector(layer).reads_inputs
        inputs = attention_input(block, tokens) if reads else None
        keys = None
        if config.needs_keys:
            with torch.no_grad(), full_precision(tokens.device):
                keys = self.keys[str(layer)](inputs)
        return Entry(
            shape=(tokens.shape[0], tokens.shape[1]),
            num_kept=num_kept(tokens.shape[1], self.keep_rates[layer], self.num_prefix_tokens),
            num_prefix_tokens=self.num_prefix_tokens,
            grid=stream.places.grid,
            heads=num_heads(block) if config.selection == "per-head" else None,
            neighbors=config.neighbors,
            matches=config.matches_tokens,
            lists_skipped=self.bypass(layer).updates_tokens,
            device=tokens.device,
            inputs=inputs,
            keys=keys,
            scores=stream.scores,
        )

    @torch.no_grad()
    def choose(self, layer: int, stream: Stream, entry: Entry | None = None) -> Choice:
        """Choose the tokens that a ToSA layer computes, and find partners for the others where its bypass needs them.

        It computes in full precision: distances are small differences of large norms, and half precision ties them.

        Args:
            layer: The ToSA layer, which shares its choice with the others of its span.
            stream: The tokens that enter it.
            entry: From `entry`, where it is known already.
        """
        with full_precision(stream.device):
            return self.selector(layer).choose(entry or self.entry(layer, stream))

    def _reader(self, layer: int) -> Read | None:
        """What the selector of the next layer makes of the logits of a layer; None if it does not read them."""
        return partial(self.read_scores, layer + 1) if self.config.reads_maps and layer + 1 in self.keep_rates else None

    @torch.no_grad()
    def read_scores(self, layer: int, logits: Tensor) -> Tensor:
        """What a selector that reads maps makes of them.

        Args:
            layer: The ToSA layer.
            logits: Scaled attention logits (B, H, M, N) of its feeding layer.

        Returns:
            Scores in float32: (B, N), or (B, H, N) for per-head selection; the column sum of the predicted maps
            (paper 2.1).
        """
        importance = self.selector(layer).read(logits)
        return importance.sum(dim=1) if self.config.selection == "shared" else importance

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
        stream = Stream(*embed_with_places(self.backbone, images))
        passed = self.dense_layers(stream, max(wanted), wanted, query_rows)
        return {layer: stream.scores for layer in passed if layer in wanted and stream.scores is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """The config, as plain JSON values."""
        return self.config.to_dict()

    # ------------------------------------------------------------------ parameters

    def selector_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `distill` trains and `finetune` freezes."""
        return self.selectors.parameters()

    def bypass_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the bypasses, which `distill` fits and `finetune` trains."""
        return self.bypasses.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `distill` freezes and `finetune` trains."""
        return self.backbone.parameters()

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last one asked for, with their selectors; indices count from 0 as in timm."""
        kept = self.backbone.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)
        for layer in [layer for layer in self.keep_rates if layer > len(self.blocks)]:
            del self.keep_rates[layer], self.choosing_layers[layer]
            for parts in (self.selectors, self.keys, self.bypasses):
                if str(layer) in parts:
                    del parts[str(layer)]
        return kept

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {_BACKBONE + name for name in self.backbone.no_weight_decay()}
