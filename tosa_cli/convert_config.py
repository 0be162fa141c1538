"""Settings of `convert`, as frozen and strict data. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tosa_cli.config import Method, TosaConfig, read_keep_rate, read_layers
from tosa_cli.data.images import ImgSize, read_img_size
from tosa_cli.errors import ConfigError
from tosa_cli.settings import Setting
from tosa_cli.source_config import ARCHITECTURE, WEIGHTS_KEY, ImageSettings

AUTO: Literal["auto"] = "auto"
"""Stands for layers and keep rates that are chosen by measurement."""


def _read_layers(value: Any) -> tuple[int, ...] | Literal["auto"]:
    if value == AUTO:
        return AUTO
    return read_layers([int(part) for part in value.split(",")] if isinstance(value, str) else value)


def _read_keep_rate(value: Any) -> float | tuple[float, ...]:
    if not isinstance(value, str):
        return read_keep_rate(value)
    rates = tuple(float(part) for part in value.split(","))
    return rates[0] if len(rates) == 1 else rates


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Method, ImageSettings):
    """What is converted, by what method, in which layers, and at which keep rates or for which target.

    Raises:
        ConfigError: If a value is out of range, or something is missing that the choice of layers needs.
    """

    source: Annotated[
        str,
        Setting(
            "timm name (deit_tiny is short for deit_tiny_patch16_224), Hub id org/name[@revision], a folder, both in "
            "timm's or transformers' format, or a weights file."
        ),
    ] = ""
    layers: Annotated[
        tuple[int, ...] | Literal["auto"],
        Setting(
            "ToSA layers, numbered from 1, as in 2,4,6,8,10; or auto, which chooses layers and keep rates by "
            "measurement on --data-dir.",
            expected="layer numbers with commas, as in 2,4,6, or auto",
            read=_read_layers,
        ),
    ]
    keep_rate: Annotated[
        float | tuple[float, ...],
        Setting(
            "Share of tokens that are computed: one number, or one a layer.",
            expected="a number, or one a layer as in 0.9,0.8",
            read=_read_keep_rate,
        ),
    ] = TosaConfig.default_of("keep_rate")
    target_reduction: Annotated[
        float | None,
        Setting("Find the keep rate that saves this share of the MACs, as in 0.25.", gt=0, lt=1),
    ] = None
    min_cosine: Annotated[
        float | None,
        Setting(
            "Save as much as leaves the final tokens of held-out images so near to the dense model's, as in 0.99, for "
            "--layers auto and methods that put tokens into groups: mean cosine of patch and of class tokens.",
            gt=0,
            lt=1,
        ),
    ] = None
    data_dir: Annotated[str, Setting("Images to measure on, for --layers auto; no labels are read.")] = ""
    dataset: Annotated[
        str, Setting("timm's name of the type of that data, for --layers auto: hfds/... or wds/....")
    ] = ""
    split: Annotated[str, Setting("Its split, for --layers auto.")] = "train"
    max_samples: Annotated[
        int | None,
        Setting(
            "Measure on so many of them, for --layers auto: evenly spread, of wds/... the first. Default: 32; with "
            "--min-cosine 96, of which two thirds are held out.",
            ge=1,
        ),
    ] = None
    img_size: Annotated[ImgSize, Setting("Image size in pixels: 224, or height,width.", read=read_img_size)] = None
    num_classes: Annotated[int | None, Setting("Give the model a new head of so many classes; 0 is none.", ge=0)] = None
    architecture: Annotated[str | None, ARCHITECTURE] = None
    weights_key: Annotated[str | None, WEIGHTS_KEY] = None
    pretrained: Annotated[bool, Setting("Load the weights, or start at random.")] = True
    seed: Annotated[
        int, Setting("Seed of what is drawn: untrained selectors, a new head, random weights.", ge=0, le=2**32 - 1)
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers, tuple):
            if self.min_cosine is not None:
                raise ConfigError("--min-cosine chooses the layers too: pass --layers auto, or leave it out.")
            self.at(self.layers, self.keep_rate)
            return
        if self.target_reduction is not None and self.min_cosine is not None:
            raise ConfigError("Both --target-reduction and --min-cosine were given: pass one of them.")
        if self.min_cosine is not None and not self.groups_tokens:
            raise ConfigError(
                f"--min-cosine is for methods that put tokens into groups, for which `convert` leaves nothing to fit: "
                f"pass --selector ward --bypass mean, or --target-reduction 0.25 for the selector {self.selector!r}."
            )
        if self.target_reduction is None and self.min_cosine is None:
            raise ConfigError(
                "With --layers auto the share of the MACs to save is missing: pass --target-reduction 0.25, and no "
                "--keep-rate."
            )
        self.check_measurable()

    def check_images(self) -> None:
        """Check that there are images where layers are chosen by measurement.

        Raises:
            ConfigError: If none are named.
        """
        if self.layers == AUTO and not (self.data_dir or self.dataset):
            raise ConfigError(
                "The layers are chosen by measurement, which needs images: pass --data-dir PHOTOS, or name the layers "
                "as in --layers 2,4,6,8,10."
            )

    @property
    def images(self) -> ImageSettings:
        """What images are put through, where not as the source says."""
        return ImageSettings(**{name: getattr(self, name) for name in ImageSettings.field_names()})

    @property
    def source_settings(self) -> dict[str, Any]:
        """How the source is loaded, where not as it is: what a model remembers of it, as plain JSON values."""
        own = ("img_size", "num_classes", "architecture", "weights_key", "pretrained", "seed")
        names = (*own, *ImageSettings.field_names())
        return {name: value for name, value in self.named().items() if name in names}
