"""What `tosa viz` draws: a converted model, one with a decoder, or a whole one of transformers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tosa_cli.cli import console
from tosa_cli.data.images import ImgSize
from tosa_cli.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import nn

    from tosa_cli.draw.picture import Picture
    from tosa_cli.model.runs import Run
    from tosa_cli.model.tosa_vit import TosaViT

ALL_THERE = "Patches as in the image are computed, dimmed ones skip the layer; all of them are there at the end."
COSINES = ("patch", "class")


@dataclass(frozen=True)
class Subject:
    """A model to draw.

    Attributes:
        draw: Draws an image file, and raises a `DataError` if it cannot be read.
        title: Title of the page.
        about: Paragraphs of the page.
        shows: What a picture shows, in a word or two.
        facts: What the report says of the model.
    """

    draw: "Callable[[Path], Picture]"
    title: str
    about: list[str]
    shows: str = "Selection"
    facts: dict[str, Any] = field(default_factory=dict)


def load_subject(
    name: str,
    layers: Iterable[int] | None,
    img_size: ImgSize,
    compare: bool | None,
    device: Literal["auto", "cpu", "cuda"],
) -> Subject:
    """Load what is to be drawn.

    Args:
        name: A model folder, or the id of a Hub repository.
        layers: ToSA layers to draw; None draws all.
        img_size: Image size in pixels, one number or (height, width); None keeps the model's.
        compare: Whether to set it beside the dense model; None does so where there is one.
        device: Where to compute.

    Raises:
        TosaError: If the model cannot be loaded, or has no such layers or nothing to be compared with.
    """
    from tosa_cli.device import pick_device
    from tosa_cli.hub.kind import find_kind
    from tosa_cli.hub.predictor import is_predictor

    if find_kind(name) == "whole":
        return _whole(name, layers, img_size, compare, pick_device(device))
    load = _with_decoder if is_predictor(name) else _converted
    return load(name, layers, img_size, compare, pick_device(device))


def report_picture(photo: Path, written: Path, picture: "Picture") -> dict[str, Any]:
    """What is reported of a picture, as JSON values."""
    from tosa_cli.draw.predicted_maps import class_shares

    tokens, maps = picture.tokens, picture.predicted
    report: dict[str, Any] = {
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
    if maps is not None and maps.task == "depth":
        depth = maps.converted
        report |= {
            "min_depth": depth.min().item(),
            "max_depth": depth.max().item(),
            "mean_depth": depth.mean().item(),
            "depth_difference": maps.depth_difference,
        }
    elif maps is not None:
        report |= {"class_shares": class_shares(maps.converted), "equal_pixels": maps.equal_pixels}
    if picture.outputs:
        report["outputs"] = {name: dict(figures) for name, figures in picture.outputs.items()}
    return report


def figures_of(report: dict[str, Any]) -> dict[str, str]:
    """What a report of a picture says of the map that was predicted, by heading."""
    figures = {}
    if "min_depth" in report:
        figures["depth in m"] = f"{report['min_depth']:.2f} to {report['max_depth']:.2f}"
    if "class_shares" in report:
        figures["classes"] = str(len(report["class_shares"]))
    for key, heading in (("depth_difference", "depth differs by"), ("equal_pixels", "equal pixels")):
        if report.get(key) is not None:
            figures[heading] = f"{report[key]:.2%}"
    for output, found in report.get("outputs", {}).items():
        for name, value in found.items():
            figures[f"{output}: {name}".replace("_", " ")] = f"{value:.4f}"
    return figures


def _converted(
    name: str, layers: Iterable[int] | None, img_size: ImgSize, compare: bool | None, device: Any
) -> Subject:
    from tosa_cli.data.photos import photo_transform, read_photo
    from tosa_cli.draw.picture import make_picture
    from tosa_cli.draw.selection_maps import check_layers
    from tosa_cli.hub.checkpoint import load
    from tosa_cli.model.flops import count_flops

    model = load(name, img_size=img_size)
    check_layers(model, layers or ())
    dense = _dense(model, img_size, compare)
    model.to(device)
    if dense is not None:
        dense.to(device).eval()
    flops, transform = count_flops(model), photo_transform(model)

    def draw(photo: Path) -> "Picture":
        images = read_photo(photo, model, transform).to(device)
        return make_picture(model, images, dense, layers=layers, title=photo.name)

    height, width = flops.img_size
    about = [
        f"{flops.gmacs:.3f} GMACs at {height}x{width}, {flops.reduction:.1%} less than the dense model. "
        f"{_settings(model)}.",
        ALL_THERE,
        *_score_meaning(model),
    ]
    return Subject(draw, f"What {Path(name).name} computed", about)


def _dense(converted: "TosaViT", size: ImgSize, compare: bool | None) -> "nn.Module | None":
    from tosa_cli.errors import TosaError
    from tosa_cli.hub.original import dense_model

    if compare is False:
        return None
    try:
        dense = dense_model(converted, size)
    except TosaError as error:
        if compare:
            raise
        console.warn(f"The dense model is left out. {error}")
        return None
    if dense.note:
        console.say(dense.note)
    return dense.model


def _with_decoder(
    name: str, layers: Iterable[int] | None, img_size: ImgSize, compare: bool | None, device: Any
) -> Subject:
    from tosa_cli.data.photos import open_photo, whole_photo_transform
    from tosa_cli.draw.picture import make_predicted_picture
    from tosa_cli.draw.selection_maps import check_layers
    from tosa_cli.hub.predictor import load_predictor
    from tosa_cli.model.predictor_flops import count_predictor_flops
    from tosa_cli.model.tosa_vit import TosaViT

    model = load_predictor(name)
    encoder = model.encoder if isinstance(model.encoder, TosaViT) else None
    if encoder is not None:
        check_layers(encoder, layers or ())
    elif layers is not None:
        raise ConfigError(f"{name} has no ToSA layers, as its encoder is not converted: leave out --layers.")
    elif compare:
        raise InputError(f"The encoder of {name} computes every token already: leave out --compare.")
    model.to(device)
    asked = (img_size, img_size) if isinstance(img_size, int) else img_size
    flops = count_predictor_flops(model, asked)
    if asked not in (None, flops.img_size):
        console.say("Images are brought to {}x{} pixels, which are whole patches.".format(*flops.img_size))
    transform = whole_photo_transform(model, flops.img_size)

    def draw(photo: Path) -> "Picture":
        image = open_photo(photo, model)
        return make_predicted_picture(
            model,
            transform(image)[None].to(device),
            compare=compare is not False,
            layers=layers,
            ratio=image.height / image.width,
            title=photo.name,
        )

    task, (height, width) = model.config.task, flops.img_size
    figures = flops.figures
    about = [
        f"{figures['gmacs']:.3f} GMACs at {height}x{width}: {flops.encoder_gmacs:.3f} in the encoder and "
        f"{flops.decoder_gmacs:.3f} in the decoder {model.config.decoder}. The image is read whole and drawn in its "
        f"own form."
    ]
    if encoder is not None:
        about += [
            f"The encoder takes {flops.figures['encoder_reduction']:.1%} less than with every token. "
            f"{_settings(encoder)}.",
            ALL_THERE,
            *_score_meaning(encoder),
        ]
    if encoder is not None and compare is not False:
        measure = {
            "depth": "how far apart both depths are, relative to that with every token, mean over the pixels",
            "segmentation": "the share of the pixels whose class is the same",
        }[task]
        about.append(
            "Beside it: every token computed in every layer, with the same weights, as in tosa eval --compare; and "
            f"{measure}. Only tosa eval tells which of the two is nearer to the truth."
        )
    shows = "Depth" if task == "depth" else "Classes"
    facts = {"task": task, "decoder": model.config.decoder, "img_size": [height, width]}
    return Subject(draw, f"{shows} by {Path(name).name}", about, shows, facts)


def _whole(name: str, layers: Iterable[int] | None, img_size: ImgSize, compare: bool | None, device: Any) -> Subject:
    from tosa_cli.data.processed import prepare, shown_pixels
    from tosa_cli.draw.selection_maps import check_layers
    from tosa_cli.draw.whole_picture import converted_run, make_whole_picture
    from tosa_cli.model.runs.flops import count_whole
    from tosa_cli.workflow.whole_folder import image_part, load_converted

    if img_size is not None:
        raise ConfigError("Images of a whole model are as large as its processor makes them: leave out --img-size.")
    if compare is False:
        raise ConfigError("A whole model is drawn beside itself with every token computed: leave out --no-compare.")
    whole = load_converted(name)
    part = image_part(whole.model).to(device)
    run = converted_run(part)
    check_layers(run, layers or ())
    flops = count_whole(part)
    labels = getattr(getattr(part, "config", None), "id2label", None)

    def draw(photo: Path) -> "Picture":
        images = prepare(photo, whole.processor)
        pixels = shown_pixels(images, whole.processor)
        return make_whole_picture(part, images, pixels, layers=layers, labels=labels, title=photo.name)

    height, width = flops.img_size
    about = [
        f"{flops.counted} takes {flops.gmacs:.3f} GMACs at {height}x{width}, {flops.reduction:.1%} less than with "
        f"every token, {flops.encoder_reduction:.1%} less in the layers of its encoder. {_settings(run)}.",
        ALL_THERE,
        "Below: what comes out with every token computed in every layer, with the same weights, and as converted.",
    ]
    return Subject(draw, f"Outputs of {Path(name).name}", about, "Outputs", {"kind": type(whole.model).__name__})


def _settings(model: "TosaViT | Run") -> str:
    config = model.config
    rates = sorted(set(config.keep_rates.values()))
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    layers: Sequence[int] = config.layers
    return (
        f"ToSA layers {', '.join(map(str, layers))}; keep rate {shown}; selector {config.selector}, bypass "
        f"{config.bypass}"
    )


def _score_meaning(model: "TosaViT") -> list[str]:
    from tosa_cli.model.selectors import SELECTORS

    meaning = SELECTORS[model.config.selector].meaning
    return [f"Score: {meaning}."] if meaning else []
