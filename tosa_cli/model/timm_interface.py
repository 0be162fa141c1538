"""What timm and its users ask of any model, answered by the backbone."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from timm.layers import Format
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tosa_cli.model.dense_view import share, view_of
from tosa_cli.model.families import Backbone, Family, class_of, family_of_type
from tosa_cli.model.families.backbone import PatchEmbed
from tosa_cli.model.places import Places


def with_input_size(pretrained_cfg: dict[str, Any], model: "Backbone | TimmInterface") -> dict[str, Any]:
    """A `pretrained_cfg` with a model's own channels and image size, where they are not those of the source."""
    size = (model.in_chans, *model.patch_embed.img_size)
    if tuple(pretrained_cfg.get("input_size") or ()) == size:
        return pretrained_cfg
    # A larger size to test at was meant for the source's size.
    return {**pretrained_cfg, "input_size": size, "test_input_size": None, "pool_size": None}


class TimmInterface(nn.Module):
    """A timm ViT with a forward pass of its own: the ViT's own modules and parameters, under its own names.

    The class of such a model is made of this one and of the ViT's, so that all of timm's interface that is not written
    here is the ViT's own code, run on the new model, which names its weights and modules as the ViT does.

    Args:
        backbone: The ViT. Its modules and parameters are those of the new model too, its hooks are not.

    Attributes:
        added: Names of the modules that this model has beside the ViT's.
        made_of: The class of the model, as it is written, and the ViT's.
        added_args: Names of what timm builds this model from beside what it builds the ViT from.
    """

    added: ClassVar[tuple[str, ...]] = ()
    made_of: ClassVar[tuple[type[nn.Module], type[nn.Module]]]
    added_args: ClassVar[frozenset[str]] = frozenset()

    blocks: nn.Sequential
    norm: nn.Module
    patch_embed: PatchEmbed
    embed_dim: int
    num_prefix_tokens: int
    in_chans: int
    num_features: int
    head_hidden_size: int
    num_classes: int
    global_pool: str
    grad_checkpointing: bool
    feature_info: list[dict[str, Any]]
    forward_head: Callable[..., Tensor]
    get_classifier: Callable[[], Any]
    no_weight_decay: Callable[[], set[str]]
    reset_classifier: Callable[..., None]
    set_grad_checkpointing: Callable[..., None]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        kind: Any = type(self)
        self.__class__ = _joined(kind, class_of(backbone))  # type: ignore[assignment]
        share(backbone, self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A class that is made here cannot be looked up by its name.
        return _empty, self.made_of, {name: value for name, value in vars(self).items() if name != "_dense"}

    @property
    def backbone(self) -> Any:
        """The dense model: the ViT as it was, with the weights and the head that this model has now.

        It shares all modules and parameters with this model: what is put in their place, there or here, and a head or
        an image size that is changed there, is so here too. What changes here is seen when it is asked for anew.
        """
        dense = view_of(self, self.added)
        args = vars(self).get("_model_args", {})
        vars(dense)["_model_args"] = {name: value for name, value in args.items() if name not in self.added_args}
        return dense

    @property
    def family(self) -> Family:
        """What is known of backbones of this type."""
        return family_of_type(self.made_of[1])  # type: ignore[return-value]  # checked before the model was made

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Image size, crop, mean, standard deviation, class names and license, as timm has them: the backbone's."""
        return vars(self).get("pretrained_cfg", {})  # a backbone that was built by its class has none

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        # timm sets it when it builds this model, which keeps the name of its backbone's architecture.
        vars(self)["pretrained_cfg"] = {**cfg, "architecture": self.pretrained_cfg.get("architecture")}
        self.record_input_size()

    def record_input_size(self) -> None:
        """Put the model's own channels and image size into `pretrained_cfg`, where they are not those of the source.

        timm leaves the source's there, and resolves transforms from them where a model takes images of any size.
        """
        if self.pretrained_cfg:
            vars(self)["pretrained_cfg"] = with_input_size(self.pretrained_cfg, self)

    def embed(self, images: Tensor) -> tuple[Tensor, Places]:
        """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1, and say where they stand."""
        return self.family.embed(self, images)

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the image size (height, width) in pixels; position embeddings are resampled as timm does."""
        super().set_input_size(img_size=img_size, patch_size=patch_size)  # type: ignore[misc]
        self.record_input_size()


@functools.cache
def _joined(kind: type, source: type) -> type[nn.Module]:
    """The class of models of a kind around a ViT of another class; what both have is the kind's."""
    return type(kind.__name__, (kind, source), {"__module__": kind.__module__, "made_of": (kind, source)})


def _empty(kind: Any, source: Any) -> nn.Module:
    joined = _joined(kind, source)
    return joined.__new__(joined)


class FinetunableViT(TimmInterface):
    """A model around a timm ViT that `finetune` trains: the backbone, and the bypasses where there are any."""

    bypasses: nn.ModuleDict

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from other models around the same backbone, as plain JSON values."""
        raise NotImplementedError

    def run(self, layer: Callable[[Any], Any], tokens: Any) -> Any:
        """Run a layer on tokens (B, N, D), or on tokens taken apart; recomputed in the backward pass if asked for."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, tokens)
        return layer(tokens)


class LayersInterface(FinetunableViT):
    """A model that gives the tokens after chosen layers, in timm's form and in DINO's."""

    def run_layers(self, tokens: Tensor, places: Places, take: Iterable[int] = (), last: int | None = None) -> Any:
        """Run the layers on embedded tokens: an object with the final `tokens` and the `intermediates` taken."""
        raise NotImplementedError

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images (B, C, height, width)."""
        rows, columns = self.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
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
        outputs = self.run_layers(*self.embed(x), take={i + 1 for i in taken}, last=last + 1 if stop_early else None)
        features = [self.norm(tokens) if norm else tokens for tokens in outputs.intermediates]
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
                result["image_features"] = self.norm(outputs.tokens)
            return result
        listed: list[Any] = spatial
        if prefixes and return_prefix_tokens:
            listed = list(zip(spatial, prefixes, strict=True))
        return listed if intermediates_only else (self.norm(outputs.tokens), listed)

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
