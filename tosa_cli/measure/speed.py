"""Wall-clock time of the converted model beside its dense source, in turns in one process."""

import dataclasses
import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Timing:
    """Seconds for one batch, and the most memory that a forward pass took."""

    median_s: float
    min_s: float
    max_s: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class SpeedReport:
    """Speed with its conditions. `ideal_speedup` is the ratio of the MACs."""

    device: str
    dtype: str
    batch_size: int
    img_size: tuple[int, int]
    torch: str
    threads: int
    compile: bool
    rounds: int
    dense: Timing
    tosa: Timing
    speedup: float
    speedup_min: float
    speedup_max: float
    ideal_speedup: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@torch.inference_mode()
def compare_speed(
    dense: nn.Module,
    tosa: nn.Module,
    images: Tensor,
    *,
    ideal_speedup: float,
    rounds: int = 15,
    seconds: float = 0.5,
    compiled: bool = False,
) -> SpeedReport:
    """Time two models in turns, so that a machine whose speed drifts is fair to both.

    Args:
        dense: The source model.
        tosa: The converted model.
        images: A batch (B, C, height, width) on the device and of the type to measure.
        ideal_speedup: Ratio of the MACs.
        rounds: Turns of each model; median and spread are over them.
        seconds: Least time of a turn; it repeats the batch as often.
        compiled: Measure both under `torch.compile`.

    Returns:
        Timings and their ratio: `speedup` is the median of the ratios turn by turn.
    """
    models = {"dense": dense.eval(), "tosa": tosa.eval()}
    memory = {name: _peak_memory_mb(model, images) for name, model in models.items()}
    if compiled:
        models = {name: torch.compile(model) for name, model in models.items()}  # type: ignore[misc]
    repeats = {}
    for name, model in models.items():
        for _ in range(2):
            model(images)
        repeats[name] = max(1, round(seconds / _time(model, images, 1)))
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(_time(model, images, repeats[name]))
    ratios = [d / t for d, t in zip(times["dense"], times["tosa"], strict=True)]
    timings = {
        name: Timing(statistics.median(values), min(values), max(values), memory[name])
        for name, values in times.items()
    }
    return SpeedReport(
        device=device_name(images.device),
        dtype=str(images.dtype).removeprefix("torch."),
        batch_size=len(images),
        img_size=(images.shape[-2], images.shape[-1]),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        compile=compiled,
        rounds=rounds,
        dense=timings["dense"],
        tosa=timings["tosa"],
        speedup=statistics.median(ratios),
        speedup_min=min(ratios),
        speedup_max=max(ratios),
        ideal_speedup=ideal_speedup,
    )


def device_name(device: torch.device) -> str:
    """What to call a device in a report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(model: nn.Module, images: Tensor, repeats: int) -> float:
    synchronize(images.device)
    start = time.perf_counter()
    for _ in range(repeats):
        model(images)
    synchronize(images.device)
    return (time.perf_counter() - start) / repeats


def _peak_memory_mb(model: nn.Module, images: Tensor) -> float | None:
    """Most memory that one forward pass allocates beyond weights and input, in MiB."""
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(images)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(images)
    level = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak / 2**20
