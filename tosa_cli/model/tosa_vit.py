"""The ToSA model: a timm ViT whose block loop is ours (paper, section 2.3)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.layers import Format
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.bypass import LinearBypass, NearestBypass, make_bypass
from tosa_cli.model.families import (
    Backbone,
    attention_input,
    check_convertible,
    embed_with_places,
    kind_of,
    matching_projection,
    num_heads,
)
from tosa_cli.model.matching import Choice, choose_by_similarity, match_with_kept, other_indices
from tosa_cli.model.per_head import run_block_per_head
from tosa_cli.model.places import Places
from tosa_cli.model.selection import choose_tokens, column_sum, num_kept
from tosa_cli.model.selectors import AttentionSelector, MatchingKeys, Probe
from tosa_cli.model.timm_interface import FinetunableViT, name_weights_as
from tosa_cli.model.tosa_layer import Parts, bypass_reads, join_parts, run_parts, run_tosa_layer, split_tokens
from tosa_cli.provenance import Provenance

_BACKBONE = "backbone."
_ADDED = ("selectors.", "keys.", "bypasses.")


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


class TosaViT(FinetunableViT):
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
        for added in (self.selectors, self.keys, self.bypasses):
            added.to(next(backbone.parameters()).device)
        name_weights_as(self, _BACKBONE, _ADDED)
        # timm reads this from any model it wraps.
        self.feature_info = getattr(backbone, "feature_info", [])
        self.provenance = Provenance()

    def _add_parts(self, layer: int) -> None:
        """Add what a ToSA layer needs besides its block."""
        config, name = self.config, str(layer)
        bypass = make_bypass(config.bypass, self.embed_dim)
        if bypass is not None:
            self.bypasses[name] = bypass
        if self.choosing_layers[layer] != layer:
            return
        if config.selector == "attention":
            self.selectors[name] = AttentionSelector(num_heads(self.blocks[layer - 2]), config.selector_kernel)
        elif config.selector == "probe":
            self.selectors[name] = Probe(self.embed_dim)
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

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images (B, C, height, width)."""
        rows, columns = self.backbone.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
        return rows, columns

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Features after chosen layers, in timm's form.

        Args:
            x: Images (B, C, height, width).
            indices: The last n layers if a number, all if None, else indices counted from 0 as in timm.
            return_prefix_tokens: Return pairs of spatial and prefix tokens.
            norm: Apply the final norm to every intermediate.
            stop_early: Stop after the last layer asked for.
            output_fmt: `NCHW` for (B, D, h, w) maps, `NLC` for tokens.
            intermediates_only: Leave the final tokens out.
            output_dict: Return a dictionary with timm's keys.

        Returns:
            Final tokens and a list of intermediates; the list alone; or a dictionary.

        Raises:
            ValueError: If `output_fmt` is neither `NCHW` nor `NLC`.
        """
        output_fmt = str(Format(output_fmt).value)
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, not {output_fmt!r}.")
        taken, last = feature_take_indices(len(self.blocks), indices)
        outputs = self.run_layers(
            *embed_with_places(self.backbone, x), take={i + 1 for i in taken}, last=last + 1 if stop_early else None
        )
        features = [self.backbone.norm(tokens) if norm else tokens for tokens in outputs.intermediates]
        num_prefix = self.num_prefix_tokens
        prefixes = [tokens[:, :num_prefix] for tokens in features] if num_prefix else None
        spatial = [tokens[:, num_prefix:] for tokens in features]
        if output_fmt == "NCHW":
            spatial = [tokens.transpose(1, 2).unflatten(2, self.grid(x)).contiguous() for tokens in spatial]
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": spatial}
            if prefixes and return_prefix_tokens:
                result["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                result["image_features"] = self.backbone.norm(outputs.tokens)
            return result
        listed: list[Any] = spatial
        if prefixes and return_prefix_tokens:
            listed = list(zip(spatial, prefixes, strict=True))
        return listed if intermediates_only else (self.backbone.norm(outputs.tokens), listed)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """Features of the last n layers, or of layers counted from 0, as in DINO's interface; see timm's own."""
        return self.forward_intermediates(
            x,
            n,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )

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
        outputs = LayerOutputs(tokens)
        take = frozenset(take)
        scores: Tensor | None = None
        for layer in range(1, (last or len(self.blocks)) + 1):
            chooses = self.choosing_layers.get(layer) == layer
            if layer not in self.keep_rates:
                tokens, scores = self.run_standard_layer(layer, tokens, places)
            elif self.config.selection == "per-head":
                if chooses:
                    choice = self.choose(layer, tokens, places, scores)
                tokens = self.run_tosa_layer(layer, tokens, choice, places)
                outputs.choices[layer] = choice
            else:
                if chooses:
                    choice, parts = self.enter_span(layer, tokens, places, scores)
                    # All tokens are put together again where they are needed; these would only stay in memory.
                    tokens = parts.selected
                parts = self.run_parts(layer, parts, choice, places)
                ends = layer == last or self.ends_span(layer)
                tokens = join_parts(parts, choice) if ends or layer in take else parts.selected
                if ends:
                    del parts  # the layers behind the span need the memory
                outputs.choices[layer] = choice
            if layer in take:
                outputs.intermediates.append(tokens)
        outputs.tokens = tokens
        return outputs

    def run_block(self, layer: int, tokens: Tensor, places: Places) -> Tensor:
        """Run the block of a layer on all tokens (B, N, D), which stand at `places`, as the source model does."""
        block = self.blocks[layer - 1]
        return kind_of(block).run(block, tokens, places.of(layer))

    def run_standard_layer(self, layer: int, tokens: Tensor, places: Places) -> tuple[Tensor, Tensor | None]:
        """Run a layer in which every token is computed.

        Args:
            layer: The layer.
            tokens: Tokens (B, N, D).
            places: Where they stand.

        Returns:
            Tokens (B, N, D), and what its logits say to the selector of the next layer, if that reads them: see
            `read_scores`.
        """
        if not (self.config.reads_maps and layer + 1 in self.keep_rates):
            return self.run(lambda x: self.run_block(layer, x, places), tokens), None
        block, extras, read = self.blocks[layer - 1], places.of(layer), partial(self.read_scores, layer + 1)
        rows = self.config.query_rows
        return self.run(partial(run_and_tap, block, query_rows=rows, read=read, extras=extras), tokens)

    def run_tosa_layer(self, layer: int, tokens: Tensor, choice: Choice, places: Places) -> Tensor:
        """Run a ToSA layer on tokens (B, N, D), which stand at `places`, by a choice: tokens (B, N, D)."""
        block = self.blocks[layer - 1]
        if self.config.selection == "per-head":
            return self.run(partial(run_block_per_head, block, keep_indices=choice.keep_indices), tokens)
        bypass, extras = self.bypass(layer), places.of(layer)
        return self.run(partial(run_tosa_layer, block, choice=choice, bypass=bypass, extras=extras), tokens)

    def enter_span(self, layer: int, tokens: Tensor, places: Places, scores: Tensor | None) -> tuple[Choice, Parts]:
        """Choose the tokens that a span computes, and take them and the others apart.

        Args:
            layer: The first ToSA layer of the span.
            tokens: Tokens (B, N, D) that enter it.
            places: Where they stand.
            scores: See `choose`.
        """
        inputs = self.choosing_inputs(layer, tokens)
        choice, bypass = self.choose(layer, tokens, places, scores, inputs), self.bypass(layer)
        parts = split_tokens(tokens, choice)
        if bypass is not None and bypass.reads_inputs and inputs is not None:
            parts = parts._replace(reads=bypass_reads(split_tokens(inputs, choice), choice))
        return choice, parts

    def run_parts(self, layer: int, parts: Parts, choice: Choice, places: Places) -> Parts:
        """Run a ToSA layer on tokens that were taken apart by a choice, as `run_tosa_layer` does on all."""
        block, bypass, extras = self.blocks[layer - 1], self.bypass(layer), places.of(layer)
        return self.run(partial(run_parts, block, choice=choice, bypass=bypass, extras=extras), parts)

    def ends_span(self, layer: int) -> bool:
        """Whether the layer after a ToSA layer does not share its choice."""
        return layer + 1 not in self.keep_rates or self.choosing_layers[layer + 1] == layer + 1

    def bypass(self, layer: int) -> LinearBypass | NearestBypass | None:
        """The bypass of a ToSA layer; None where a skipped token stays as it is."""
        return self.bypasses[str(layer)] if str(layer) in self.bypasses else None  # type: ignore[return-value]  # noqa: SIM401

    @torch.no_grad()
    def choose(
        self, layer: int, tokens: Tensor, places: Places, scores: Tensor | None = None, inputs: Tensor | None = None
    ) -> Choice:
        """Choose the tokens that a ToSA layer computes, and find partners for the others where its bypass needs them.

        Args:
            layer: The ToSA layer, which shares its choice with the others of its span.
            tokens: Tokens (B, N, D) that enter it.
            places: Where they stand.
            scores: What `read_scores` made of the feeding layer's logits, where the selector reads them.
            inputs: What the layer's attention reads of the tokens, where it is known already.
        """
        config, prefix = self.config, self.num_prefix_tokens
        length = tokens.shape[1]
        kept = num_kept(length, self.keep_rates[layer], prefix)
        if inputs is None:
            inputs = self.choosing_inputs(layer, tokens)
        if inputs is None:
            inputs = tokens
        keys = self.keys[str(layer)](inputs) if config.needs_keys else inputs
        if config.selector == "similarity":
            choice = choose_by_similarity(keys, kept, prefix, places.grid, config.neighbors)
            return choice if config.matches_tokens else choice._replace(partners=None, weights=None)
        if scores is None:
            scores = self.score(layer, inputs)
        return self.match(choose_tokens(scores, kept, prefix), length, keys)

    def choosing_inputs(self, layer: int, tokens: Tensor) -> Tensor | None:
        """What the attention of a ToSA layer reads of tokens (B, N, D), if the choice reads it as well: (B, N, D)."""
        reads = self.config.needs_keys or self.config.selector == "probe"
        return attention_input(self.blocks[layer - 1], tokens) if reads else None

    def match(self, keep_indices: Tensor, length: int, keys: Tensor) -> Choice:
        """Find what the bypass needs for a choice: the skipped tokens, and their partners.

        Args:
            keep_indices: Selected tokens (B, K), or (B, H, K) for per-head selection.
            length: Number of tokens N.
            keys: Keys (B, N, d); read where tokens are matched.
        """
        if self.config.matches_tokens:
            return match_with_kept(keys, keep_indices, self.num_prefix_tokens, self.config.neighbors)
        if self.config.bypass == "identity":
            return Choice(keep_indices)
        return Choice(keep_indices, other_indices(keep_indices, length))

    def score(self, layer: int, inputs: Tensor) -> Tensor:
        """Scores (B, N), or (B, H, N) for per-head selection, by a selector that reads no maps.

        Args:
            layer: The ToSA layer.
            inputs: What its attention reads, (B, N, D).
        """
        if self.config.selector == "probe":
            return self.selectors[str(layer)](inputs)
        batch, length, _ = inputs.shape
        heads = (num_heads(self.blocks[layer - 1]),) if self.config.selection == "per-head" else ()
        return torch.rand(batch, *heads, length, device=inputs.device)

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
        if self.config.selector == "attention":
            importance = column_sum(self.selectors[str(layer)](logits).exp())
        else:
            importance = column_sum(logits.softmax(dim=-1, dtype=torch.float32))
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
        wanted = frozenset(layers)
        rows = query_rows or self.config.query_rows
        tokens, places = embed_with_places(self.backbone, images)
        logits = {}
        for layer, block in enumerate(self.blocks[: max(wanted)], start=1):
            if layer in wanted:
                tokens, logits[layer] = run_and_tap(block, tokens, rows, extras=places.of(layer))
            else:
                tokens = self.run_block(layer, tokens, places)
        return logits

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
            del self.keep_rates[layer]
            for parts in (self.selectors, self.keys, self.bypasses):
                if str(layer) in parts:
                    del parts[str(layer)]
        return kept

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {_BACKBONE + name for name in self.backbone.no_weight_decay()}
