"""`tosa push`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import JsonOption, resolve_model
from tosa_cli.errors import InputError

MAX_LAYERS = 4
"""Layers that a picture of the card shows."""


def push(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] REPO_ID",
            help="The model folder (default: the last one converted here), and where it goes: org/name.",
            show_default=False,
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Make a new repository private or public.", show_default=False),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.", show_default=False)] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of pushing.")] = False,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            help="Photo on which the card shows what the model computes; may be given again.",
            show_default=False,
        ),
    ] = None,
    overwrite_card: Annotated[
        bool | None,
        typer.Option(
            "--overwrite-card/--keep-card",
            "--yes",
            "-y",
            help="Replace another model card that the repository has, or keep it. [default: ask, and keep it where "
            "there is no terminal]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up, with sizes.")] = False,
    json: JsonOption = False,
) -> None:
    """Push a model folder to the Hugging Face Hub, in one commit."""
    if len(names) > 2:
        raise InputError(f"Too many names: pass a model folder and a repository, not {' '.join(names)}.")
    repo_id = names[-1]
    folder = resolve_model(names[0] if len(names) == 2 else None)

    from tosa_cli.hub.push import plan_push, push_folder

    plan_push(Path(folder), repo_id)  # tells what is missing before pictures are drawn
    plan = plan_push(Path(folder), repo_id, draw_pictures(folder, images) if images else None)
    if dry_run:
        if json:
            console.print_json(
                {
                    "repo_id": repo_id,
                    "total_bytes": plan.total_bytes,
                    "files": [{"name": file.name, "size_bytes": file.size_bytes} for file in plan.files],
                }
            )
            return
        console.print_table(
            f"{folder} would go to {repo_id}",
            ["file", "bytes"],
            [[file.name, f"{file.size_bytes:,}"] for file in plan.files],
        )
        console.say(f"Dry run: nothing was pushed ({plan.total_bytes / 1e6:.1f} MB).")
        return
    report = push_folder(
        plan,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        overwrite_card=_may_overwrite if overwrite_card is None else overwrite_card,
    )
    if report.card_kept:
        console.warn(
            f"{repo_id} keeps the model card that it has, and the new one was not pushed: pass --overwrite-card to "
            f"replace it."
        )
    if json:
        console.print_json(
            {
                "repo_url": report.repo_url,
                "commit_url": report.commit_url,
                "pr_url": report.pr_url,
                "oid": report.oid,
                "changed": report.changed,
                "card_kept": report.card_kept,
            }
        )
        return
    if not report.changed:
        console.say(f"{repo_id} already holds these files: nothing was pushed.")
    console.print_line(report.pr_url or report.commit_url)
    console.next_command("python", "-c", f'import tosa_cli; tosa_cli.load("{repo_id}")')


def draw_pictures(folder: str, images: Sequence[Path]) -> dict[str, bytes]:
    """Draw what a model computes in some photos, by the names that the pictures go by in the repository.

    Raises:
        DataError: If a photo cannot be read.
        InputError: If matplotlib is not installed.
    """
    from tosa_cli.draw.selection_figure import require_matplotlib
    from tosa_cli.hub.predictor import is_predictor

    require_matplotlib()
    draw = _draw_with_decoder(folder) if is_predictor(folder) else _draw_converted(folder)
    names = ["selection.png", *(f"selection-{number}.png" for number in range(2, len(images) + 1))]
    return {name: draw(image) for name, image in zip(names, images, strict=True)}


def _draw_converted(folder: str) -> Callable[[Path], bytes]:
    from tosa_cli.data.photos import photo_transform, read_photo
    from tosa_cli.draw.picture import make_picture
    from tosa_cli.hub.checkpoint import load

    model = load(folder)
    transform = photo_transform(model)
    dense: Any = None if model.provenance.is_finetuned else model.backbone
    layers = evenly_spread(list(model.keep_rates), MAX_LAYERS)
    return lambda image: make_picture(model, read_photo(image, model, transform), dense, layers=layers).png


def _draw_with_decoder(folder: str) -> Callable[[Path], bytes]:
    from tosa_cli.data.photos import open_photo, whole_photo_transform
    from tosa_cli.draw.picture import make_predicted_picture
    from tosa_cli.hub.predictor import load_predictor
    from tosa_cli.model.tosa_vit import TosaViT

    model = load_predictor(folder)
    transform = whole_photo_transform(model)
    converted = isinstance(model.encoder, TosaViT)
    layers = evenly_spread(list(model.encoder.keep_rates), MAX_LAYERS) if converted else None

    def draw(image: Path) -> bytes:
        photo = open_photo(image, model)
        ratio = photo.height / photo.width
        return make_predicted_picture(model, transform(photo)[None], layers=layers, ratio=ratio).png

    return draw


def evenly_spread(layers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the layers, evenly spread, the first and the last among them."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def _may_overwrite(repo_id: str) -> bool:
    return console.can_ask() and console.ask(f"{repo_id} already has another model card. Replace it?")
