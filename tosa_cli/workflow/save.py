"""Writing a model: its folder, with a card of what its tasks measured."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from tosa_cli.errors import OutputError
from tosa_cli.hub import card
from tosa_cli.hub.checkpoint import describe, write_model
from tosa_cli.hub.predictor import describe_predictor
from tosa_cli.hub.predictor_card import render_predictor_card
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance
from tosa_cli.tasks.registry import PREDICTOR_TASKS, TOKENS_TASKS


def save(model: TosaViT | Predictor, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model folder: weights, configuration, model card and recipe. It appears whole or not at all.

    Args:
        model: The model.
        folder: Where to.
        overwrite: Replace a model folder that exists.

    Returns:
        The folder.

    Raises:
        OutputError: If it exists and may not be overwritten, or cannot be written, or the model was pruned, built
            from something that JSON does not hold, or not built by a timm name.
    """
    if isinstance(model, Predictor):
        return write_model(model, Path(folder), describe_predictor, render_card, overwrite)
    if len(model.keep_rates) != len(model.config.layers):
        raise OutputError("The model's layers were pruned, and a pruned model cannot be saved: save it before pruning.")
    return write_model(model, Path(folder), describe, render_card, overwrite)


def render_card(model: TosaViT | Predictor, name: str) -> str:
    """Render the card of a model of that name, with what its tasks say of what was measured.

    Returns:
        Markdown with the Hub's metadata in front.
    """
    results: Any = model.provenance.results
    measured = results.get("eval")
    if isinstance(model, Predictor):
        task = PREDICTOR_TASKS[model.config.task]
        return render_predictor_card(
            model,
            name,
            pipeline=task.pipeline,
            predicts=task.predicts(model.config),
            counted=task.counted_on_card(measured) if measured else "",
        )
    sections = _changes(model.provenance)
    published: list[EvalResult] = []
    if measured:
        done = TOKENS_TASKS[measured.get("task", "classification")]
        sections.append(done.measured_section(measured))
        if not card.why_unpublished(model, measured):
            published = done.published(measured)
    return card.render_card(model, name, sections, published)


def _changes(provenance: Provenance) -> list[str]:
    """What the tasks say of the figures before and after training."""
    # Finetuning learns from the source; what selects and bypasses learns from the backbone as it is by then.
    of_distill = card.OWN_WEIGHTS if provenance.is_finetuned else card.SOURCE
    return [
        section
        for command, whose in (("distill", of_distill), ("finetune", card.SOURCE))
        for task in TOKENS_TASKS.values()
        if (section := task.change_section(command, provenance.results.get(command) or {}, whose))
    ]
