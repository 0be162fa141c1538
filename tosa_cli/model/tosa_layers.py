"""Layers of which some select tokens, run one at a time: what a step does, whoever owns the loop over the layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.bypasses import BYPASSES, Bypass
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import attention_input, kind_of, matching_projection, num_heads
from tosa_cli.model.keys import MatchingKeys
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.places import Places
from tosa_cli.model.precision import full_precision
from tosa_cli.model.selection import num_kept, plain_shape
from tosa_cli.model.selectors import SELECTORS, Entry, Selector
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import bypass_reads, run_parts, take_apart

Chooser = Callable[[int, Stream, Entry], Choice]
"""What chooses the tokens of a ToSA layer: by its number, the tokens that enter it, and what is known of them."""

Read = Callable[[Tensor], Tensor]
"""What is made of scaled attention logits (B, H, M, N)."""


class TosaLayers:
    """Layers of one width, and what those of them need that select tokens. It is an `nn.Module` besides.

    Attributes:
        blocks: The blocks, called as they are, by the number of their layer less one.
        embed_dim: Width D of the tokens.
        num_prefix_tokens: How many of the first tokens are always computed.
        config: Where and how tokens are selected.
        keep_rates: Keep rate of each ToSA layer.
        choosing_layers: Of each ToSA layer, the one whose choice of tokens it uses.
        selectors: The selector of each layer that makes a choice, by its number.
        keys: Keys for each of them, where tokens are compared.
        bypasses: The bypass of each ToSA layer.
    """

    blocks: Sequence[nn.Module] | nn.Sequential
    embed_dim: int
    num_prefix_tokens: int
    config: TosaConfig
    keep_rates: dict[int, float]
    choosing_layers: dict[int, int]
    selectors: nn.ModuleDict
    keys: nn.ModuleDict
    bypasses: nn.ModuleDict

    def add_parts(self, source: Any) -> None:
        """Add what ToSA layers need besides their blocks, new; what is there of it already is replaced.

        Args:
            source: The dense model, or whatever else has its `blocks`, `embed_dim` and `num_prefix_tokens`.
        """
        config, weights = self.config, next(self.blocks[0].parameters())
        self.selectors, self.keys, self.bypasses = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for layer in self.keep_rates:
            name = str(layer)
            self.bypasses[name] = BYPASSES[config.bypass](self.embed_dim)
            if self.choosing_layers[layer] != layer:
                continue
            self.selectors[name] = SELECTORS[config.selector].for_layer(source, layer, config)
            if config.needs_keys:
                self.keys[name] = MatchingKeys(*matching_projection(self.blocks[layer - 1], self.embed_dim))
        for added in (self.selectors, self.keys, self.bypasses):
            added.to(weights.device, weights.dtype)
        # A choice of tokens has no gradient, and several processes wait for that of each weight that is not frozen.
        self.selectors.requires_grad_(False)

    def run(self, layer: Callable[[Any], Any], tokens: Any) -> Any:
        """Run a layer on tokens (B, N, D), or on tokens taken apart."""
        return layer(tokens)

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
            self.approach(layer, stream)
            self.step(layer, stream, choose)
            if layer == last:
                stream.join()
            self.show(layer, stream)
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
            self.approach(layer, stream)
            self.run_standard_layer(layer, stream, read.get(layer) if read else None, query_rows)
            stream.layer = layer
            yield layer

    def approach(self, layer: int, stream: Stream) -> None:
        """Bring the tokens of a stream before its next layer: a model may add something to them between its blocks."""
        if layer in stream.places.before:
            stream.replace(stream.places.entering(layer, stream.tokens))

    def show(self, layer: int, stream: Stream) -> None:
        """Let whoever looks at a layer see the tokens behind it; by default nobody does."""

    def step(self, layer: int, stream: Stream, choose: Chooser | None = None) -> None:
        """Run the next layer of a stream, which is advanced in place, and put its tokens together where a row ends.

        Args:
            layer: The layer, the one behind the stream's own.
            stream: The tokens that enter it.
            choose: What chooses the tokens of ToSA layers; None is `choose`.
        """
        if layer not in self.keep_rates:
            self.run_standard_layer(layer, stream, self._reader(layer))
        else:
            if self.chooses(layer):
                self._enter_span(layer, stream, choose or self.choose)
            self._run_tosa_layer(layer, stream)
            if self.ends_row(layer) or (not self.config.groups_tokens and self.ends_span(layer)):
                stream.join()
        stream.layer = layer

    def run_block(self, layer: int, tokens: Tensor, places: Places) -> Tensor:
        """Run the block of a layer on all tokens (B, N, D), which stand at `places`, as the source model does."""
        block = self.blocks[layer - 1]
        return kind_of(block).run(block, tokens, places.of(layer))

    def run_standard_layer(
        self, layer: int, stream: Stream, read: Read | None, query_rows: int | str | None = None
    ) -> None:
        """Run a layer on all tokens of a stream as the source model does.

        Args:
            layer: The layer.
            stream: The tokens that enter it.
            read: What is made of the layer's logits, the stream's `scores`; None reads none.
            query_rows: Number of query rows M that are read, or `"all"`; None takes the config's.
        """
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
            stream.parts = parts._replace(reads=bypass_reads(take_apart(entry.inputs, choice), choice))

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

    @property
    def map_layers(self) -> frozenset[int]:
        """The layers whose maps a trained selector learns by: those that it reads, and those that it predicts."""
        return frozenset({*self.keep_rates, *(layer - 1 for layer in self.keep_rates)})

    def is_read(self, layer: int) -> bool:
        """Whether the selector of the next layer reads the logits of a layer."""
        return self.config.reads_maps and layer + 1 in self.keep_rates

    def chooses(self, layer: int) -> bool:
        """Whether a ToSA layer makes a choice: the first of its span does, unless it leaves groups as they are."""
        if self.choosing_layers[layer] != layer:
            return False
        return not self.config.groups_tokens or self.keep_rates.get(layer - 1) != self.keep_rates[layer]

    def ends_span(self, layer: int) -> bool:
        """Whether the layer after a ToSA layer does not share its choice."""
        return self.choosing_layers.get(layer + 1, layer + 1) == layer + 1

    def ends_row(self, layer: int) -> bool:
        """Whether a standard layer comes after a ToSA layer."""
        return layer + 1 not in self.keep_rates

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
        config, block = self.config, self.blocks[layer - 1]
        entering, grouped = stream.entering, config.groups_tokens
        reads = config.needs_keys or self.selector(layer).reads_inputs
        inputs = attention_input(block, entering) if reads else None
        keys = None
        if config.needs_keys:
            with torch.no_grad(), full_precision(entering.device):
                keys = self.keys[str(layer)](inputs)
        num_tokens = stream.num_tokens
        return Entry(
            shape=(plain_shape(entering)[0], num_tokens),
            num_kept=num_kept(num_tokens, self.keep_rates[layer], self.num_prefix_tokens),
            num_prefix_tokens=self.num_prefix_tokens,
            grid=stream.places.grid,
            heads=num_heads(block) if config.selection == "per-head" else None,
            neighbors=config.neighbors,
            matches=config.matches_tokens,
            lists_skipped=self.bypass(layer).updates_tokens,
            device=entering.device,
            inputs=inputs,
            keys=keys,
            scores=stream.scores,
            means=entering if grouped else None,
            before=stream.choice if grouped and stream.parts is not None else None,
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
        entry = entry or self.entry(layer, stream)
        with full_precision(entry.device):
            return self.selector(layer).choose(entry)

    def _reader(self, layer: int) -> Read | None:
        """What the selector of the next layer makes of the logits of a layer; None if it does not read them."""
        return partial(self.read_scores, layer + 1) if self.is_read(layer) else None

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
