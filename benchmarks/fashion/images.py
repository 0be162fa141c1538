"""The images of the Fashion-MNIST experiment: which of them are trained on, and which measured."""

import random
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.fashion.variants import Settings
from tosa_cli.data.datasets import open_dataset, split_indices
from tosa_cli.data.loading import Augmentation, Images, images_to_read

TEST_BATCH = 100


class FashionImages:
    """The images, as the teacher reads them.

    Args:
        folder: What `benchmarks.fashion.data` wrote.
        teacher: The teacher.
        settings: How many are read.
    """

    def __init__(self, folder: Path, teacher: nn.Module, settings: Settings) -> None:  # noqa: D107
        self._teacher, self.settings = teacher, settings
        self._open = cache(lambda split: open_dataset(str(folder), split=split))
        self._tests: dict[int, Images] = {}

    def training(
        self, count: int, seed: int, batch_size: int, augment: Augmentation | None, workers: int = 0
    ) -> Images:
        """Training images drawn with a seed: the same for every model."""
        return images_to_read(
            self._open("train"),
            self._teacher,
            indices=self._drawn(count, seed),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            augment=augment,
            name="train",
        )

    def for_rates(self) -> Images:
        """Training images that finetuning with the first seed does not read, evenly spread over the classes."""
        opened, settings = self._open("train"), self.settings
        read = set(self._drawn(settings.finetune_images, settings.seeds[0]))
        others = [index for index in range(len(opened)) if index not in read]
        kept, _ = split_indices(len(others), settings.rate_images, hold_out=False)
        indices = [others[index] for index in kept]
        return images_to_read(opened, self._teacher, indices=indices, batch_size=TEST_BATCH, name="train")

    def _drawn(self, count: int, seed: int) -> list[int]:
        available = len(self._open("train"))
        return sorted(random.Random(seed).sample(range(available), min(count, available)))

    def tests(self, count: int) -> Images:
        """Test images evenly spread over the classes; they are read once and stay in memory."""
        if count not in self._tests:
            opened = self._open("validation")
            indices, _ = split_indices(len(opened), count, hold_out=False)
            workers = self.settings.workers
            images = images_to_read(
                opened, self._teacher, indices=indices, batch_size=TEST_BATCH, workers=workers, name="validation"
            )
            kept: Any = list(images.loader)
            images.loader = kept
            self._tests[count] = images
        return self._tests[count]
