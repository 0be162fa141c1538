"""Settings of `convert`, as frozen and strict data. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tosa_cli.config import Method, TosaConfig, read_keep_rate, read_layers
from tosa_cli.data.description import IMAGE_COLUMN, LABEL_COLUMN, Data
from tosa_cli.data.images import ImgSize, read_img_size
from tosa_cli.errors import ConfigError
from tosa_cli.settings import Setting, option_name
from tosa_cli.source_config import ARCHITECTURE, WEIGHTS_KEY, ImageSettings
from tosa_cli.train.config import CLASS_MAP

AUTO: Literal["auto"] = "auto"
"""Stands for layers and keep rates that are chosen by measurement."""

OF_ENCODERS = {
    "A whole model keeps its own head, size and weights": ("img_size", "num_classes", "architecture", "weights_key"),
    "The images of a whole model are prepared by its own processor": tuple(ImageSettings.field_names()),
    "A whole model is measured without labels": ("class_map", "label_column"),
    "A whole model is measured on a folder of photos": ("dataset", "split", "image_column"),
}
"""Settings that mean nothing for a whole model, by the reason."""

WISHES = ("target_reduction", "min_cosine", "max_drop")
"""Settings that say how much is saved where layers are chosen by measurement: a share, or what has to hold."""


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
    max_drop: Annotated[
        float | None,
        Setting(
            "Save as much as costs no more than so many percentage points, as in 1.0, on held-out images: of top-1 "
            "accuracy by the labels of --data-dir or --dataset; of a whole model, of the agreement of its outputs with "
            "the dense model's. The more images (--max-samples), the surer. For --layers auto and methods that put "
            "tokens into groups.",
            gt=0,
            lt=100,
        ),
    ] = None
    data_dir: Annotated[
        str, Setting("Images to measure on, for --layers auto; labels are read for --max-drop alone.")
    ] = ""
    dataset: Annotated[
        str, Setting("timm's name of the type of that data, for --layers auto: hfds/... or wds/....")
    ] = ""
    split: Annotated[
        str,
        Setting(
            "Its split, for --layers auto. Default: train; with --max-drop validation, as accuracy says little on "
            "images that the head was trained on."
        ),
    ] = ""
    image_column: Annotated[str, IMAGE_COLUMN] = ""
    label_column: Annotated[str, LABEL_COLUMN] = ""
    class_map: Annotated[str, CLASS_MAP] = ""
    max_samples: Annotated[
        int | None,
        Setting(
            "Measure on so many of them, for --layers auto: evenly spread, of wds/... the first. Default: 32; with "
            "--min-cosine 96, of which two thirds are held out; with --max-drop 532, of which all but some 32 are, or "
            "96 of a whole model.",
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
        told = [name for name in WISHES if getattr(self, name) is not None]
        held = next((option_name(name) for name in told if name != "target_reduction"), "")
        if self.class_map and self.max_drop is None:
            raise ConfigError("--class-map is about labels, which are read for --max-drop alone: leave it out.")
        if isinstance(self.layers, tuple):
            if held:
                raise ConfigError(f"{held} chooses the layers too: pass --layers auto, or leave it out.")
            self.at(self.layers, self.keep_rate)
            return
        if len(told) > 1:
            raise ConfigError(f"Both {' and '.join(map(option_name, told[:2]))} were given: pass one of them.")
        if held and not self.groups_tokens:
            raise ConfigError(
                f"{held} is for methods that put tokens into groups, for which `convert` leaves nothing to fit: pass "
                f"--selector ward --bypass mean, or --target-reduction 0.25 for the selector {self.selector!r}."
            )
        if not told:
            raise ConfigError(
                "With --layers auto the share of the MACs to save is missing: pass --target-reduction 0.25, and no "
                "--keep-rate."
            )
        if self.max_drop is not None and self.num_classes is not None:
            raise ConfigError(
                "--num-classes gives the model a new head, which is not trained and has no accuracy to lose: leave out "
                "--num-classes, or hold the tokens with --min-cosine 0.99."
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

    def check_whole(self) -> None:
        """Check that a whole model can be converted by these settings: nothing is said that it does not have, and there
        are photos where keep rates are found on them, which a method without groups does not do of a whole model.

        Raises:
            ConfigError: Naming what has to be left out, or that photos are missing.
        """
        given = self.named()
        for reason, names in OF_ENCODERS.items():
            if told := [option_name(name) for name in names if name in given]:
                raise ConfigError(f"{reason}: leave out {' and '.join(told)}.")
        if self.groups_tokens:
            self.check_images()

    @property
    def data(self) -> Data:
        """The images that are measured on."""
        named = {name: getattr(self, name) for name in ("data_dir", "dataset", "image_column", "label_column")}
        split = self.split or ("train" if self.max_drop is None else "validation")
        return Data(**named, split=split, max_samples=self.max_samples)

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
