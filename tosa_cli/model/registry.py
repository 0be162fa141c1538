"""The one generic entry point in timm's registry: `tosa_vit` rebuilds any converted model from its config.json."""

from typing import TYPE_CHECKING, Any

from timm.models import create_model, register_model
from timm.models._builder import build_model_with_cfg
from timm.models._features import FeatureHookNet
from torch import Tensor, nn

from tosa_cli.config import ARCHITECTURE, TosaConfig
from tosa_cli.task import PREDICTOR_ARCHITECTURE, TaskConfig

if TYPE_CHECKING:
    from tosa_cli.model.families import Backbone
    from tosa_cli.model.predictor import Predictor
    from tosa_cli.model.tosa_vit import TosaViT


def build(base_architecture: str, **model_args: Any) -> "TosaViT":
    """Build a ToSA model without its weights.

    Args:
        base_architecture: timm's name of the source architecture.
        model_args: Settings of `TosaConfig` by name, and `norm_eps` where it is not the architecture's own; the rest
            goes to timm's `create_model`.

    Raises:
        ConfigError: If a setting is wrong.
        UnsupportedModelError: If the architecture cannot be converted.
    """
    # Not at the top: this module is imported while timm is, which may be while `tosa_vit` is.
    from tosa_cli.model.tosa_vit import TosaViT

    names = TosaConfig.field_names()
    config = TosaConfig.from_dict({name: model_args.pop(name) for name in names if name in model_args})
    return TosaViT(build_backbone(base_architecture, **model_args), config)


def build_backbone(base_architecture: str, norm_eps: float | None = None, **model_args: Any) -> "Backbone":
    """Build a dense timm model without its weights.

    Args:
        base_architecture: timm's name of it.
        norm_eps: What its layer norms add to the variance; None is the architecture's own.
        model_args: For timm's `create_model`.
    """
    backbone: Any = create_model(base_architecture, pretrained=False, **model_args)
    if norm_eps is not None:
        set_norm_eps_(backbone, norm_eps)
    return backbone


def set_norm_eps_(model: Any, eps: float) -> None:
    """Set what every layer norm of a timm model adds to the variance, and note it on the model as `norm_eps`.

    timm has no such argument that JSON can hold, so whoever rebuilds the model has to set it again.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    model.norm_eps = eps


def build_predictor(base_architecture: str, **model_args: Any) -> "Predictor":
    """Build a predictor, encoder and decoder, without its weights.

    Args:
        base_architecture: timm's name of the encoder's source architecture.
        model_args: Settings of `TaskConfig` by name; of `TosaConfig`, if the encoder is converted; the rest goes to
            timm's `create_model`.

    Raises:
        ConfigError: If a setting is wrong.
        UnsupportedModelError: If the architecture cannot be converted.
    """
    from tosa_cli.model.predictor import Predictor

    names = TaskConfig.field_names()
    config = TaskConfig.from_dict({name: model_args.pop(name) for name in names if name in model_args})
    make = build if "layers" in model_args else build_backbone
    encoder: Any = make(base_architecture, **model_args)
    return Predictor(encoder, config)


class OutputHooks(FeatureHookNet):
    """timm's extractor of features by hooks: not on the blocks, of which some see selected tokens, but behind them."""

    def __init__(self, model: "TosaViT", *args: Any, **kwargs: Any) -> None:
        hooked = [{**info, "module": f"outputs.{layer}"} for layer, info in enumerate(model.feature_info, start=1)]
        model.feature_info = hooked
        super().__init__(model, *args, **kwargs)


@register_model
def tosa_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's entry point for converted models: `timm.create_model("hf-hub:org/name", pretrained=True)`."""
    if kwargs.get("feature_cls") in ("hook", FeatureHookNet):
        kwargs["feature_cls"] = OutputHooks
    return build_model_with_cfg(
        build,
        ARCHITECTURE,
        pretrained,
        pretrained_filter_fn=_fit_to_model,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def tosa_dense(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's entry point for predictors, encoder and decoder."""
    return build_model_with_cfg(
        build_predictor, PREDICTOR_ARCHITECTURE, pretrained, pretrained_filter_fn=_fit_to_predictor, **kwargs
    )


def _fit_to_model(state: dict[str, Tensor], model: "TosaViT") -> dict[str, Tensor]:
    return model.family.fit_checkpoint(state, model)


def _fit_to_predictor(state: dict[str, Tensor], model: "Predictor") -> dict[str, Tensor]:
    from tosa_cli.model.predictor import from_file_names

    return from_file_names(state)
