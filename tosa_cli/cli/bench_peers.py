"""`tosa bench --peers`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tosa_cli.cli import console
from tosa_cli.cli.timing import Setup, say_conditions, spread
from tosa_cli.data.datasets import name_of, open_dataset
from tosa_cli.data.loading import images_to_read
from tosa_cli.data.opening import choose_indices
from tosa_cli.model.flops import count_flops
from tosa_cli.peers.compare import Peer, PeerRow, PeersReport, Quality, build_peers, compare_peers, measure_quality
from tosa_cli.progress import counted, figure, tell_skipped

if TYPE_CHECKING:
    from tosa_cli.model.tosa_vit import TosaViT

TIMED = ["GMACs", "median ms", "spread ms", "peak MiB", "speed", "ideal"]
COSINES = ["patch", "class", "patch, worst tenth", "class, worst tenth"]


def bench_peers(setup: Setup, data_dir: str, max_samples: int | None, workers: int) -> None:
    """Compare the converted model with its peers: time, and with photos the final tokens as well.

    Args:
        setup: What is measured and how.
        data_dir: Folder of photos; empty to leave the quality out.
        max_samples: Use so many of them; None uses all.
        workers: Processes that load photos.

    Raises:
        ConfigError: If the model saves no MACs.
        DataError: If the photos cannot be read.
    """
    dense: Any
    dense, converted = setup.load(setup.img_size)
    photos = _open_photos(setup, converted, data_dir, max_samples, workers) if data_dir else None
    flops = count_flops(converted)
    peers, missing = build_peers(dense, flops.reduction)
    tosa = Peer(converted, flops.gmacs, flops.reduction, converted.config.to_dict())
    models = {"dense": Peer(dense, flops.dense_gmacs, 0.0), "tosa": tosa, **peers}
    for peer in models.values():
        peer.model.to(setup.device, setup.dtype)
    quality: dict[str, Quality] = {}
    about_photos: dict[str, Any] = {"samples": None, "skipped": []}
    if photos is not None:
        compared = {name: peer.model for name, peer in models.items()}
        with console.progress("Comparing tokens") as bar:
            bar.start(-(-photos.num_images // setup.batch_size), 0)
            quality, samples = measure_quality(
                dense, compared, photos, device=setup.device, dtype=setup.dtype, advance=bar.advance
            )
        about_photos = {"dataset": name_of(data_dir), "samples": samples, "skipped": list(photos.failed)}
        tell_skipped(about_photos["skipped"], console)
    report = time_peers(setup, models, (converted.in_chans, *flops.img_size), missing, quality)
    if setup.json:
        target = {"model": setup.name, "target_reduction": flops.reduction}
        console.print_json({**target, **report.to_dict(), **about_photos})
        return
    console.print_table(
        f"{setup.name}, batch of {setup.batch_size} at {flops.img_size[0]}x{flops.img_size[1]}, "
        f"peers at {flops.reduction:.1%} fewer MACs",
        ["", *TIMED, *(COSINES if photos else [])],
        [_row(name, row) for name, row in report.models.items()],
    )
    for name, reason in missing.items():
        console.print_line(f"{name}: left out. {reason}")
    if photos is not None:
        console.say(
            f"patch, class: cosine to the dense model's final tokens, mean over {about_photos['samples']} photos; "
            f"worst tenth: nine of ten photos are above."
        )
    say_conditions(report.conditions)


def time_peers(
    setup: Setup,
    models: Mapping[str, Peer],
    shape: tuple[int, int, int],
    missing: Mapping[str, str],
    quality: Mapping[str, Any],
) -> PeersReport:
    """Time models in turns, and tell of it.

    Args:
        setup: How they are measured.
        models: The models by name, the dense one first.
        shape: Channels, height and width of an image.
        missing: Peers that cannot be had, with the reason.
        quality: Of each model, where images were compared.
    """
    images = torch.randn(setup.batch_size, *shape, device=setup.device, dtype=setup.dtype)
    console.say(f"Timing {counted(setup.rounds, 'turn')} of each of {len(models)} models ...")
    with console.progress("Timing") as bar:
        bar.start(len(models) * setup.rounds, 0)
        return compare_peers(
            models,
            images,
            missing=missing,
            quality=quality,
            rounds=setup.rounds,
            compiled=setup.compile,
            advance=bar.advance,
        )


def _open_photos(setup: Setup, model: "TosaViT", data_dir: str, max_samples: int | None, workers: int) -> Any:
    opened = open_dataset(data_dir, "", "validation", batch_size=setup.batch_size)
    indices, _ = choose_indices(opened, max_samples, hold_out=False, name=data_dir)
    return images_to_read(opened, model, indices=indices, batch_size=setup.batch_size, workers=workers, name=data_dir)


def _row(name: str, row: PeerRow) -> list[str]:
    found = row.quality if isinstance(row.quality, Quality) else None
    cosines = (
        [found.patch_cosine, found.class_cosine, found.patch_worst_tenth, found.class_worst_tenth] if found else []
    )
    return [name, *timed_cells(row), *map(figure, cosines)]


def timed_cells(row: PeerRow) -> list[str]:
    """What a table says of a model but for its quality, by the columns `TIMED`."""
    return [
        f"{row.gmacs:.3f}",
        f"{row.timing.median_s * 1e3:.1f}",
        spread(row.timing),
        f"{row.timing.peak_memory_mb:.0f}",
        f"{row.speed.speedup:.2f}x",
        f"{row.ideal_speedup:.2f}x",
    ]
