"""The loop over the layers of a ToSA model: the one place where layers are run one after the other."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.bypasses import Bypass
from tosa_cli.model.families import attention_input, kind_of, num_heads
from tosa_cli.model.matching import Choice
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.places import Places
from tosa_cli.model.precision import full_precision
from tosa_cli.model.selection import num_kept, plain_shape
from tosa_cli.model.selectors import Entry, Selector
from tosa_cli.model.stream import Stream
from tosa_cli.model.timm_interface import LayersInterface
from tosa_cli.model.tosa_layer import bypass_reads, run_parts, split_tokens

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


class LayerLoop(LayersInterface):
    """A model around a timm ViT that runs its layers one by one, and selects tokens in some.

    Attributes:
        config: Where and how tokens are selected.
        keep_rates: Keep rate of each ToSA layer.
        choosing_layers: Of each ToSA layer, the one whose choice of tokens it uses.
        selectors: The selector of each layer that makes a choice, by its number.
        keys: Keys for each of them, where tokens are compared.
        bypasses: The bypass of each ToSA layer.
        outputs: For each layer a module that passes on all tokens behind it, in their order, as long as it has a hook:
            in a ToSA layer the block itself sees the selected ones only.
    """

    config: TosaConfig
    keep_rates: dict[int, float]
    choosing_layers: dict[int, int]
    selectors: nn.ModuleDict
    keys: nn.ModuleDict
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
                if layer == last or self.ends_row(layer) or (not self.config.groups_tokens and self.ends_span(layer)):
                    stream.join()
            stream.layer = layer
            self._show(layer, stream)
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

    def _show(self, layer: int, stream: Stream) -> None:
        """Pass the tokens behind a layer through its module in `outputs`, and go on with what hooks make of them."""
        shown = self.outputs[str(layer)]
        if not (shown._forward_hooks or shown._forward_pre_hooks or shown._backward_hooks):
            return
        choice, apart, tokens = stream.choice, stream.parts is not None, stream.tokens
        given = shown(tokens)
        if stream.in_groups and given is tokens:
            return  # to put groups together and apart again would round their means anew
        stream.tokens = given
        if apart and choice is not None:
            stream.split(choice)

    def _ahead(self, stream: Stream, last: int | None) -> range:
        return range(stream.layer + 1, 1 + (len(self.blocks) if last is None else last))

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
        return Entry(
            shape=(plain_shape(entering)[0], stream.num_tokens),
            num_kept=num_kept(stream.num_tokens, self.keep_rates[layer], self.num_prefix_tokens),
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
        stream = Stream(*self.embed(images))
        passed = self.dense_layers(stream, max(wanted), wanted, query_rows)
        return {layer: stream.scores for layer in passed if layer in wanted and stream.scores is not None}
