"""A dense timm model from what describes it and its weights: at the size that these are for, and strictly."""

from typing import Any

from tosa_cli.errors import TosaError, UnsupportedModelError
from tosa_cli.hub.architectures import plan_model, unwrap_model
from tosa_cli.hub.files import Files
from tosa_cli.hub.image_processor import pretrained_cfg
from tosa_cli.hub.positions import check_patches, own_size
from tosa_cli.hub.state_dict import to_timm
from tosa_cli.hub.timm_models import build, build_planned
from tosa_cli.hub.weight_sets import WeightSet
from tosa_cli.hub.weights import check_floats, load_weights, read_parts, weights_error
from tosa_cli.hub.whole_names import own_names
from tosa_cli.model.families import Backbone
from tosa_cli.model.registry import set_norm_eps_


def build_with_weights(
    name: str, architecture: str, shown: str, weights: WeightSet | None, args: dict[str, Any], **own: Any
) -> tuple[Backbone, tuple[str, ...]]:
    """Build a model at the size that its weights are for, unless another was asked for, and load them.

    Args:
        name: timm's name of what is built.
        architecture: timm's name of the architecture.
        shown: What the source is called.
        weights: The weights; None leaves them random.
        args: What was asked for, for timm's `create_model`.
        own: What else of these the weights tell.

    Returns:
        The model, in evaluation mode, and what the user should know about how its weights were read.
    """
    planned = build_planned(name, shown, args, own)
    if weights is None:
        return build(name, shown, False, {**args, **own}).eval(), ()
    check_patches(weights.tensors, planned, shown, architecture)
    size, note = own_size(weights.tensors, planned, args["img_size"], shown)
    if args["img_size"] is None and size != tuple(planned.patch_embed.img_size):
        own["img_size"] = size
    model = build(name, shown, False, {**args, **own}).eval()
    load_weights(model, weights, shown, args["num_classes"], size)
    return model, (*weights.notes(shown), *filter(None, [note]))


def build_wrapped(
    config: dict[str, Any], files: Files, weights_key: str | None, pretrained: bool, args: dict[str, Any]
) -> tuple[Backbone, tuple[str, ...]]:
    """Build a timm model that transformers saved in its `TimmWrapper`: the model and notes."""
    (own, cfg), weights = unwrap_model(config, files), None
    if pretrained:
        weights = read_parts(lambda: files.weights(lambda _: False), weights_key, files.shown)
    if args["num_classes"] is not None:
        own["num_classes"] = args["num_classes"]
    model, notes = build_with_weights(config["architecture"], config["architecture"], files.shown, weights, args, **own)
    model.pretrained_cfg = cfg
    return model, notes


def build_from_transformers(
    config: dict[str, Any], files: Files, pretrained: bool, args: dict[str, Any]
) -> tuple[Backbone, str, tuple[str, ...]]:
    """Build the timm model for a checkpoint in transformers' format: model, timm's name, notes."""
    shown, plan = files.shown, plan_model(config, files.shown)
    if plan.refused and args["num_classes"] is None:
        raise UnsupportedModelError(
            f"{shown} cannot be converted with its head: {plan.refused}. Pass --num-classes 0 to convert it without, "
            f"or the number of classes of a new one."
        )
    own = build_planned(plan.architecture, shown, args, plan.args)
    cfg, notes = pretrained_cfg(plan, own, files, size_is_asked=args["img_size"] is not None)
    asked = {name: value for name, value in args.items() if value is not None}
    model: Backbone = build(plan.architecture, shown, False, {**plan.args, **asked, "pretrained_cfg": cfg}).eval()
    first: Any = model.blocks[0]
    if first.norm1.eps != plan.norm_eps:
        set_norm_eps_(model, plan.norm_eps)
    if pretrained:
        naming = plan.family.naming
        try:
            held = files.weights(lambda key: naming.drops(key, plan.dropped))
            named = own_names(held, naming.parts, shown)
        except TosaError:
            raise
        except Exception as error:
            raise weights_error(error, shown) from error
        state = {name: tensor for name, (_, tensor) in named.items() if not naming.drops(name, plan.dropped)}
        check_floats(state, lambda name: named[name][0], shown)  # joined with others they would become such
        state = to_timm(state, naming, own.state_dict(), shown, plan.dropped)
        # Position embeddings of another image size are resampled as transformers does it.
        height, width = own.patch_embed.img_size
        load_weights(model, WeightSet(state), shown, args["num_classes"], (height, width), plan.family.antialias)
    return model, plan.architecture, notes
