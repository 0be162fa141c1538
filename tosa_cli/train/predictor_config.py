"""Settings of finetuning for depth and segmentation. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from tosa_cli.data.formats import FORMATS, DataFormat
from tosa_cli.data.images import ImgSize, both_sides, read_img_size
from tosa_cli.errors import ConfigError
from tosa_cli.settings import Setting, option_name
from tosa_cli.source_config import ARCHITECTURE, WEIGHTS_KEY, PixelSettings
from tosa_cli.task import (
    DECODER,
    DECODER_DIM,
    IGNORE_INDEX,
    MIN_DEPTH,
    NUM_LABELS,
    DecoderName,
    PredictorTask,
    TaskConfig,
)
from tosa_cli.train.config import (
    COLOR_JITTER,
    DROP_PATH,
    GRAD_CHECKPOINTING,
    HFLIP,
    MODEL_EMA,
    MODEL_EMA_DECAY,
    TrainConfig,
)

VARIANCE_FOCUS = 0.85
"""Share of the squared mean that the scale-invariant log loss leaves out (BTS; NeWCRFs, section 4)."""


SPLIT_FILE = Setting("Text file with a line IMAGE DEPTH for each image.")
DEPTH_SCALE = Setting(
    "Values of a 16-bit depth PNG for one metre; 0 is the format's own (folder and nyu 1000, kitti 256).", ge=0
)


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(TrainConfig, PixelSettings):
    """Settings of finetuning for depth and segmentation: the decoder trains, and the encoder with frozen selectors.

    Raises:
        ConfigError: If a value is out of range.
    """

    goes_with: ClassVar[str] = "depth and segmentation"

    task: Annotated[PredictorTask, Setting("What is learned: depth or segmentation.")] = "depth"
    decoder: Annotated[DecoderName, DECODER] = "dpt"
    decoder_dim: Annotated[int, DECODER_DIM] = 0
    architecture: Annotated[str | None, ARCHITECTURE] = None
    weights_key: Annotated[str | None, WEIGHTS_KEY] = None
    freeze_encoder: Annotated[bool, Setting("Train the decoder alone.")] = False
    data_format: Annotated[
        DataFormat, Setting("How images and maps lie: folder (rgb/ with depth/ or mask/), nyu or kitti.")
    ] = "folder"
    split_file: Annotated[str, SPLIT_FILE] = ""
    val_split_file: Annotated[str, Setting("The same for the held-out images.")] = ""
    depth_dir: Annotated[str, Setting("Where the depth maps of a split file lie; empty is data_dir.")] = ""
    val_depth_dir: Annotated[str, Setting("The same for the held-out images; empty is val_dir, or else depth_dir.")] = (
        ""
    )
    depth_scale: Annotated[float, DEPTH_SCALE] = 0.0
    min_depth: Annotated[float, MIN_DEPTH] = 1e-3
    max_depth: Annotated[
        float, Setting("Largest depth in metres; 0 is the format's own (folder and nyu 10, kitti 80).")
    ] = 0.0
    num_labels: Annotated[int, NUM_LABELS] = 0
    ignore_index: Annotated[int | None, IGNORE_INDEX] = None
    img_size: Annotated[
        ImgSize,
        Setting(
            "Size in pixels that is trained on, one number or height,width; empty is the encoder's own.",
            read=read_img_size,
        ),
    ] = None
    epochs: int = 20
    batch_size: int = 8
    lr: float = 1e-4
    min_lr: float = 1e-5
    weight_decay: float = 0.01
    encoder_lr_scale: Annotated[float, Setting("Learning rate of the encoder, as a share of the decoder's.", ge=0)] = (
        0.1
    )
    eval_every: Annotated[
        int,
        Setting(
            "Optimizer steps between measurements on held-out images, of which the best weights are kept; 0 measures "
            "at start and end alone, and keeps the last weights.",
            ge=0,
        ),
    ] = 0
    max_watched: Annotated[
        int | None, Setting("Largest number of held-out images measured while training; None takes all.", ge=1)
    ] = None
    hflip: Annotated[float, HFLIP] = 0.5
    color_jitter: Annotated[float, COLOR_JITTER] = 0.1
    crop_scale: Annotated[
        float,
        Setting(
            "Smallest share of an image that a training crop covers, where images do not keep their size.", gt=0, le=1
        ),
    ] = 0.8
    rotation: Annotated[float, Setting("Largest angle in degrees by which a training image is turned.", ge=0)] = 0.0
    drop_path: Annotated[float | None, DROP_PATH] = None
    model_ema: Annotated[bool, MODEL_EMA] = False
    model_ema_decay: Annotated[float, MODEL_EMA_DECAY] = 0.9998
    grad_checkpointing: Annotated[bool, GRAD_CHECKPOINTING] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dataset", "image_column", "label_column"):
            if getattr(self, name):
                raise ConfigError(
                    f"{option_name(name)} ({getattr(self, name)}) has no maps: depth and segmentation read "
                    f"--data-format, leave it out."
                )
        if self.max_depth == 0:
            object.__setattr__(self, "max_depth", FORMATS[self.data_format].max_depth)
        _ = self.task_config

    @property
    def size(self) -> tuple[int, int] | None:
        """The size (height, width) that is trained on; None is the encoder's own."""
        return both_sides(self.img_size)

    @property
    def task_config(self) -> TaskConfig:
        """What the model is to predict."""
        return TaskConfig(
            task=self.task,
            decoder=self.decoder,
            decoder_dim=self.decoder_dim,
            min_depth=self.min_depth,
            max_depth=self.max_depth,
            num_labels=self.num_labels,
        )

    def recorded(self) -> dict[str, Any]:
        """What a model's folder keeps of the settings: the main ones, the task, and those that are not the default."""
        names = ("task", "decoder", "data_format", "freeze_encoder")
        return super().recorded() | {name: getattr(self, name) for name in names}
