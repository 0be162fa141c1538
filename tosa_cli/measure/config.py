"""Settings of `eval`, as frozen and strict data. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tosa_cli.data.description import IMAGE_COLUMN, LABEL_COLUMN
from tosa_cli.data.formats import DataFormat
from tosa_cli.data.images import ImgSize, read_img_size
from tosa_cli.settings import CommandSettings, Setting
from tosa_cli.task import IGNORE_INDEX
from tosa_cli.train.config import AMP, BATCH_SIZE, CLASS_MAP, DEVICE, WORKERS, Amp, Device
from tosa_cli.train.predictor_config import DEPTH_SCALE, SPLIT_FILE

EvalTask = Literal["auto", "classification", "features", "depth", "segmentation"]


@dataclass(frozen=True, kw_only=True)
class EvalConfig(CommandSettings):
    """On what a model is measured, and how.

    Raises:
        ConfigError: If a value is out of range.
    """

    data_dir: Annotated[str, Setting("Folder of images; class folders are the labels.")] = ""
    dataset: Annotated[str, Setting("timm's name of the data set type: hfds/... or wds/....")] = ""
    split: Annotated[str, Setting("Split of the data set.")] = "validation"
    image_column: Annotated[str, IMAGE_COLUMN] = ""
    label_column: Annotated[str, LABEL_COLUMN] = ""
    class_map: Annotated[str, CLASS_MAP] = ""
    max_samples: Annotated[int | None, Setting("Use so many images, evenly spread.", ge=1)] = None
    batch_size: Annotated[int, BATCH_SIZE] = 32
    workers: Annotated[int, WORKERS] = 2
    img_size: Annotated[ImgSize, Setting("Image size in pixels: 224, or height,width.", read=read_img_size)] = None
    device: Annotated[Device, DEVICE] = "auto"
    amp: Annotated[Amp, AMP] = "no"
    task: Annotated[
        EvalTask,
        Setting(
            "classification needs labels; features compares final tokens with the dense model's; depth and "
            "segmentation need a model with a decoder. auto: by what the model has."
        ),
    ] = "auto"
    data_format: Annotated[
        DataFormat, Setting("How images and maps lie, which also says what part of a depth map is measured.")
    ] = "folder"
    split_file: Annotated[str, SPLIT_FILE] = ""
    depth_dir: Annotated[str, Setting("Where the depth maps of a split file lie, if not in --data-dir.")] = ""
    depth_scale: Annotated[float, DEPTH_SCALE] = 0.0
    ignore_index: Annotated[int | None, IGNORE_INDEX] = None
    flip: Annotated[bool, Setting("Depth, segmentation: average with the mirrored image's map.")] = False
    selector: Annotated[
        Literal["own", "oracle"],
        Setting(
            "own: the model's. oracle: run each layer whole and skip the tokens about which its bypass is least "
            "wrong, a greedy reference, which saves nothing and may be beaten."
        ),
    ] = "own"
    compare: Annotated[bool, Setting("Set the dense model beside it.")] = False
    strict: Annotated[bool, Setting("Stop at an image that cannot be read.")] = False
