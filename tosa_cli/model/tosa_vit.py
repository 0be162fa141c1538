"""The ToSA model: a timm ViT whose block loop is ours (paper, section 2.3)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.layers import Format
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tosa_cli.config import Provenance, TosaConfig
from tosa_cli.model.backbone import (
    Backbone,
    check_supported,
    embed,
    num_heads,
    run_and_tap,
    run_block_per_head,
)
from tosa_cli.model.selection import choose_tokens, column_sum, gather_tokens, num_kept, scatter_tokens
from tosa_cli.model.selectors import AttentionSelector

_BACKBONE = "backbone."


@dataclass
class LayerOutputs:
    """What a pass through the layers leaves.

    Attributes:
        tokens: Tokens after the last layer, (B, N, D).
        intermediates: Tokens (B, N, D) after each layer that was asked for.
        keep_indices: Selected tokens of each ToSA layer: (B, K), or (B, H, K) for per-head selection.
    """

    tokens: Tensor
    intermediates: list[Tensor] = field(default_factory=list)
    keep_indices: dict[int, Tensor] = field(default_factory=dict)


class TosaViT(nn.Module):
    """A timm ViT in which chosen layers compute the selected tokens only, and the others bypass the layer.

    The number and the order of the tokens never change, so the model serves dense prediction as its source does.
    It speaks timm's language: `forward`, `forward_features`, `forward_intermediates`, `forward_head`, and a
    state dict under the backbone's own key names, with the selectors under `selectors.<layer>`.

    Args:
        backbone: A timm ViT; it becomes part of the new model and is not changed.
        config: Where and how tokens are selected.

    Raises:
        UnsupportedModelError: If the backbone is of a type that cannot be converted.
        ConfigError: If the backbone does not have the layers asked for.
    """

    def __init__(self, backbone: Backbone, config: TosaConfig) -> None:
        super().__init__()
        check_supported(backbone, config.selection)
        config.check_depth(len(backbone.blocks))
        self.backbone: Backbone = backbone
        self.config = config
        self.keep_rates = config.keep_rates
        self.selectors = nn.ModuleDict()
        if config.selector == "attention":
            for layer in config.layers:
                heads = num_heads(backbone.blocks[layer - 2])
                self.selectors[str(layer)] = AttentionSelector(heads, config.selector_kernel)
        self.selectors.to(next(backbone.parameters()).device)
        self.register_state_dict_post_hook(_strip_backbone_prefix)
        self.register_load_state_dict_pre_hook(_add_backbone_prefix)
        # timm reads this from any model it wraps.
        self.feature_info = getattr(backbone, "feature_info", [])
        self.provenance = Provenance()

    # ------------------------------------------------------------------ forward

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, C, height, width): logits (B, num_classes), or pooled features without a head."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images (B, C, height, width) into final normalised tokens (B, N, D), in their original order."""
        return self.backbone.norm(self.run_layers(embed(self.backbone, images)).tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (B, N, D) and classify them, as the backbone does."""
        return self.backbone.forward_head(tokens, pre_logits=pre_logits)

    def forward_selection(self, images: Tensor) -> dict[int, Tensor]:
        """Which tokens each ToSA layer selects in images (B, C, height, width).

        Returns:
            Keep indices of each ToSA layer: (B, K), or (B, H, K) for per-head selection.
        """
        return self.run_layers(embed(self.backbone, images)).keep_indices

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
            embed(self.backbone, x), take={i + 1 for i in taken}, last=last + 1 if stop_early else None
        )
        features = [self.backbone.norm(tokens) if norm else tokens for tokens in outputs.intermediates]
        num_prefix = self.num_prefix_tokens
        prefixes = [tokens[:, :num_prefix] for tokens in features] if num_prefix else None
        spatial = [tokens[:, num_prefix:] for tokens in features]
        if output_fmt == "NCHW":
            grid = self.backbone.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))
            spatial = [tokens.transpose(1, 2).unflatten(2, grid).contiguous() for tokens in spatial]
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

    def run_layers(self, tokens: Tensor, take: Iterable[int] = (), last: int | None = None) -> LayerOutputs:
        """Run the layers on embedded tokens.

        Args:
            tokens: Tokens (B, N, D) that enter layer 1.
            take: Layers, numbered from 1, whose output is kept.
            last: Stop after this layer; None runs all.

        Returns:
            The final tokens, the outputs taken and the selections made.
        """
        outputs = LayerOutputs(tokens)
        feeding = {layer - 1 for layer in self.keep_rates} if self.config.reads_maps else set()
        take = frozenset(take)
        logits: Tensor | None = None
        for layer, block in enumerate(self.blocks[:last], start=1):
            if layer in self.keep_rates:
                keep_indices = self._select(layer, tokens, logits)
                tokens = self._run_tosa_layer(block, tokens, keep_indices)
                outputs.keep_indices[layer] = keep_indices
                logits = None
            elif layer in feeding:
                tokens, logits = self._run(partial(run_and_tap, block, query_rows=self.config.query_rows), tokens)
            else:
                tokens = self._run(block, tokens)
            if layer in take:
                outputs.intermediates.append(tokens)
        outputs.tokens = tokens
        return outputs

    @torch.no_grad()
    def _select(self, layer: int, tokens: Tensor, logits: Tensor | None) -> Tensor:
        """Keep indices (B, K) or (B, H, K) of a ToSA layer."""
        batch, length, _ = tokens.shape
        importance = self.importance(layer, logits)
        if importance is None:
            heads = num_heads(self.blocks[layer - 1])
            importance = torch.rand(batch, heads, length, device=tokens.device)
        if self.config.selection == "shared":
            importance = importance.sum(dim=1)
        kept = num_kept(length, self.keep_rates[layer], self.num_prefix_tokens)
        return choose_tokens(importance, kept, self.num_prefix_tokens)

    def importance(self, layer: int, logits: Tensor | None) -> Tensor | None:
        """Importance of each token to a ToSA layer, by head.

        Args:
            layer: The ToSA layer.
            logits: Scaled attention logits (B, H, M, N) of its feeding layer.

        Returns:
            Column sums (B, H, N) of the predicted maps, in float32; None if the selector reads no maps.
        """
        if logits is None:
            return None
        if str(layer) in self.selectors:
            return column_sum(self.selectors[str(layer)](logits).exp())
        return column_sum(logits.softmax(dim=-1, dtype=torch.float32))

    def _run_tosa_layer(self, block: nn.Module, tokens: Tensor, keep_indices: Tensor) -> Tensor:
        if self.config.selection == "per-head":
            return self._run(partial(run_block_per_head, block, keep_indices=keep_indices), tokens)
        selected = self._run(block, gather_tokens(tokens, keep_indices))
        return scatter_tokens(tokens, keep_indices, selected)

    def _run(self, layer: Callable[[Tensor], Any], tokens: Tensor) -> Any:
        """Run a layer, recomputing it in the backward pass where gradient checkpointing is on."""
        if self.backbone.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, tokens)
        return layer(tokens)

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
        tokens = embed(self.backbone, images)
        logits = {}
        for layer, block in enumerate(self.blocks[: max(wanted)], start=1):
            if layer in wanted:
                tokens, logits[layer] = run_and_tap(block, tokens, query_rows or self.config.query_rows)
            else:
                tokens = block(tokens)
        return logits

    # ------------------------------------------------------------------ parameters

    def selector_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `distill` trains and `finetune` freezes."""
        return self.selectors.parameters()

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `distill` freezes and `finetune` trains."""
        return self.backbone.parameters()

    # ------------------------------------------------------------------ timm's interface

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Image size, crop, mean, standard deviation, class names and license, as timm has them: the backbone's."""
        return self.backbone.pretrained_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        # timm sets it when it builds this model; the backbone keeps the name of its own architecture.
        architecture = self.backbone.pretrained_cfg.get("architecture")
        self.backbone.pretrained_cfg = {**cfg, "architecture": architecture}

    @property
    def blocks(self) -> nn.Sequential:
        """The backbone's transformer blocks."""
        return self.backbone.blocks

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class, distillation and register tokens."""
        return self.backbone.num_prefix_tokens

    @property
    def num_classes(self) -> int:
        """Number of classes of the head; 0 without a head."""
        return self.backbone.num_classes

    @property
    def num_features(self) -> int:
        """Width of the features that `forward_features` returns."""
        return self.backbone.num_features

    @property
    def embed_dim(self) -> int:
        """Width D of the tokens."""
        return self.backbone.embed_dim

    @property
    def head_hidden_size(self) -> int:
        """Width of the pooled features before the classifier."""
        return self.backbone.head_hidden_size

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.backbone.in_chans

    @property
    def patch_embed(self) -> nn.Module:
        """The backbone's patch embedding."""
        return self.backbone.patch_embed

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self.backbone.set_grad_checkpointing(enable)

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the image size (height, width) in pixels; position embeddings are resampled as timm does."""
        self.backbone.set_input_size(img_size=img_size, patch_size=patch_size)

    def get_classifier(self) -> Any:
        """The classifier head, or heads."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` classes."""
        self.backbone.reset_classifier(num_classes, global_pool)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last one asked for, with their selectors; indices count from 0 as in timm."""
        kept = self.backbone.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)
        for layer in [layer for layer in self.keep_rates if layer > len(self.blocks)]:
            del self.keep_rates[layer]
            if str(layer) in self.selectors:
                del self.selectors[str(layer)]
        return kept

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {_BACKBONE + name for name in self.backbone.no_weight_decay()}


def _strip_backbone_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    # On disk the backbone has timm's own key names, so that any timm tool reads them.
    for key in [key for key in state if key.startswith(prefix + _BACKBONE)]:
        state[prefix + key.removeprefix(prefix + _BACKBONE)] = state.pop(key)


def _add_backbone_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith("selectors."):
            state[prefix + _BACKBONE + name] = state.pop(key)
