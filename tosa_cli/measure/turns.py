"""Models on the same images, each batch in turn, with their time apart from loading."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tosa_cli.measure.speed import synchronize

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Clock:
    """Where the time of a pass went.

    Attributes:
        samples: Images that were read.
        seconds: Time of each model.
        data_seconds: Time that all else took, loading above all; known when the pass is over.
        not_finite: Models some of whose outputs were not finite, so that nothing is measured by them.
    """

    samples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    data_seconds: float = 0.0
    not_finite: set[str] = field(default_factory=set)


def run_in_turns(
    forwards: Mapping[str, Callable[[Tensor], Tensor]],
    images: Any,
    clock: Clock,
    *,
    device: torch.device,
    amp: str,
    strict: bool,
    advance: Callable[[int], None],
) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Run models on each batch of images and keep the time; the first pass of each, which is slow, is not counted.

    Args:
        forwards: Forward passes by name, from images (B, C, height, width) on the device.
        images: `Images` to read once, in order.
        clock: Kept up to date.
        device: Where to compute.
        amp: Mixed precision: `no`, `bf16` or `fp16`.
        strict: Stop at an image that cannot be read.
        advance: Told how many images are done.

    Yields:
        Each batch, and the output of each model.

    Raises:
        DataError: If no image could be read, or one could not and `strict` is set.
    """
    dtype = AUTOCAST_TYPES.get(amp)
    clock.seconds = dict.fromkeys(forwards, 0.0)
    start = time.perf_counter()
    for batch in images.batches(strict):
        inputs = batch.images.to(device)
        outputs = {}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if not clock.samples:
                warm = time.perf_counter()
                for forward in forwards.values():
                    forward(inputs)
                start += time.perf_counter() - warm
            for name, forward in forwards.items():
                synchronize(device)
                began = time.perf_counter()
                outputs[name] = forward(inputs)
                synchronize(device)
                clock.seconds[name] += time.perf_counter() - began
                if not outputs[name].isfinite().all():
                    clock.not_finite.add(name)
        yield batch, outputs
        clock.samples += len(inputs)
        advance(len(inputs))
    clock.data_seconds = time.perf_counter() - start - sum(clock.seconds.values())
