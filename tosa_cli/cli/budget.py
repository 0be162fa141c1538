"""Layers and keep rates chosen by measurement: what `convert --layers auto` and `inspect --data-dir` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tosa_cli.cli import console
from tosa_cli.config import Method, TosaConfig

if TYPE_CHECKING:
    from tosa_cli.fit.budget import ErrorCurve

DEFAULT_SAMPLES = 32
BATCH_SIZE = 8


def measure(
    model: Any, method: Method, data_dir: str, max_samples: int | None, dataset: str = "", split: str = "train"
) -> "list[ErrorCurve]":
    """Measure the error curve of each layer on a few images, evenly spread, or the first of a stream.

    Raises:
        DataError: If there are none.
        ConfigError: If the selector says nothing before it is trained.
    """
    from tosa_cli.data.datasets import is_streamed, open_dataset, split_indices
    from tosa_cli.data.loading import images_to_read
    from tosa_cli.fit.budget import measure_curves
    from tosa_cli.train.config import TrainConfig
    from tosa_cli.train.processes import make_accelerator

    opened = open_dataset(data_dir, dataset, split)
    name, count = dataset or data_dir, max_samples or DEFAULT_SAMPLES
    indices = None if is_streamed(opened) else split_indices(len(opened), count, hold_out=False)[0]
    images = images_to_read(opened, model, indices=indices, first=count, batch_size=BATCH_SIZE, name=name)
    console.say(f"Measuring what each layer can spare, on {console.counted(images.num_images, 'image')} of {name} ...")
    with console.progress("Measuring") as progress:
        curves = measure_curves(make_accelerator(TrainConfig()), model, method, images, progress=progress)
    for name in images.failed:
        console.warn(f"Skipped {name}.")
    return curves


def show_curves(curves: "list[ErrorCurve]", config: TosaConfig | None = None) -> None:
    """Show the curves, and what was chosen from them."""
    chosen = config.keep_rates if config is not None else {}
    rows = []
    for curve in curves:
        row = [curve.name, *(f"{error * 1000:.2f}" for error in curve.errors)]
        if config is not None:
            row.append(str(chosen.get(curve.layers[0], "-")))
        rows.append(row)
    console.print_table(
        "1000 x (1 - cosine of the final tokens), each layer alone, by keep rate",
        ["layer", *(str(rate) for rate in curves[0].keep_rates), *(["chosen"] if config is not None else [])],
        rows,
    )


def plot_curves(curves: "list[ErrorCurve]", path: Path) -> None:
    """Draw the curves into a PNG."""
    from tosa_cli.draw.plot import plot_error_curves

    plot_error_curves(curves, path)
    console.say(f"Wrote {path}.")
