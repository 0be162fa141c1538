"""Runs a model on an image and draws what it did (paper, Fig. 4)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from tosa_cli.data.photos import to_pixels
from tosa_cli.draw.draw_maps import AS_CONVERTED, EVERY_TOKEN
from tosa_cli.draw.predicted_maps import PredictedMaps, predict_maps
from tosa_cli.draw.selection_figure import draw_selection, require_matplotlib
from tosa_cli.draw.selection_maps import SelectionMap, TokenMaps, compare_tokens, read_selection
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.selectors import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class Picture:
    """A picture of one image, and what it shows.

    Attributes:
        png: The picture.
        maps: What each layer selected.
        tokens: Features beside the dense model's; None if they were not compared.
        predicted: What a model with a decoder predicts; None without one.
        outputs: Of a whole model, how near each output is to that with every token computed, by name and figure.
    """

    png: bytes
    maps: list[SelectionMap]
    tokens: TokenMaps | None
    predicted: PredictedMaps | None = None
    outputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def make_picture(
    model: TosaViT,
    images: Tensor,
    dense: nn.Module | None = None,
    *,
    layers: Iterable[int] | None = None,
    title: str = "",
) -> Picture:
    """Run a model on an image and draw what it did.

    Args:
        model: The converted model, in evaluation mode.
        images: One normalised image (1, C, height, width), where the model is.
        dense: Its source, to set the features beside; None leaves them out.
        layers: ToSA layers to draw; None draws all.
        title: Line above the picture.

    Raises:
        ConfigError: If one of the layers is not a ToSA layer.
        InputError: If matplotlib is not installed.
    """
    require_matplotlib()
    maps = read_selection(model, images, layers)
    tokens = compare_tokens(model, dense, images) if dense is not None else None
    png = draw_selection(to_pixels(images, model), maps, tokens, title=title, footer=_score_meaning(model))
    return Picture(png, maps, tokens)


def make_predicted_picture(
    model: Predictor,
    images: Tensor,
    *,
    compare: bool = True,
    layers: Iterable[int] | None = None,
    ratio: float | None = None,
    title: str = "",
) -> Picture:
    """Run a model with a decoder on an image, and draw what its encoder did and what it predicts.

    Args:
        model: The model, in evaluation mode.
        images: One normalised image (1, C, height, width) in whole patches, where the model is.
        compare: Set map and features beside those of the same weights with every token computed; it says nothing about
            an encoder that is not converted.
        layers: ToSA layers to draw; None draws all.
        ratio: Height over width of the image before it was brought to the model's size; None is the model's.
        title: Line above the picture.

    Raises:
        ConfigError: If one of the layers is not a ToSA layer.
        InputError: If matplotlib is not installed.
    """
    require_matplotlib()
    encoder = model.encoder if isinstance(model.encoder, TosaViT) else None
    compare = compare and encoder is not None
    maps = read_selection(encoder, images, layers) if encoder is not None else []
    tokens = compare_tokens(encoder, model.backbone, images) if encoder is not None and compare else None
    predicted = predict_maps(model, images, compare)
    footer = _score_meaning(encoder) if encoder is not None else ""
    png = draw_selection(
        to_pixels(images, model),
        maps,
        tokens,
        predicted,
        title=title,
        footer=footer,
        ratio=ratio,
        names=(EVERY_TOKEN, AS_CONVERTED),
    )
    return Picture(png, maps, tokens, predicted)


def _score_meaning(model: TosaViT) -> str:
    meaning = SELECTORS[model.config.selector].meaning
    return f"score: {meaning}" if meaning else f"the selector {model.config.selector} has no scores"
