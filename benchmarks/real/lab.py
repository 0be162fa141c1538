"""What the benchmarks on a real DINOv2 share: checkpoint, photos, and how a model is made, measured and described."""

import copy
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, Lab, run_module
from benchmarks.writer import machine

RESULTS = FIGURES / "results.json"
SMALL = 224
"""The smaller of the two image sizes, in pixels."""
ELEVEN = tuple(range(2, 13))
MATCHED: Any = "nearest+affine"
"""The bypass of the preset `matched`."""
SPAN = 2
"""Its span."""


def fetch(work: Path) -> tuple[Path, Path]:
    """Fetch checkpoint and photos, if they are not there; returns their folders."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, photos = work / "dinov2_small", work / "photos"
    if not checkpoint.exists():
        run_module("real.checkpoint", checkpoint)
    if not photos.exists():
        run_module("real.photos", photos)
    return checkpoint, photos


class RealLab(Lab):
    """The checkpoint, the photos, and the results so far.

    Args:
        work: Folder with checkpoint and photos.
        path: The results so far, and where new ones go.
    """

    def __init__(self, work: Path, path: Path = RESULTS) -> None:  # noqa: D107
        from tosa_cli.train.config import TrainConfig
        from tosa_cli.train.processes import make_accelerator

        super().__init__(path)
        self.work = work
        self.accelerator = make_accelerator(TrainConfig(device="cpu"))
        now = machine()
        if self.results.setdefault("machine", now) != now:
            self.results["latest_machine"] = now
        self.dense: dict[tuple[int, int], Any] = {}

    def source(self, size: int) -> Any:
        """The dense model at an image size."""
        from tosa_cli.hub.source import load_source

        return load_source(str(self.work / "dinov2_small"), img_size=size).model

    def photos(self, split: str, model: Any, count: int, seed: int | None = None) -> Any:
        """Some photos of a split: evenly spread, or drawn with a seed."""
        from tosa_cli.data.datasets import open_dataset, split_indices
        from tosa_cli.data.loading import images_to_read

        opened = open_dataset(str(self.work / "photos" / split))
        indices, _ = split_indices(len(opened), count, hold_out=False)
        if seed is not None:
            indices = sorted(random.Random(seed).sample(range(len(opened)), count))
        batch_size = 8 if model.patch_embed.img_size[0] <= SMALL else 2
        return images_to_read(opened, model, indices=indices, batch_size=batch_size, name=split)

    def quality(self, model: Any, held_out: int) -> dict[str, Any]:
        """Cosine of final tokens to the dense model's on held-out photos: mean, median and worst tenth."""
        cosines = self.cosines(model, held_out)
        found = {"held_out": held_out}
        for name, values in (("patch", cosines[:, 1:].mean(1)), ("class", cosines[:, 0])):
            found[name] = values.mean().item()
            found[f"{name}_median"] = values.median().item()
            found[f"{name}_worst_tenth"] = values.quantile(0.1).item()
        return found

    def cosines(self, model: Any, held_out: int) -> Any:
        """Cosine of each final token to the dense model's on held-out photos: (photos, N)."""
        import torch
        from torch.nn import functional as F

        size = model.patch_embed.img_size[0]
        key = (size, held_out)
        with torch.inference_mode():
            if key not in self.dense:
                dense = self.source(size)
                photos = list(self.photos("held_out", dense, held_out).batches(True))
                self.dense[key] = [(batch.images, dense.forward_features(batch.images)) for batch in photos]
            return torch.cat([F.cosine_similarity(model.forward_features(x), y, dim=-1) for x, y in self.dense[key]])


def distilled(
    lab: RealLab, source: Any, config: Any, calibration: int, seed: int | None = None, at_small: int = 64
) -> tuple[Any, float]:
    """Convert and distill on calibration photos; also the seconds that took.

    Selectors that are trained step by step are trained at 224 on `at_small` photos, whatever the size they are used at:
    with a kernel of 1 they depend on no size, and training them at 518 takes hours on two cores.
    """
    from tosa_cli.data.loading import Augmentation, images_to_read
    from tosa_cli.fit.calibrate import calibrate
    from tosa_cli.model.convert import insert_selectors
    from tosa_cli.train.config import DistillConfig
    from tosa_cli.train.distill import distill

    model = insert_selectors(copy.deepcopy(source), config)
    if not config.needs_distill:
        return model, 0.0
    settings = DistillConfig(device="cpu", workers=0, seed=seed or 0)
    fitting = lab.photos("calibration", source, calibration, seed)
    if config.selector == "attention" and source.patch_embed.img_size[0] > SMALL:
        trained, seconds = distilled(lab, lab.source(SMALL), config, at_small, seed)
        model.selectors.load_state_dict(trained.selectors.state_dict())
        fit = partial(calibrate, lab.accelerator, model, fitting) if config.is_fitted else None
    else:
        seconds = 0.0
        training = images_to_read(
            fitting.samples.dataset,
            model,
            indices=fitting.samples.indices,
            batch_size=settings.batch_size,
            augment=Augmentation(settings.crop_scale),
        )
        checkpoint = lab.work / "results.checkpoint"
        fit = partial(distill, lab.accelerator, model, training, fitting, settings, checkpoint=checkpoint)
    started = time.perf_counter()
    if fit is not None:
        fit()
    return model.eval(), seconds + time.perf_counter() - started


def describe(model: Any, seconds: float, quality: dict[str, Any]) -> dict[str, Any]:
    """What is written down of a model."""
    from tosa_cli.model.flops import count_flops

    flops = count_flops(model)
    added = (flops.selector_gmacs + flops.bypass_gmacs) / flops.dense_gmacs
    return {"reduction": flops.reduction, "added": added, "distill_seconds": seconds, **quality}


def chosen(lab: RealLab, target: float, bypass: Any = MATCHED, span: int = SPAN) -> Any:
    """The matched setting for a target, as it was chosen at 224."""
    from tosa_cli.config import TosaConfig

    rates = lab.results["budget"][f"auto {bypass}, span {span}, -{target:.0%}"]["keep_rates"]
    layers = tuple(int(layer) for layer in rates)
    return TosaConfig(layers=layers, keep_rate=tuple(rates.values()), selector="similarity", bypass=bypass, span=span)
