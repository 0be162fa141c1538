"""`tosa bench --peers` of a whole model."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tosa_cli.cli import console
from tosa_cli.cli.bench_peers import TIMED, time_peers, timed_cells
from tosa_cli.cli.timing import Setup, say_conditions
from tosa_cli.data.datasets import name_of
from tosa_cli.data.processed import ProcessedPhotos
from tosa_cli.measure.agreement import AgreementReport
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.find import own_shape
from tosa_cli.model.runs.flops import count_whole
from tosa_cli.model.runs.insert import dense_copy
from tosa_cli.peers.compare import Peer
from tosa_cli.peers.whole import build_whole_peers, measure_whole_quality
from tosa_cli.progress import tell_skipped


def bench_whole_peers(setup: Setup, data_dir: str, max_samples: int | None) -> None:
    """Compare a converted whole model with its peers: time, and with photos outputs and tokens as well.

    Args:
        setup: What is measured and how.
        data_dir: Folder of photos; empty to leave the quality out.
        max_samples: Use so many of them; None uses all.

    Raises:
        ConfigError: If the model saves no MACs.
        InputError: If there is no processor that prepares the photos.
        DataError: If the photos cannot be read.
    """
    part, processor = setup.load_whole()
    shape = own_shape(part)
    photos = None
    if data_dir:
        photos = ProcessedPhotos(data_dir, processor, batch_size=setup.batch_size, max_samples=max_samples)
    flops = count_whole(part)
    peers, missing = build_whole_peers(part, flops)
    config = next(found.run.to_dict() for found in converted_runs(part) if found.run is not None)
    models = {
        "dense": Peer(dense_copy(part), flops.dense_gmacs, 0.0),
        "tosa": Peer(part, flops.gmacs, flops.reduction, config),
        **peers,
    }
    quality: dict[str, AgreementReport] = {}
    about_photos: dict[str, Any] = {"samples": None, "skipped": []}
    if photos is not None:
        compared = {name: peer.model for name, peer in models.items() if name != "dense"}
        with console.progress("Comparing outputs") as bar:
            bar.start(len(photos) * len(compared), 0)

            def sized() -> Iterator[Tensor]:
                for batch in photos:
                    pixels = batch["pixel_values"]
                    if tuple(pixels.shape[-2:]) != shape[1:]:
                        pixels = F.interpolate(pixels, shape[1:], mode="bicubic", antialias=True)
                    yield pixels
                    bar.advance(len(pixels), "")

            quality = measure_whole_quality(part, compared, sized)
        samples = quality["tosa"].samples
        about_photos = {"dataset": name_of(data_dir), "samples": samples, "skipped": list(photos.skipped)}
        tell_skipped(about_photos["skipped"], console)
    report = time_peers(setup, models, shape, missing, quality)
    if setup.json:
        target = {"model": setup.name, "target_reduction": flops.reduction}
        console.print_json({**target, **report.to_dict(), **about_photos})
        return
    console.print_table(
        f"{setup.name}, batch of {setup.batch_size} at {shape[1]}x{shape[2]}, peers at {flops.encoder_reduction:.1%} "
        f"fewer MACs in the layers, {flops.reduction:.1%} fewer of the whole",
        ["", *TIMED],
        [[name, *timed_cells(row)] for name, row in report.models.items()],
    )
    if quality:
        _show_quality(quality)
    for name, reason in missing.items():
        console.print_line(f"{name}: left out. {reason}")
    say_conditions(report.conditions)


def _show_quality(quality: dict[str, AgreementReport]) -> None:
    """Print a column a figure of an output, a row a model, and what says nothing."""
    for note in quality["tosa"].notes:
        console.warn(note)
    figures = [(output, figure) for output, found in quality["tosa"].outputs.items() for figure in found]
    console.print_table(
        f"Outputs and tokens against the dense model's, mean over {quality['tosa'].samples} images",
        ["", *(f"{output}: {figure}".replace("_", " ") for output, figure in figures)],
        [
            [
                name,
                *(
                    f"{found.outputs[output][figure]:.4f}" if output in found.outputs else "-"
                    for output, figure in figures
                ),
            ]
            for name, found in quality.items()
        ],
    )
