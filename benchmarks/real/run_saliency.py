"""A trained dense head on the converted encoder, without training: the saliency head of a real DINOv2 ViT-S/14.

    python -m benchmarks.real.run_saliency [--work FOLDER] [--sizes 224 518]
    python -m benchmarks.real.run_saliency --render

The head was trained on the dense encoder's patch tokens and reads the converted encoder's unchanged. Its maps are
compared with those of the dense encoder on held-out photos. It writes benchmarks/results/saliency.json after each
measurement and goes on where it stopped; from that file it makes benchmarks/SALIENCY.md, and from the maps in the work
folder the picture.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIVE, WORK
from benchmarks.real.lab import ELEVEN, RealLab, describe, distilled, fetch
from benchmarks.real.render_saliency import (
    AFFINE,
    CALIBRATED,
    CALIBRATION,
    DRAWN,
    HELD_OUT,
    PAGE,
    PAPER,
    PICTURE,
    RANDOM,
    RESULTS,
    SHOWN,
    draw,
    file_name,
    render,
)


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
    if (args.work / "saliency_maps").is_dir():
        draw(args.work / "saliency_maps", PICTURE)
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Wrote {PAGE}")


class SaliencyLab(RealLab):
    """The checkpoint, its saliency head, the photos, and the results so far."""

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
        patch = model.patch_embed.patch_size[0]
        grid = tokens[:, model.num_prefix_tokens :].transpose(1, 2)
        return self.head(grid.unflatten(2, (images.shape[-2] // patch, images.shape[-1] // patch)))[:, 0], tokens

    def held_out(self, size: int) -> list[tuple[Any, Any, Any]]:
        """Images, and the dense encoder's maps and tokens of them, batch by batch; read once."""
        import torch

        if size not in self.seen:
            dense = self.source(size)
            photos = self.photos("held_out", dense, HELD_OUT[size])
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


def run_size(lab: SaliencyLab, size: int) -> None:
    """Every setting at one image size."""
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
        CALIBRATED: measured(lab, source, 0.25),
        "calibrated, layers by measurement: -40%": measured(lab, source, 0.4),
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


def measured(lab: SaliencyLab, source: Any, target: float) -> Any:
    """The preset `calibrated` for a target: layers and keep rates by error curves measured at 224."""
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


if __name__ == "__main__":
    main()
