"""`tosa eval`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tosa_cli.cli import console, whole
from tosa_cli.cli.options import JsonOption, ModelArgument, resolve_model, with_settings
from tosa_cli.errors import InputError
from tosa_cli.measure.config import EvalConfig


@with_settings(EvalConfig)
def evaluate(
    settings: dict[str, Any],
    model: ModelArgument = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the result into the model's folder.")
    ] = False,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Of a whole model that reads texts as well, as CLIP does: what it is asked, with commas.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure a model: top-1 and top-5 accuracy, GMACs and images a second.

    A model without a head is measured by the cosine of its final tokens to the dense model's, which needs no labels.
    One with a decoder is measured by the errors of its depth maps, or by the mean intersection over union. A whole
    model of transformers is measured by how near its outputs are to those with every token computed; one that was
    finetuned, to its source's.

    --compare sets the dense source beside the model. Where the source is none, as for a decoder or, once it is
    finetuned, for a new head or weights that started at random, it is the same weights with every token computed.
    """
    name = resolve_model(model)
    config = EvalConfig.from_dict(settings)
    folder = Path(name.removeprefix("local-dir:"))
    if update_card and not folder.is_dir():
        raise InputError(f"{name} is not a local folder, so its card cannot be updated: leave out --update-card.")
    if whole.is_whole(name):
        asked = [text.strip() for text in (texts or "").split(",") if text.strip()]
        whole.evaluate(name, settings, asked, update_card, json)
        return
    if texts is not None:
        raise InputError(f"{name} reads no text: leave out --texts.")
    if update_card and config.selector == "oracle":
        raise InputError("What the oracle reaches is not the model's own result: leave out --update-card.")

    from tosa_cli.hub.writing import alone
    from tosa_cli.workflow.evaluate import evaluate as run
    from tosa_cli.workflow.evaluate import record

    # Measured and written by one run: another one would put other weights under these figures.
    with alone(folder) if update_card else nullcontext():
        report = run(name, config=config, listener=console)
        if json:
            console.print_json(report.to_dict())
        else:
            table = report.table
            console.print_table(table.title, table.columns, table.rows)
            console.say(report.conditions)
        if update_card:
            record(report, folder, console)
