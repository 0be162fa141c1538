"""Wall-clock time of models side by side, in turns in one process."""

import dataclasses
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
class Speedup:
    """How many times as fast as the first model: median and spread of the ratios turn by turn."""

    speedup: float
    speedup_min: float
    speedup_max: float


@dataclass(frozen=True)
class Conditions:
    """What a time was measured under; the image size is (height, width) in pixels."""

    device: str
    dtype: str
    batch_size: int
    img_size: tuple[int, int]
    torch: str
    threads: int
    compile: bool
    rounds: int


@dataclass(frozen=True)
class TurnsReport:
    """Times of models by name, in turns under the same conditions, and the speed of each against the first."""

    conditions: Conditions
    timings: dict[str, Timing]
    speedups: dict[str, Speedup]


@dataclass(frozen=True)
class SpeedReport(Speedup, Conditions):
    """Speed of a converted model with its conditions. `ideal_speedup` is the ratio of the MACs."""

    dense: Timing
    tosa: Timing
    ideal_speedup: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def compare_speed(
    dense: nn.Module,
    tosa: nn.Module,
    images: Tensor,
    *,
    ideal_speedup: float,
    rounds: int = 15,
    seconds: float = 0.5,
    compiled: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> SpeedReport:
    """Time a converted model against its dense source; the arguments not named here are `time_in_turns`'s.

    Args:
        dense: The source model.
        tosa: The converted model.
        images: A batch (B, C, height, width) on the device and of the type to measure.
        ideal_speedup: Ratio of the MACs.
        rounds: Turns of each model.
        seconds: Least time of a turn.
        compiled: Measure both under `torch.compile`.
        advance: Told after each turn how many images it computed.

    Returns:
        Timings and their ratio: `speedup` is the median of the ratios turn by turn.
    """
    report = time_in_turns(
        {"dense": dense, "tosa": tosa}, images, rounds=rounds, seconds=seconds, compiled=compiled, advance=advance
    )
    return SpeedReport(
        **vars(report.conditions),
        **vars(report.speedups["tosa"]),
        dense=report.timings["dense"],
        tosa=report.timings["tosa"],
        ideal_speedup=ideal_speedup,
    )


@torch.inference_mode()
def time_in_turns(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    rounds: int = 15,
    seconds: float = 0.5,
    compiled: bool = False,
    cuda_graphs: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> TurnsReport:
    """Time models in turns, so that a machine whose speed drifts is fair to all.

    The order is drawn anew for each round: what ran before leaves its own state of caches and of memory that was freed,
    and the model behind the largest one would pay for it each time.

    Args:
        models: Models by name; speed is told against the first. The memory of one with an attribute `runs_elsewhere`
            that is true, which PyTorch cannot see, is None.
        images: A batch (B, C, height, width) on the device and of the type to measure.
        rounds: Turns of each model; median and spread are over them.
        seconds: Least time of a turn; it repeats the batch as often.
        compiled: Measure all under `torch.compile`.
        cuda_graphs: With `compiled`, in its mode `reduce-overhead`, which replays CUDA graphs on a GPU.
        advance: Told after each turn how many images it computed.

    Returns:
        Times of each model, and the ratio of the first model's to it, turn by turn.
    """
    memory = {
        name: None if getattr(model.eval(), "runs_elsewhere", False) else _peak_memory_mb(model, images)
        for name, model in models.items()
    }
    mode = "reduce-overhead" if cuda_graphs else None
    with _room_to_compile(len(models)) if compiled else nullcontext():
        runs: dict[str, Callable[[Tensor], Any]] = {
            name: torch.compile(model, dynamic=False, mode=mode) if compiled else model
            for name, model in models.items()
        }
        repeats = {}
        for name, run in runs.items():
            for _ in range(2):
                run(images)
            repeats[name] = max(1, round(seconds / _time(run, images, 1)))
        times: dict[str, list[float]] = {name: [] for name in runs}
        orders = random.Random(0)
        for _ in range(rounds):
            for name in orders.sample(list(runs), len(runs)):
                times[name].append(_time(runs[name], images, repeats[name]))
                advance(repeats[name] * len(images))
    first = next(iter(times.values()))
    return TurnsReport(
        conditions=_conditions(images, compiled, rounds),
        timings={
            name: Timing(statistics.median(values), min(values), max(values), memory[name])
            for name, values in times.items()
        },
        speedups={name: _speedup(first, values) for name, values in times.items()},
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


def _conditions(images: Tensor, compiled: bool, rounds: int) -> Conditions:
    return Conditions(
        device=device_name(images.device),
        dtype=str(images.dtype).removeprefix("torch."),
        batch_size=len(images),
        img_size=(images.shape[-2], images.shape[-1]),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        compile=compiled,
        rounds=rounds,
    )


def _speedup(first: list[float], seconds: list[float]) -> Speedup:
    ratios = [a / b for a, b in zip(first, seconds, strict=True)]
    return Speedup(statistics.median(ratios), min(ratios), max(ratios))


def _room_to_compile(num_models: int) -> Any:
    # Models of one class share their code, of which PyTorch keeps few compiled versions: past its limit it runs a
    # model uncompiled without a word. What earlier calls compiled is dropped for the same reason.
    from torch._dynamo import config

    torch.compiler.reset()
    return config.patch(recompile_limit=8 * num_models)


def _time(model: Callable[[Tensor], Any], images: Tensor, repeats: int) -> float:
    synchronize(images.device)
    start = time.perf_counter()
    for _ in range(repeats):
        model(images)
    synchronize(images.device)
    return (time.perf_counter() - start) / repeats


def _peak_memory_mb(model: nn.Module, images: Tensor) -> float | None:
    """Most memory that one forward pass allocates beyond weights, input and what stays of a pass before, in MiB."""
    # The first pass on a device allocates workspaces that stay, whichever model makes it.
    model(images)
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        model(images)
        return (torch.cuda.max_memory_allocated(images.device) - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(images)
    level = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak / 2**20
