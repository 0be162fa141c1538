"""What timm and its users ask of any model, answered by the backbone."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from timm.layers import Format
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tosa_cli.model.families import Backbone, Family, family_of
from tosa_cli.model.families.backbone import PatchEmbed
from tosa_cli.model.places import Places


def class_names(model: Any) -> list[str]:
    """Names of a timm model's classes in the order of its outputs, from its `pretrained_cfg`; empty without any."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if not isinstance(names, (list, tuple)) or len(names) != model.num_classes:
        return []
    return [str(name) for name in names]


class TimmInterface(nn.Module):
    """A model around a timm ViT that answers timm's questions as that ViT does."""

    backbone: Backbone

    @property
    def family(self) -> Family:
        """What is known of backbones of this type."""
        return family_of(self.backbone)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Image size, crop, mean, standard deviation, class names and license, as timm has them: the backbone's."""
        return self.backbone.pretrained_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        # timm sets it when it builds this model; the backbone keeps the name of its own architecture.
        architecture = self.backbone.pretrained_cfg.get("architecture")
        self.backbone.pretrained_cfg = {**cfg, "architecture": architecture}
        self.record_input_size()

    def record_input_size(self) -> None:
        """Put the model's own channels and image size into `pretrained_cfg`, where they are not those of the source.

        timm leaves the source's there, and resolves transforms from them where a model takes images of any size.
        """
        cfg = getattr(self.backbone, "pretrained_cfg", None)  # a backbone that was built by its class has none
        size = (self.in_chans, *self.patch_embed.img_size)
        if cfg is not None and tuple(cfg.get("input_size") or ()) != size:
            # A larger size to test at was meant for the source's size.
            self.backbone.pretrained_cfg = {**cfg, "input_size": size, "test_input_size": None, "pool_size": None}

    @property
    def _traits(self) -> dict[str, Any]:
        # Image size and channels that timm resolves transforms from, and that change with `set_input_size`.
        return getattr(self.backbone, "_traits", {})

    @_traits.setter
    def _traits(self, traits: dict[str, Any]) -> None:
        self.backbone._traits = traits  # type: ignore[attr-defined]

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
    def patch_embed(self) -> PatchEmbed:
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
        self.record_input_size()

    def get_classifier(self) -> Any:
        """The classifier head, or heads."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` classes."""
        self.backbone.reset_classifier(num_classes, global_pool)


class FinetunableViT(TimmInterface):
    """A model around a timm ViT that `finetune` trains: the backbone, and the bypasses where there are any."""

    bypasses: nn.ModuleDict

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from other models around the same backbone, as plain JSON values."""
        raise NotImplementedError

    def run(self, layer: Callable[[Any], Any], tokens: Any) -> Any:
        """Run a layer on tokens (B, N, D), or on tokens taken apart; recomputed in the backward pass if asked for."""
        if self.backbone.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, tokens)
        return layer(tokens)


class LayersInterface(FinetunableViT):
    """A model that gives the tokens after chosen layers, in timm's form and in DINO's."""

    def run_layers(self, tokens: Tensor, places: Places, take: Iterable[int] = (), last: int | None = None) -> Any:
        """Run the layers on embedded tokens: an object with the final `tokens` and the `intermediates` taken."""
        raise NotImplementedError

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
            *self.family.embed(self.backbone, x), take={i + 1 for i in taken}, last=last + 1 if stop_early else None
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


def name_weights_as(model: nn.Module, part: str, added: tuple[str, ...]) -> None:
    """Have the state dict of a model name the weights of one part as that part does, so that any timm tool reads them.

    Args:
        model: The model.
        part: What stands before the names of the part's weights in the model, as `backbone.`.
        added: Beginnings of the names of all other weights, which stay.
    """
    model.register_state_dict_post_hook(partial(_strip_part, part=part))
    model.register_load_state_dict_pre_hook(partial(_add_part, part=part, added=added))


def _strip_part(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any, *, part: str) -> None:
    for key in [key for key in state if key.startswith(prefix + part)]:
        state[prefix + key.removeprefix(prefix + part)] = state.pop(key)


def _add_part(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any, part: str, added: tuple[str, ...]
) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith(added):
            state[prefix + part + name] = state.pop(key)
