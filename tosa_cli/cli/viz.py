"""`tosa viz`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, parse_img_size, resolve_model
from tosa_cli.errors import ConfigError, DataError, InputError, OutputError

if TYPE_CHECKING:
    from torch import nn

    from tosa_cli.measure.picture import Picture
    from tosa_cli.model.tosa_vit import TosaViT

PAGE = "index.html"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
            help="Set the final tokens beside the dense source model's. [default: where the source can be loaded]",
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

    Writes a PNG for each image, and for several one HTML page that holds all of them.
    """
    model_name, paths = split_names(names)
    wanted = parse_numbers(layers)
    size = parse_img_size(img_size)
    name = resolve_model(model_name)

    from tosa_cli.hub.checkpoint import load
    from tosa_cli.hub.folder import write_file
    from tosa_cli.measure.photos import find_photos
    from tosa_cli.measure.picture import require_matplotlib
    from tosa_cli.measure.selection_maps import check_layers
    from tosa_cli.train.config import TrainConfig
    from tosa_cli.train.loop import make_accelerator

    require_matplotlib()
    photos = find_photos(paths)
    target = plan_output(photos, any(path.is_dir() for path in paths), output, name, overwrite)
    converted = load(name, img_size=size)
    check_layers(converted, wanted or ())
    dense = _dense(converted, size, compare)
    place = make_accelerator(TrainConfig(device=device)).device
    converted.to(place)
    if dense is not None:
        dense.to(place).eval()
    reports: list[dict[str, Any]] = []
    entries: list[Any] = []
    skipped: list[str] = []
    for photo, picture in _pictures(converted, dense, photos, wanted, skipped, strict):
        target.pictures[photo].parent.mkdir(parents=True, exist_ok=True)
        write_file(target.pictures[photo], picture.png)
        reports.append(_report(photo, target.pictures[photo], picture))
        if target.page is not None:
            entries.append(_entry(photo, picture))
    if target.page is not None:
        write_file(target.page, _page(converted, name, entries).encode())
    _tell(name, target, reports, skipped, json)


def split_names(names: Sequence[str]) -> tuple[str | None, list[Path]]:
    """Tell the model from the images: it comes first, and is a model folder or nothing that exists here.

    Raises:
        InputError: If no image was named.
    """
    from tosa_cli.hub.folder import is_model_folder

    first = Path(names[0].removeprefix("local-dir:"))
    is_model = is_model_folder(first) if first.exists() else first.suffix.lower() not in IMAGE_SUFFIXES
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


def plan_output(photos: Sequence[Path], is_folder: bool, output: Path | None, model: str, overwrite: bool) -> Target:
    """Decide what is written, and check that it may be, before any work is done.

    Args:
        photos: The images.
        is_folder: Whether a folder of images was named.
        output: What the user asked for; None takes a name from the image or the model.
        model: Name of the model.
        overwrite: Whether files may be replaced.

    Raises:
        OutputError: If a file exists already, or the place cannot be written to.
    """
    from tosa_cli.cli.convert import default_output
    from tosa_cli.hub.folder import check_writable

    is_single = len(photos) == 1 and not is_folder
    if output is not None and output.suffix.lower() == ".png" and not is_single:
        raise OutputError(f"{output} is one picture, but there are several images: name a folder with -o.")
    if is_single and (output is None or output.suffix.lower() == ".png"):
        target = Target({photos[0]: output or Path(f"{photos[0].stem}-selection.png")}, None)
    else:
        stem = default_output(model).name.removesuffix("-tosa")
        folder = output or Path(f"{stem}-selection")
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


def _dense(converted: "TosaViT", size: Any, compare: bool | None) -> "nn.Module | None":
    from tosa_cli.cli.evaluate import dense_model
    from tosa_cli.errors import TosaError

    if compare is False:
        return None
    try:
        return dense_model(converted, size)
    except TosaError as error:
        if compare:
            raise
        console.warn(f"The dense model is left out. {error}")
        return None


def _pictures(
    model: "TosaViT",
    dense: "nn.Module | None",
    photos: Sequence[Path],
    layers: Sequence[int] | None,
    skipped: list[str],
    strict: bool,
) -> "Iterator[tuple[Path, Picture]]":
    """Draw image by image; those that cannot be read are named in `skipped`."""
    from tosa_cli.measure.photos import photo_transform, read_photo
    from tosa_cli.measure.picture import make_picture

    transform = photo_transform(model)
    place = next(model.parameters()).device
    with console.progress("Drawing") as bar:
        bar.start(len(photos), 0)
        for photo in photos:
            try:
                images = read_photo(photo, model, transform).to(place)
            except DataError as error:
                if strict or len(photos) == len(skipped) + 1:
                    raise
                skipped.append(str(error))
            else:
                yield photo, make_picture(model, images, dense, layers=layers, title=photo.name)
            bar.advance(1)


def _report(photo: Path, written: Path, picture: "Picture") -> dict[str, Any]:
    tokens = picture.tokens
    return {
        "image": str(photo),
        "picture": str(written),
        "layers": [
            {
                "layer": layer.layer,
                "keep_rate": layer.keep_rate,
                "patches": layer.kept.numel(),
                "kept_share": layer.kept_share,
            }
            for layer in picture.maps
        ],
        "patch_cosine": tokens.patch_cosine if tokens else None,
        "class_cosine": tokens.class_cosine if tokens else None,
    }


def _entry(photo: Path, picture: "Picture") -> Any:
    from tosa_cli.measure.page import PageEntry

    tokens = picture.tokens
    cosines = (tokens.patch_cosine, tokens.class_cosine) if tokens else (None, None)
    return PageEntry(photo.name, picture.png, *cosines)


def _page(model: "TosaViT", name: str, entries: Sequence[Any]) -> str:
    from tosa_cli.measure.flops import count_flops
    from tosa_cli.measure.page import render_page
    from tosa_cli.measure.selection_maps import SCORE_MEANINGS

    config, flops = model.config, count_flops(model)
    rates = sorted(set(config.keep_rates.values()))
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    about = [
        f"{flops.gmacs:.3f} GMACs at {flops.img_size[0]}x{flops.img_size[1]}, {flops.reduction:.1%} less than the "
        f"dense model. ToSA layers {', '.join(map(str, config.layers))}; keep rate {shown}; selector "
        f"{config.selector}, bypass {config.bypass}.",
        "Patches as in the image are computed, dimmed ones skip the layer; all of them are there at the end.",
    ]
    if config.selector in SCORE_MEANINGS:
        about.append(f"Score: {SCORE_MEANINGS[config.selector]}.")
    return render_page(f"What {Path(name).name} computed", about, entries)


def _tell(name: str, target: Target, reports: list[dict[str, Any]], skipped: list[str], json: bool) -> None:
    if skipped:
        console.warn(f"Images that could not be read were left out, {len(skipped)} in all: {skipped[0]}")
    if json:
        page = str(target.page) if target.page else None
        console.print_json({"model": name, "page": page, "images": reports, "skipped": skipped})
        return
    rows = []
    for report in reports:
        cosines = [_cosine(report[kind]) for kind in ("patch_cosine", "class_cosine")]
        rows.append([Path(report["image"]).name, *cosines, report["picture"]])
    title = "Pictures, and the cosine of the final tokens to the dense model's"
    console.print_table(title, ["image", "patch", "class", "picture"], rows)
    if target.page is not None:
        console.say(f"Wrote {len(reports)} pictures, and {target.page}, which holds all of them.")
    else:
        console.say(f"Wrote {reports[0]['picture']}.")


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
