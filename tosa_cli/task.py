"""What a predictor predicts, as one frozen, strict object. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tosa_cli.errors import ConfigError
from tosa_cli.settings import Setting, Settings

PREDICTOR_ARCHITECTURE = "tosa_dense"
"""Name of predictors (encoder and decoder) in timm's registry."""

IGNORED_LABEL = 255
"""A pixel of a mask that belongs to no class."""

IGNORE_INDEX = Setting("Value of a mask that is no class either, as 255 is; segmentation only.", ge=0, le=254)

PredictorTask = Literal["depth", "segmentation"]
DecoderName = Literal["linear", "dpt", "newcrfs"]


DECODER = Setting(
    "What turns tokens into a map: linear (a linear map of the last tokens, as DINOv2 is probed), dpt (Ranftl et al. "
    "2021) or newcrfs (Yuan et al. 2022)."
)
DECODER_DIM = Setting(
    "Width of the decoder; 0 is that of its paper (dpt: 256, newcrfs: 128 at its finest level). The linear decoder has "
    "none.",
    ge=0,
    multiple_of=8,
    expected="0 or a multiple of 8",
)
MIN_DEPTH = Setting("Smallest depth in metres.")
NUM_LABELS = Setting("Number of classes; segmentation only. 255 in a mask is no class.", ge=0, le=IGNORED_LABEL)


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Settings):
    """What a predictor predicts, and with which decoder.

    Raises:
        ConfigError: If a value is out of range.
    """

    noun: ClassVar[str] = "setting of the task:"

    task: Annotated[PredictorTask, Setting("What is predicted: depth in metres, or segmentation into classes.")] = (
        "depth"
    )
    decoder: Annotated[DecoderName, DECODER] = "dpt"
    decoder_dim: Annotated[int, DECODER_DIM] = 0
    min_depth: Annotated[float, MIN_DEPTH] = 1e-3
    max_depth: Annotated[float, Setting("Largest depth in metres.")] = 10.0
    num_labels: Annotated[int, NUM_LABELS] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_depth < self.max_depth:
            raise ConfigError(f"min_depth ({self.min_depth}) must be above 0 and below max_depth ({self.max_depth}).")
        if self.task == "segmentation" and self.num_labels < 2:
            raise ConfigError(f"num_labels must be 2 or more for segmentation, not {self.num_labels!r}.")
