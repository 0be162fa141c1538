"""Speed against the dense model over keep rates, batch sizes and image sizes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tosa_cli.data.images import ImgSize
from tosa_cli.measure.speed import Conditions, Speedup, Timing, time_in_turns
from tosa_cli.model.flops import count_flops
from tosa_cli.model.flops_report import FlopsReport
from tosa_cli.model.runs.find import converted_runs, own_shape
from tosa_cli.model.runs.flops import count_whole
from tosa_cli.model.runs.insert import dense_copy, shared_copy
from tosa_cli.model.tosa_vit import TosaViT


@dataclass(frozen=True)
class SweepRow:
    """One combination. The image size is (height, width) in pixels; `reduction` is the share of MACs saved.

    Attributes:
        keep_rate: Keep rate of all ToSA layers.
        batch_size: Images a batch.
        img_size: Image size.
        reduction: Share of the dense MACs that is saved, selector and bypass counted.
        dense: Time of the dense model, in turns with this one.
        tosa: Time of the converted model.
        speedup: Median of the ratios turn by turn.
        speedup_min: The least of them.
        speedup_max: The greatest of them.
        ideal_speedup: Ratio of the MACs.
        share_of_ideal: Speedup over the ideal one.
    """

    keep_rate: float
    batch_size: int
    img_size: tuple[int, int]
    reduction: float
    dense: Timing
    tosa: Timing
    speedup: float
    speedup_min: float
    speedup_max: float
    ideal_speedup: float
    share_of_ideal: float


@dataclass(frozen=True)
class SweepReport:
    """All combinations, measured under the same conditions."""

    device: str
    dtype: str
    torch: str
    threads: int
    compile: bool
    rounds: int
    rows: list[SweepRow]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Variants:
    """A dense model and converted ones, for one image size.

    Attributes:
        dense: The dense model, on the device and of the type to measure.
        models: The converted model by the keep rate of all its ToSA layers.
        flops: MACs of each.
        shape: Channels, height and width of an image.
    """

    dense: nn.Module
    models: Mapping[float, nn.Module]
    flops: Mapping[float, FlopsReport]
    shape: tuple[int, int, int]


def sweep_speed(
    load_models: Callable[[ImgSize], tuple[nn.Module, TosaViT]],
    *,
    keep_rates: Sequence[float],
    batch_sizes: Sequence[int],
    img_sizes: Sequence[ImgSize],
    rounds: int = 15,
    seconds: float = 0.5,
    compiled: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> SweepReport:
    """Time every combination; for one batch and image size the dense model and all keep rates are timed in turns.

    Args:
        load_models: Gives the dense and the converted model of an image size (None is the model's own), on the device
            and of the type to measure.
        keep_rates: Keep rates, each for all ToSA layers.
        batch_sizes: Images a batch.
        img_sizes: Image sizes.
        rounds: Turns of each model.
        seconds: Least time of a turn.
        compiled: Measure all under `torch.compile`.
        advance: Told after each turn how many images it computed.

    Returns:
        One row a combination, by image size, then batch size, then keep rate.

    Raises:
        ConfigError: If a keep rate is not above 0 and at most 1.
    """

    def at(img_size: ImgSize) -> Variants:
        dense, tosa = load_models(img_size)
        models = {rate: with_keep_rate(tosa, rate) for rate in keep_rates}
        flops = {rate: count_flops(model) for rate, model in models.items()}
        return Variants(dense, models, flops, (tosa.in_chans, *tosa.patch_embed.img_size))

    return sweep_variants(
        map(at, img_sizes), batch_sizes, rounds=rounds, seconds=seconds, compiled=compiled, advance=advance
    )


def sweep_variants(
    sizes: Iterable[Variants],
    batch_sizes: Sequence[int],
    *,
    rounds: int = 15,
    seconds: float = 0.5,
    compiled: bool = False,
    advance: Callable[[int], None] = lambda num_images: None,
) -> SweepReport:
    """Time models at several keep rates, in turns with the dense one; see `sweep_speed`, whose the other arguments are.

    Args:
        sizes: The models for each image size.
        batch_sizes: Images a batch.
        rounds: Turns of each model.
        seconds: Least time of a turn.
        compiled: Measure all under `torch.compile`.
        advance: Told after each turn how many images it computed.
    """
    rows: list[SweepRow] = []
    conditions: Conditions | None = None
    for made in sizes:
        weight = next(made.dense.parameters())
        for batch_size in batch_sizes:
            images = torch.randn(batch_size, *made.shape, device=weight.device, dtype=weight.dtype)
            timed = time_in_turns(
                {"dense": made.dense, **{str(rate): model for rate, model in made.models.items()}},
                images,
                rounds=rounds,
                seconds=seconds,
                compiled=compiled,
                advance=advance,
            )
            conditions = timed.conditions
            for rate, count in made.flops.items():
                ideal, name = count.dense_gmacs / count.gmacs, str(rate)
                rows.append(
                    _row(
                        rate,
                        count.reduction,
                        ideal,
                        conditions,
                        timed.timings["dense"],
                        timed.timings[name],
                        timed.speedups[name],
                    )
                )
    if conditions is None:
        raise ValueError("There is nothing to sweep over.")
    return SweepReport(
        device=conditions.device,
        dtype=conditions.dtype,
        torch=conditions.torch,
        threads=conditions.threads,
        compile=conditions.compile,
        rounds=conditions.rounds,
        rows=rows,
    )


def with_keep_rate(model: TosaViT, keep_rate: float) -> TosaViT:
    """The same model at one keep rate for all its ToSA layers; the backbone is shared, the rest is copied.

    Raises:
        ConfigError: If the keep rate is not above 0 and at most 1.
    """
    weight = next(model.parameters())
    variant = TosaViT(model.backbone, dataclasses.replace(model.config, keep_rate=keep_rate))
    variant.load_state_dict(model.state_dict())
    return variant.to(weight.device, weight.dtype).train(model.training)


def whole_variants(model: nn.Module, keep_rates: Sequence[float]) -> Variants:
    """A whole model at several keep rates, each for all its ToSA layers; weights are shared.

    Args:
        model: The converted model, or the part of it that takes images, on the device and of the type to measure.
        keep_rates: The keep rates.

    Raises:
        ConfigError: If a keep rate is not above 0 and at most 1.
    """
    models = {rate: _whole_with_keep_rate(model, rate) for rate in keep_rates}
    flops = {rate: count_whole(variant) for rate, variant in models.items()}
    return Variants(dense_copy(model), models, flops, own_shape(model))


def _whole_with_keep_rate(model: nn.Module, keep_rate: float) -> nn.Module:
    variant = shared_copy(model)
    for found in converted_runs(variant):
        assert found.run is not None
        found.run.config = dataclasses.replace(found.run.config, keep_rate=keep_rate)
        found.run.keep_rates = found.run.config.keep_rates
    return variant


def _row(
    keep_rate: float,
    reduction: float,
    ideal: float,
    conditions: Conditions,
    dense: Timing,
    tosa: Timing,
    speed: Speedup,
) -> SweepRow:
    return SweepRow(
        keep_rate=keep_rate,
        batch_size=conditions.batch_size,
        img_size=conditions.img_size,
        reduction=reduction,
        dense=dense,
        tosa=tosa,
        speedup=speed.speedup,
        speedup_min=speed.speedup_min,
        speedup_max=speed.speedup_max,
        ideal_speedup=ideal,
        share_of_ideal=speed.speedup / ideal,
    )
