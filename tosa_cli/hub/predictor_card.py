"""The model card of a predictor."""

from typing import Any

from huggingface_hub import ModelCardData

from tosa_cli.hub.card import describe_base
from tosa_cli.hub.measured import describe_conditions, how_chosen
from tosa_cli.hub.public import how_to_load_predictor
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import command_of


def render_predictor_card(model: Predictor, name: str, *, pipeline: str, predicts: str, counted: str) -> str:
    """Render the model card: what it predicts, how it was made, what was measured, how to load it.

    Args:
        model: The predictor; its provenance tells what was done and measured.
        name: Name of the model.
        pipeline: What the Hub calls its task.
        predicts: What it predicts, in words.
        counted: What of the maps `tosa eval` measured, as a sentence; empty if all was.

    Returns:
        Markdown with the Hub's metadata in front.
    """
    provenance, config = model.provenance, model.config
    metadata = ModelCardData(
        license=provenance.license,
        library_name="tosa",
        tags=["tosa", "vision-transformer", config.task],
        pipeline_tag=pipeline,
        base_model=provenance.base_hub_id,
        base_model_relation="finetune" if provenance.base_hub_id else None,
    )
    converted = isinstance(model.encoder, TosaViT)
    kind = "a [ToSA](https://arxiv.org/abs/2406.08816) encoder" if converted else "a dense encoder"
    height, width = model.img_size
    sections = [
        f"# {name}",
        f"{predicts[0].upper()}{predicts[1:]} for every pixel: {kind} made from {describe_base(provenance)}, with the "
        f"decoder `{config.decoder}`, trained on images of {height}x{width} pixels.",
        _measured(provenance.results, counted),
        "## How it was made\n\n`recipe.yaml` has every step with its settings: "
        + ", ".join(f"`tosa {command_of(step)}`" for step in provenance.steps)
        + ".",
        how_to_load_predictor(name),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def _measured(results: Any, counted: str) -> str:
    rows = [
        f"| `tosa {command}` | {key} | {value:.4f} |"
        for command, figures in results.items()
        for key, value in figures.items()
        if isinstance(value, float)
    ]
    if not rows:
        return ""
    chosen = how_chosen(results.get("finetune") or {})
    sections = [
        "## Measured",
        f"`tosa finetune`, on held-out images: {chosen}" if chosen else "",
        f"`tosa eval`: {_conditions(results['eval'], counted)}" if results.get("eval") else "",
        "| by | figure | value |\n|---|---|---|\n" + "\n".join(rows),
    ]
    return "\n\n".join(section for section in sections if section)


def _conditions(measured: Any, counted: str) -> str:
    flipped = "Each map is averaged with that of the mirrored image." if measured.get("flip") else ""
    return " ".join(said for said in (describe_conditions(measured), counted, flipped) if said)
