"""timm's models by name: what a name stands for, whether it can be converted, and why timm does not build it."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from safetensors import SafetensorError

from tosa_cli.errors import CheckpointError, SourceError, TosaError
from tosa_cli.hub.download import check_available
from tosa_cli.hub.errors import explain_hub_error
from tosa_cli.hub.folder import WEIGHTS
from tosa_cli.hub.weights import weights_error
from tosa_cli.model.families import FAMILIES, Backbone, check_supported, family_of
from tosa_cli.model.meta import create_on_meta


def resolve_name(name: str) -> str:
    """Complete a short timm name.

    Raises:
        SourceError: If timm knows no such model; names the nearest ones.
    """
    base = name.partition(".")[0]
    if timm.is_model(base):
        return name
    for template in (template for family in FAMILIES for template in family.short_names):
        for short in (name, name.removeprefix("dinov2_")):
            if timm.is_model(template.format(short)):
                return template.format(short)
    modules = [module for family in FAMILIES for module in family.modules]
    known = [name for module in modules for name in timm.list_models(module=module)]
    known += sorted({model.removesuffix("_patch16_224") for model in known if model.endswith("_patch16_224")})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["deit_tiny_patch16_224"]
    raise SourceError(f"timm knows no model {name!r}. Did you mean {' or '.join(near)}?")


def create(name: str, source: str, pretrained: bool, args: dict[str, Any]) -> Backbone:
    """Build a model, in evaluation mode, once it is known that it can be converted and that its weights can be had.

    Args:
        name: timm's name of it.
        source: The source as the user named it.
        pretrained: Load its weights.
        args: For timm's `create_model`.

    Raises:
        TosaError: If it cannot be converted, found or read.
    """
    # Refuse what cannot be converted before its weights are downloaded.
    planned = build_planned(name, source, args)
    cfg = planned.pretrained_cfg
    if pretrained and cfg.get("hf_hub_id"):
        check_available(cfg["hf_hub_id"], weights_names(cfg), source)
    return build(name, source, pretrained, args).eval()


def weights_names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Files of a repository on the Hub that timm takes the weights of a model from, the likeliest first."""
    return (cfg.get("hf_hub_filename") or WEIGHTS, "pytorch_model.bin")


def build_planned(name: str, source: str, args: dict[str, Any], own: dict[str, Any] | None = None) -> Backbone:
    """The source as it would be built, without its weights: checked for what can be converted, and at what size."""
    planned = build(name, source, False, own or {}, is_plan=True)
    check_supported(planned)
    if args["img_size"] is not None:
        family_of(planned).check_img_size(planned, args["img_size"])
    return planned


def build(name: str, source: str, pretrained: bool, args: dict[str, Any], is_plan: bool = False) -> Backbone:
    """Build a model as timm does, and say in a sentence why where that fails; the arguments are those of `create`.

    As a plan it is built on the meta device.
    """
    try:
        model: Any = create_on_meta(name, args) if is_plan else timm.create_model(name, pretrained=pretrained, **args)
        return model
    except Exception as error:
        raise _explain(error, name, source) from error


def _explain(error: Exception, name: str, source: str) -> TosaError:
    text = str(error)
    if isinstance(error, TosaError):
        return error
    if "pretrained tag" in text:
        return SourceError(f"timm has no such weights of {source} ({text}) Leave the tag out to take the default ones.")
    if "No pretrained weights exist" in text:
        return SourceError(f"timm has no pretrained weights of {source}. Pass --no-pretrained, or name a weights file.")
    if "Unknown model" in text:
        return CheckpointError(f"{source} names an architecture that timm does not know ({text}): update timm.")
    if isinstance(error, TypeError) and "device" in text:
        return SourceError(
            f"{source} cannot be converted: timm builds it in a way of its own. Type `tosa list` to see what can be."
        )
    if isinstance(error, (RuntimeError, SafetensorError)) and not _is_network(error):
        return weights_error(error, source)
    if isinstance(error, (KeyError, AttributeError, TypeError, AssertionError)):
        return CheckpointError(
            f"{source} has a configuration of the wrong shape ({type(error).__name__}: {text}): correct its "
            f"config.json."
        )
    return explain_hub_error(error, source)


def _is_network(error: BaseException) -> bool:
    module = type(error).__module__
    return module.startswith(("huggingface_hub", "httpx", "requests", "urllib"))
