"""The images of a calibration: what is kept of them from layer to layer, and how sums of several processes meet.

The tokens of all images between two layers lie on disk, a file a batch, so each layer runs once an image and memory
does not depend on their number. Sums are added in the order of the batches, whichever process made them: one process
and several come to the same numbers.
"""

import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tosa_cli.data.loading import Images
from tosa_cli.errors import OutputError
from tosa_cli.model.places import Places
from tosa_cli.model.regression import Sums
from tosa_cli.model.tosa_layers import TosaLayers
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.progress import NoProgress, Progress


class KeptTokens(ABC):
    """Batches of a calibration: their tokens between two layers on disk, and sums over them.

    Used as a context: what it keeps on disk is removed at the end.

    Args:
        accelerator: From `make_accelerator`.
        model: The layers that the tokens go through.
        num_batches: Number of batches, in all processes.
        progress: Told about the advance.

    Attributes:
        num_images: Images read so far, in all processes.
        places: Where the tokens of the batch stand that was read last.
    """

    def __init__(
        self, accelerator: Accelerator, model: TosaLayers, num_batches: int, progress: Progress | None = None
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.progress = progress or NoProgress()
        self.num_batches = num_batches
        self.num_images = 0
        self.places = Places((0, 0))

    @abstractmethod
    def read(self) -> Iterator[tuple[int, Tensor]]:
        """The batches of this process: number, and the tokens (B, N, D) that enter layer 1."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="tosa-")
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def kept(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The batches of this process that were kept: number, and tensors by name."""
        for path in sorted(Path(self._folder.name).iterdir()):
            values = {name: value.to(self.accelerator.device) for name, value in load_file(path).items()}
            yield int(path.stem), values
            for _ in range(min(self.accelerator.num_processes, self.num_batches - int(path.stem))):
                self.progress.advance(len(values["tokens"]), "")

    def keep(self, number: int, values: dict[str, Tensor]) -> None:
        """Keep tensors of a batch, in the place of those kept before."""
        path = Path(self._folder.name, f"{number:08d}.safetensors")
        # The tensors kept before may still be read from their file: it goes when they go.
        path.unlink(missing_ok=True)
        try:
            save_file({name: value.contiguous() for name, value in values.items()}, path)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"The tokens of the calibration images do not fit into {path.parent} ({error}). Use fewer images "
                f"(--max-samples), or set TMPDIR to a folder with more space."
            ) from error

    def sum_up(self, sums: Iterator[dict[Any, Sums]]) -> dict[Any, Sums]:
        """Add sums of all batches of all processes, in the order of the batches."""
        total: dict[Any, Sums] = {}
        while True:
            mine = next(sums, None)
            everyone = gather_object([mine]) if self.accelerator.num_processes > 1 else [mine]
            if all(one is None for one in everyone):
                return total
            for one in everyone:
                for key, parts in (one or {}).items():
                    for name, value in parts.items():
                        held = total.setdefault(key, {})
                        held[name] = held[name] + value if name in held else value


class Calibration(KeptTokens):
    """A calibration of a model around a timm ViT, by images.

    Args:
        accelerator: From `make_accelerator`.
        model: The ToSA model.
        images: Calibration images, in order and not augmented.
        strict: Stop at an image that cannot be read.
        progress: Told about the advance.

    Attributes:
        targets: Labels (B,) of the batch that was read last; -1 where there is none.
    """

    model: TosaViT
    targets: Tensor

    def __init__(
        self, accelerator: Accelerator, model: TosaViT, images: Images, strict: bool, progress: Progress | None
    ) -> None:
        num_batches = -(-images.num_images // (images.loader.batch_size or 1))
        super().__init__(accelerator, model.to(accelerator.device).eval(), num_batches, progress)
        self.images = images
        self.strict = strict

    def read(self) -> Iterator[tuple[int, Tensor]]:
        """The batches of this process: number, and embedded tokens (B, N, D)."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        self.num_images = 0
        batches = enumerate(self.images.batches(self.strict))
        # A turn is read whole before any of it is computed: an image that stops one process stops all of them.
        while turn := list(itertools.islice(batches, processes)):
            for number, batch in turn:
                self.num_images += len(batch.images)
                if number % processes == own:
                    pixels = batch.images.to(self.accelerator.device)
                    tokens, self.places = self.model.embed(pixels)
                    self.targets = batch.targets.to(self.accelerator.device)
                    yield number, tokens
                self.progress.advance(len(batch.images), "")
