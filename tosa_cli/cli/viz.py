"""`tosa viz`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, resolve_model
from tosa_cli.cli.viz_subjects import COSINES, Subject, figures_of, load_subject, report_picture
from tosa_cli.data.images import IMAGE_SUFFIXES, read_img_size
from tosa_cli.errors import ConfigError, DataError, InputError, OutputError
from tosa_cli.hub.names import stem_of
from tosa_cli.progress import counted, figure

if TYPE_CHECKING:
    from tosa_cli.draw.picture import Picture

PAGE = "index.html"


@dataclass(frozen=True)
class Target:
    """Where pictures go.

    Attributes:
        pictures: The PNG of each image.
        page: The HTML page; None for a single image.
    """

    pictures: dict[Path, Path]
    page: Path | None


def viz(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] IMAGE...",
            help="The model (default: the last one converted here), then images or folders of them.",
            show_default=False,
        ),
    ],
    layers: Annotated[
        str | None, typer.Option(help="ToSA layers to draw, as in 2,6,10. [default: all]", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="PNG to write for one image; folder to write for several.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Set the final tokens beside the dense source model's; with a decoder, tokens and prediction beside "
            "those with every token computed. [default: where the source can be loaded]",
            show_default=False,
        ),
    ] = None,
    img_size: ImgSizeOption = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures that exist.")] = False,
    json: JsonOption = False,
) -> None:
    """Draw which patches each ToSA layer computed and which it skipped, with the scores, as in the paper's Fig. 4.

    Of a model with a decoder the depth or the classes that it predicts are drawn as well, and of a whole model what
    comes out, beside the same with every token computed. Writes a PNG for each image,
    and for several one HTML page that holds all of them.
    """
    model_name, paths = split_names(names)
    wanted = parse_numbers(layers)
    size = read_img_size(img_size)
    name = resolve_model(model_name)

    from tosa_cli.data.photos import find_photos
    from tosa_cli.draw.selection_figure import require_matplotlib
    from tosa_cli.hub.kind import find_kind
    from tosa_cli.hub.writing import write_file, write_parts

    require_matplotlib()
    photos = find_photos(paths)
    ending = {"predictor": "maps", "whole": "outputs"}.get(find_kind(name) or "", "selection")
    target = plan_output(photos, any(path.is_dir() for path in paths), output, name, ending, overwrite)
    subject = load_subject(name, wanted, size, compare, device)
    reports: list[dict[str, Any]] = []
    entries: list[Any] = []
    skipped: list[str] = []
    for photo, picture in _pictures(subject, photos, skipped, strict):
        target.pictures[photo].parent.mkdir(parents=True, exist_ok=True)
        write_file(target.pictures[photo], picture.png)
        reports.append(report_picture(photo, target.pictures[photo], picture))
        if target.page is not None:
            entries.append(_entry(photo, target.pictures[photo], subject, reports[-1]))
    if target.page is not None:
        from tosa_cli.draw.page import render_page

        parts = render_page(subject.title, subject.about, entries)
        write_parts(target.page, (part.encode(errors="replace") for part in parts))
    _tell(name, target, subject, reports, skipped, json)


def split_names(names: Sequence[str]) -> tuple[str | None, list[Path]]:
    """Tell the model from the images: it comes first, and is meant as a model, as a file of weights is which then is
    refused, or is nothing that exists here.

    Raises:
        InputError: If no image was named.
    """
    from tosa_cli.hub.folder import WEIGHTS_SUFFIXES, claims_model

    first = Path(names[0].removeprefix("local-dir:"))
    if first.is_file():
        is_model = first.suffix.lower() in WEIGHTS_SUFFIXES
    else:
        is_model = claims_model(first) if first.exists() else first.suffix.lower() not in IMAGE_SUFFIXES
    model, images = (names[0], names[1:]) if is_model else (None, names)
    if not images:
        raise InputError(f"No image was named: pass images or a folder of them, as in `tosa viz {names[0]} cat.jpg`.")
    return model, [Path(image) for image in images]


def parse_numbers(text: str | None) -> tuple[int, ...] | None:
    """Read layers such as `2,6,10`.

    Raises:
        ConfigError: If it is something else.
    """
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--layers should be layer numbers with commas, as in 2,6,10; not {text!r}.") from None


def plan_output(
    photos: Sequence[Path], is_folder: bool, output: Path | None, model: str, ending: str, overwrite: bool
) -> Target:
    """Decide what is written, and check that it may be, before any work is done.

    Args:
        photos: The images.
        is_folder: Whether a folder of images was named.
        output: What the user asked for; None takes a name from the image or the model.
        model: Name of the model.
        ending: What is drawn, in a word that ends the names that are taken.
        overwrite: Whether files may be replaced.

    Raises:
        OutputError: If a file exists already, or the place cannot be written to.
    """
    from tosa_cli.hub.folder import check_writable

    is_single = len(photos) == 1 and not is_folder
    if output is not None and output.suffix.lower() == ".png" and not is_single:
        raise OutputError(f"{output} is one picture, but there are several images: name a folder with -o.")
    if is_single and (output is None or output.suffix.lower() == ".png"):
        target = Target({photos[0]: output or Path(f"{photos[0].stem}-{ending}.png")}, None)
    else:
        folder = output or Path(f"{stem_of(model)}-{ending}")
        if folder.is_file():
            raise OutputError(f"{folder} is a file, but a folder is written: choose another name with -o.")
        target = Target(_picture_names(photos, folder), None if is_single else folder / PAGE)
    for path in (*target.pictures.values(), *filter(None, [target.page])):
        if path.is_dir() or (path.exists() and not overwrite):
            raise OutputError(f"{path} already exists. Choose another name with -o, or pass --overwrite.")
    check_writable((target.page or next(iter(target.pictures.values()))).parent)
    return target


def _picture_names(photos: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A PNG for each image in one folder; images of the same name get numbers."""
    names: dict[Path, Path] = {}
    taken: set[str] = set()
    for photo in photos:
        name, number = photo.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{photo.stem}-{number}"
        taken.add(name.lower())
        names[photo] = folder / f"{name}.png"
    return names


def _pictures(
    subject: Subject, photos: Sequence[Path], skipped: list[str], strict: bool
) -> "Iterator[tuple[Path, Picture]]":
    """Draw image by image; those that cannot be read are named in `skipped`."""
    with console.progress("Drawing") as bar:
        bar.start(len(photos), 0)
        for photo in photos:
            try:
                picture = subject.draw(photo)
            except DataError as error:
                if strict or len(photos) == len(skipped) + 1:
                    raise
                skipped.append(str(error))
            else:
                yield photo, picture
            bar.advance(1)


def _entry(photo: Path, png: Path, subject: Subject, report: dict[str, Any]) -> Any:
    from tosa_cli.draw.page import PageEntry

    cosines = report["patch_cosine"], report["class_cosine"]
    return PageEntry(photo.name, png, *cosines, figures_of(report), subject.shows)


def _tell(
    name: str, target: Target, subject: Subject, reports: list[dict[str, Any]], skipped: list[str], json: bool
) -> None:
    if skipped:
        console.warn(f"Images that could not be read were left out, {len(skipped)} in all: {skipped[0]}")
    if json:
        page = str(target.page) if target.page else None
        console.print_json({"model": name, **subject.facts, "page": page, "images": reports, "skipped": skipped})
        return
    compared = reports[0]["patch_cosine"] is not None
    kinds = COSINES if compared or not subject.facts else ()
    rows = []
    for report in reports:
        cosines = [figure(report[f"{kind}_cosine"]) for kind in kinds]
        rows.append([Path(report["image"]).name, *cosines, *figures_of(report).values(), report["picture"]])
    other = "those with every token computed" if subject.facts else "the dense model's"
    title = f"Pictures, and the cosine of the final tokens to {other}" if kinds else "Pictures"
    console.print_table(title, ["image", *kinds, *figures_of(reports[0]), "picture"], rows)
    if target.page is not None:
        console.say(f"Wrote {counted(len(reports), 'picture')}, and {target.page}, which holds all of them.")
    else:
        console.say(f"Wrote {reports[0]['picture']}.")
