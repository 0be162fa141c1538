"""Which images a verb reads, as frozen and strict data. Imports no torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from tosa_cli.settings import CommandSettings, Setting

IMAGE_COLUMN = Setting("Column of hfds/... that holds the images; empty finds it.")
LABEL_COLUMN = Setting("Column of hfds/... that holds the labels; empty finds it.")

Config = TypeVar("Config", bound=CommandSettings)


@dataclass(frozen=True, kw_only=True)
class Data(CommandSettings):
    """Which images are read, and which are held out to measure on.

    The settings of a verb have the same fields, so that a recipe and the record in a model's folder stay flat.

    Raises:
        ConfigError: If a value is out of range.
    """

    data_dir: Annotated[str, Setting("Folder of images, or root of a Hugging Face or WebDataset source.")] = ""
    dataset: Annotated[str, Setting("timm's name of the data set type: empty for a folder, hfds/... or wds/....")] = ""
    split: Annotated[str, Setting("Split of the data set to train on.")] = "train"
    image_column: Annotated[str, IMAGE_COLUMN] = ""
    label_column: Annotated[str, LABEL_COLUMN] = ""
    max_samples: Annotated[
        int | None,
        Setting(
            "Use so many images of it, evenly spread; None uses all. Of wds/..., which is read in order, the first "
            "ones, and only where nothing is trained step by step.",
            ge=1,
        ),
    ] = None
    val_dir: Annotated[
        str,
        Setting(
            "Folder of held-out images, whose split validation is taken if it has one; empty holds out a share of the "
            "training images."
        ),
    ] = ""
    val_split: Annotated[
        str, Setting("Split that holds the held-out images; empty holds out a share of the training images.")
    ] = ""


def read_from(config: Config, data: Data | str | Path | None) -> Config:
    """The settings of a verb with the images that a description names; a path stands for a folder.

    Raises:
        ConfigError: If the verb has no such setting.
    """
    if data is None:
        return config
    if not isinstance(data, Data):
        data = Data(data_dir=str(data))
    return type(config).from_dict({**dataclasses.asdict(config), **data.named()})
