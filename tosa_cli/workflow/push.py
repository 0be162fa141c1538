"""`push`: a model folder goes to the Hugging Face Hub, with pictures of what the model computes beside its card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tosa_cli.data.photos import open_photo, photo_transform, read_photo, whole_photo_transform
from tosa_cli.draw.picture import make_picture, make_predicted_picture, require_matplotlib
from tosa_cli.hub.checkpoint import load
from tosa_cli.hub.kind import find_kind
from tosa_cli.hub.predictor import load_predictor
from tosa_cli.hub.push import PushPlan, PushReport, plan_push, push_folder
from tosa_cli.model.tosa_vit import TosaViT

MAX_LAYERS = 4
"""Layers that a picture of the card shows."""


def plan(folder: str | Path, repo_id: str, images: Sequence[Path] = ()) -> PushPlan:
    """List what of a model folder goes to the Hub.

    Args:
        folder: The model folder.
        repo_id: Where it goes, `namespace/name`.
        images: Photos on which the card shows what the model computes.

    Raises:
        CheckpointError: If the folder does not exist or holds no model.
        DataError: If a photo cannot be read.
        InputError: If the repository id is not valid, or matplotlib is not installed and there are photos.
    """
    planned = plan_push(Path(folder), repo_id)  # tells what is missing before pictures are drawn
    return plan_push(Path(folder), repo_id, draw_pictures(folder, images)) if images else planned


def push(
    folder: str | Path,
    repo_id: str,
    *,
    images: Sequence[Path] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite_card: bool | Callable[[str], bool] = False,
) -> PushReport:
    """Put a model folder into a repository of the Hub, in one commit.

    Args:
        folder: The model folder.
        repo_id: `namespace/name`; without a namespace, the user's own. It is made if it does not exist.
        images: Photos on which the card shows what the model computes.
        private: Whether the repository is to be private; None leaves it to the Hub's default, or as it is.
        revision: Branch to commit to; None is the main branch.
        create_pr: Open a pull request instead of committing.
        commit_message: First line of the commit.
        overwrite_card: Whether to replace another model card that the repository has; or what decides it, which is
            called with the repository's id.

    Raises:
        TosaError: If the folder holds no model, a photo cannot be read, or the Hub refuses or cannot be reached; the
            subclass and the message say which.
    """
    return push_folder(
        plan(folder, repo_id, images),
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        overwrite_card=overwrite_card,
    )


def draw_pictures(folder: str | Path, images: Sequence[Path]) -> dict[str, bytes]:
    """Draw what a model computes in some photos, by the names that the pictures go by in the repository.

    Raises:
        DataError: If a photo cannot be read.
        InputError: If matplotlib is not installed.
    """
    require_matplotlib()
    draw = _draw_with_decoder(folder) if find_kind(str(folder)) == "predictor" else _draw_converted(folder)
    names = ["selection.png", *(f"selection-{number}.png" for number in range(2, len(images) + 1))]
    return {name: draw(image) for name, image in zip(names, images, strict=True)}


def _draw_converted(folder: str | Path) -> Callable[[Path], bytes]:
    model = load(folder)
    transform = photo_transform(model)
    dense: Any = None if model.provenance.is_finetuned else model.backbone
    layers = evenly_spread(list(model.keep_rates), MAX_LAYERS)
    return lambda image: make_picture(model, read_photo(image, model, transform), dense, layers=layers).png


def _draw_with_decoder(folder: str | Path) -> Callable[[Path], bytes]:
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
