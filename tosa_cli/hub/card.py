"""The model card: how the model was made, how to load it, and measured numbers only."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.data import resolve_data_config

from tosa_cli.hub.measured import describe_search, describe_selectors
from tosa_cli.hub.original import has_random_source
from tosa_cli.hub.public import how_to_load, without_paths
from tosa_cli.methods import SELECTORS
from tosa_cli.model.class_names import class_names
from tosa_cli.model.flops import count_flops
from tosa_cli.model.flops_report import FlopsReport
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance
from tosa_cli.recipe import command_lines

MAX_CLASSES = 20
"""So many class names are shown."""

SOURCE, OWN_WEIGHTS = "the source model's", "those of the same weights with every token computed"
"""Whose final tokens a model's are compared with."""


def render_card(model: TosaViT, name: str, measured: Sequence[str] = (), published: Sequence[EvalResult] = ()) -> str:
    """Render the model card of a converted model.

    Args:
        model: The model; its provenance tells what was done.
        name: Name of the model.
        measured: What its tasks say of what was measured.
        published: What the Hub's tables are told of it.

    Returns:
        Markdown with the Hub's metadata in front.
    """
    flops = count_flops(model, name=name)
    sections = [
        f"# {name}",
        _summary(model, flops),
        _settings_table(model),
        _cost_table(flops),
        _images(model),
        _classes(model),
        _measured(model.provenance, measured),
        _how_made(model),
        how_to_load(name),
        _limits(model),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{_metadata(model, name, published).to_yaml()}\n---\n\n{body}\n"


def why_unpublished(model: TosaViT, measured: Mapping[str, Any]) -> str | None:
    """Why an accuracy is not told to the Hub, whose tables show no conditions; None if it is.

    Args:
        model: The model.
        measured: What `tosa eval` reported of it.
    """
    total, left_out = measured.get("dataset_samples"), measured.get("skipped") or 0
    if total is not None and measured["samples"] + left_out < total:
        return "it was measured on part of the data"
    own = list(model.patch_embed.img_size)
    if list(measured.get("img_size") or own) != own:
        return f"it was measured at another image size than the model's {own[0]}x{own[1]}"
    return None


def describe_base(provenance: Provenance) -> str:
    """What a model was made from, in Markdown."""
    base = f"`{provenance.base_model}`"
    if has_random_source(provenance):
        return f"the architecture {base} with random weights"
    if not provenance.base_hub_id:
        return base
    commit = f"/tree/{provenance.base_revision}" if provenance.base_revision else ""
    return f"[{base}](https://huggingface.co/{provenance.base_hub_id}{commit})"


def _metadata(model: TosaViT, name: str, published: Sequence[EvalResult]) -> ModelCardData:
    provenance = model.provenance
    return ModelCardData(
        license=provenance.license,
        library_name="tosa",
        tags=["tosa", "vision-transformer", "token-selection"],
        pipeline_tag="image-classification" if model.num_classes else "image-feature-extraction",
        base_model=provenance.base_hub_id,
        base_model_relation="finetune" if provenance.base_hub_id else None,
        model_name=name if published else None,
        eval_results=list(published) or None,
        ignore_metadata_errors=False,
    )


def _summary(model: TosaViT, flops: FlopsReport) -> str:
    provenance = model.provenance
    return (
        f"A [ToSA](https://arxiv.org/abs/2406.08816) model made from {describe_base(provenance)}. In its ToSA layers "
        f"only selected tokens are computed and the others bypass the layer; every token is still there at the end, so "
        f"the model serves depth and segmentation too. It takes {flops.gmacs:.3f} GMACs for an image of "
        f"{flops.img_size[0]}x{flops.img_size[1]} pixels, against {flops.dense_gmacs:.3f} of its source "
        f"({flops.reduction:.1%} less). {_done(model)}"
    )


def _done(model: TosaViT) -> str:
    provenance = model.provenance
    distilled: Any = provenance.results.get("distill") or {}
    if distilled.get("fit_kept") is False:
        unfitted = "What selects and bypasses is as it was before `tosa distill`"
        if SELECTORS[model.config.selector].is_trained:
            unfitted = "The selectors are trained, and the bypass is as it was before `tosa distill`"
        backbone = "the backbone was finetuned before" if provenance.is_finetuned else "the backbone is the source's"
        return f"{unfitted}, whose fit was not kept; {backbone}."
    if provenance.is_finetuned and provenance.stage == "distilled":
        return "The backbone was finetuned, and what selects and bypasses was trained or fitted after it."
    if provenance.is_finetuned:
        return "What selects was frozen, and the backbone was finetuned."
    if provenance.is_distilled:
        return "What selects and bypasses is trained or fitted; the backbone's weights are the source's."
    if not model.config.needs_distill:
        return "Nothing of it needs to be trained or fitted; the weights are the source's."
    return "Nothing of it is trained or fitted yet."


def _settings_table(model: TosaViT) -> str:
    unread = model.config.unread
    rows = [f"| {key} | {_show(value)} |" for key, value in model.config.to_dict().items() if key not in unread]
    return "## Settings\n\n| setting | value |\n|---|---|\n" + "\n".join(rows)


def _cost_table(flops: FlopsReport) -> str:
    rows = [
        f"| {layer.layer} | {layer.kind} | {layer.kept} of {layer.tokens} | {layer.macs / 1e6:.1f} | "
        f"{layer.selector_macs / 1e6:.2f} | {layer.bypass_macs / 1e6:.2f} |"
        for layer in flops.layers
    ]
    return (
        "## Cost\n\nMACs (multiply-accumulates) of one image, in millions; FLOPs = 2 * MACs.\n\n"
        "| layer | kind | tokens computed | MACs | selector | bypass |\n|---|---|---|---|---|---|\n" + "\n".join(rows)
    )


def _images(model: TosaViT) -> str:
    config = resolve_data_config(model=model)
    mean, std = (", ".join(f"{value:g}" for value in config[name]) for name in ("mean", "std"))
    return (
        f"## Images\n\nPixels from 0 to 1, less the mean {mean}, divided by {std}; brought to size by "
        f"{config['interpolation']} filtering, of which evaluation sees the share {config['crop_pct']:g} of each side. "
        f"`pretrained_cfg` in `config.json` has it."
    )


def _classes(model: TosaViT) -> str:
    names = class_names(model)
    if not names:
        return ""
    shown = ", ".join(f"`{name}`" for name in names[:MAX_CLASSES])
    more = f" and {len(names) - MAX_CLASSES} more, all under" if len(names) > MAX_CLASSES else ", under"
    return f"## Classes\n\n{shown}{more} `label_names` in `config.json`."


def _measured(provenance: Provenance, measured: Sequence[str]) -> str:
    distilled: Any = provenance.results.get("distill") or {}
    selectors = [describe_selectors(distilled)] if "layers" in distilled else []
    budget: Any = provenance.results.get("budget") or {}
    rates = [describe_search(budget["search"])] if "search" in budget else []
    parts = [*rates, *selectors, *measured]
    return "## Measured\n\n" + "\n\n".join(parts) if parts else ""


def _how_made(model: TosaViT) -> str:
    commands = command_lines(without_paths(model.provenance.steps, model.provenance.base_hub_id))
    if not commands:
        return ""
    return (
        "## How it was made\n\n```console\n"
        + "\n".join(f"$ {command}" for command in commands)
        + "\n```\n\n`recipe.yaml` has every setting as data, with the versions of the packages."
    )


def _limits(model: TosaViT) -> str:
    warning = (
        "The source's limits hold here too. Which tokens are computed depends on the image; how many does not. "
        "Figures hold for the data and the machine they were measured on. "
    )
    if not model.provenance.is_finetuned:
        warning += "The backbone was not finetuned: expect a loss of accuracy, and measure it on your task."
    return "## Limits\n\n" + warning


def _show(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
