"""Settings of finetuning for dense prediction, and of the data formats. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Any, get_args

from tosa_cli.data.formats import FORMATS, DataFormat
from tosa_cli.errors import ConfigError
from tosa_cli.task import DecoderName, PredictorTask, TaskConfig
from tosa_cli.train.config import TrainConfig

VARIANCE_FOCUS = 0.85
"""Share of the squared mean that the scale-invariant log loss leaves out (BTS; NeWCRFs, section 4)."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(TrainConfig):
    """Settings of finetuning for depth and segmentation: the decoder trains, and the encoder with frozen selectors.

    Attributes:
        task: What is learned: `classification`, or the dense tasks `depth` and `segmentation`.
        decoder: `linear`, `dpt` or `newcrfs`; dense tasks only.
        decoder_dim: Width of the decoder; 0 is that of its paper.
        freeze_encoder: Train the decoder alone.
        data_format: How images and maps lie: `folder` (rgb/ with depth/ or mask/), `nyu` or `kitti`.
        split_file: Text file with a line `IMAGE DEPTH` for each image.
        val_split_file: The same for the held-out images.
        depth_dir: Where the depth maps of a split file lie; empty is data_dir.
        val_depth_dir: The same for the held-out images; empty is val_dir, or else depth_dir.
        depth_scale: Values of a 16-bit depth PNG for one metre; 0 is the format's own (folder and nyu 1000, kitti 256).
        min_depth: Smallest depth in metres.
        max_depth: Largest depth in metres; 0 is the format's own (folder and nyu 10, kitti 80).
        num_labels: Number of classes; segmentation only. 255 in a mask is no class.
        img_size: Size in pixels that is trained on, one number or height,width; empty is the encoder's own.
        epochs: Passes over the data.
        batch_size: Images a step and process.
        lr: Learning rate at its peak.
        min_lr: Learning rate at the end of the schedule.
        weight_decay: Weight decay.
        encoder_lr_scale: Learning rate of the encoder, as a share of the decoder's.
        eval_every: Optimizer steps between measurements on held-out images, of which the best weights are kept; 0
            measures at start and end alone, and keeps the last weights.
        max_watched: Largest number of held-out images measured while training; None takes all.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of color jitter.
        crop_scale: Smallest share of an image that a training crop covers, where images do not keep their size.
        rotation: Largest angle in degrees by which a training image is turned.
        drop_path: Stochastic depth rate; None keeps the encoder's.
        model_ema: Average the weights over the steps, and keep the average.
        model_ema_decay: Decay of that average.
        grad_checkpointing: Recompute layers in the backward pass to save memory.

    Raises:
        ConfigError: If a value is out of range.
    """

    task: PredictorTask = "depth"
    decoder: DecoderName = "dpt"
    decoder_dim: int = 0
    freeze_encoder: bool = False
    data_format: DataFormat = "folder"
    split_file: str = ""
    val_split_file: str = ""
    depth_dir: str = ""
    val_depth_dir: str = ""
    depth_scale: float = 0.0
    min_depth: float = 1e-3
    max_depth: float = 0.0
    num_labels: int = 0
    img_size: str = ""
    epochs: int = 20
    batch_size: int = 8
    lr: float = 1e-4
    min_lr: float = 1e-5
    weight_decay: float = 0.01
    encoder_lr_scale: float = 0.1
    eval_every: int = 0
    max_watched: int | None = None
    hflip: float = 0.5
    color_jitter: float = 0.1
    crop_scale: float = 0.8
    rotation: float = 0.0
    drop_path: float | None = None
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.img_size, int) and not isinstance(self.img_size, bool):
            object.__setattr__(self, "img_size", str(self.img_size))
        super().__post_init__()
        if self.dataset:
            raise ConfigError(f"--dataset ({self.dataset}) has no maps: dense tasks read --data-format, leave it out.")
        if self.data_format not in get_args(DataFormat):
            raise ConfigError(
                f"--data-format must be one of {', '.join(get_args(DataFormat))}; not {self.data_format!r}."
            )
        if self.max_depth == 0:
            object.__setattr__(self, "max_depth", FORMATS[self.data_format].max_depth)
        _ = self.size, self.task_config

    @property
    def size(self) -> tuple[int, int] | None:
        """The size (height, width) that is trained on; None is the encoder's own.

        Raises:
            ConfigError: If it is neither one number nor two.
        """
        if not self.img_size:
            return None
        numbers = re.fullmatch(r"(\d+)(?:[,x](\d+))?", self.img_size)
        if not numbers or not int(numbers[1]):
            raise ConfigError(f"--img-size should be a number of pixels, or height,width; not {self.img_size!r}.")
        return int(numbers[1]), int(numbers[2] or numbers[1])

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
