"""Makes, trains and measures the models of the Fashion-MNIST experiment; long, as one class keeps all its results."""

import copy
import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.fashion.figures import best_rate
from benchmarks.fashion.models import build_model
from benchmarks.fashion.teacher import Log, make_model
from benchmarks.fashion.variants import DISTILL, FINETUNE, MATCHED, RATES, Settings, Variant, tried
from benchmarks.lab import Lab
from benchmarks.writer import machine, whole_file, write_json
from tosa_cli.data.datasets import open_dataset, split_indices
from tosa_cli.data.loading import Augmentation, Images, images_to_read
from tosa_cli.fit.budget import ErrorCurve, measure_curves
from tosa_cli.measure.evaluation import measure_models
from tosa_cli.measure.selectors import measure_selectors
from tosa_cli.measure.speed import time_in_turns
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.classification import AccuracyMeasure, Classification
from tosa_cli.tasks.tokens import finetune_augmentation
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.train.distill import distill
from tosa_cli.train.processes import make_accelerator

TEST_BATCH = 100


class FashionLab(Lab):
    """Data, teacher, and the results so far. Several processes may share a work folder and share the work.

    Args:
        work: Folder with `fashion` and `teacher`; weights and checkpoints go to `runs` in it, into a folder of their
            own for each teacher and settings.
        path: The results so far, and where new ones go.
        settings: How much is trained and measured.

    Raises:
        SystemExit: If the results were measured with other settings, or with another teacher.
    """

    duration = "total_seconds"

    def __init__(self, work: Path, path: Path, settings: Settings | None = None) -> None:  # noqa: D107
        super().__init__(path)
        self.work, self.settings = work, settings or Settings()
        weights = work / "teacher" / "model.safetensors"
        used = {**dataclasses.asdict(self.settings), "finetune": FINETUNE, "rates": RATES, "distill": DISTILL}
        used = json.loads(json.dumps({**used, "teacher": _digest(weights.read_bytes())}))
        if self.results.get("settings", used) != used:
            raise SystemExit(
                f"error: {path} was measured with other settings or another teacher. Move it away to start anew."
            )
        # What is finished is read from here: only what the same settings and the same teacher made.
        self.runs = work / "runs" / _digest(json.dumps(used, sort_keys=True).encode())
        self.runs.mkdir(parents=True, exist_ok=True)
        self._about = {"settings": used, "machine": {**machine(), "threads": torch.get_num_threads()}}
        self.results |= self._about
        self._teacher = make_model(0).eval()
        self._teacher.load_state_dict(load_file(weights))
        self._open = cache(lambda split: open_dataset(str(work / "fashion"), split=split))
        self._tests: dict[int, Images] = {}

    # ------------------------------------------------------------------ results

    def measure(
        self, part: str, name: str, run: Callable[[], dict[str, Any]], made: Path | None = None, wait: bool = True
    ) -> None:
        """Measure something unless it is in the results, and write them.

        Args:
            part: Section of the results.
            name: Name in that section.
            run: Measures it.
            made: A file that `run` writes; without it the results do not count.
            wait: Wait while another process measures the same; otherwise leave it to that one.
        """
        try:
            held = FileLock(self.runs / f"{self.slug(f'{part} {name}')}.lock").acquire(blocking=wait)
        except Timeout:
            return
        with held:
            self.read()
            if made is not None and not made.exists():
                self.results.get(part, {}).pop(name, None)
            if name not in self.results.get(part, {}):
                print(f"{part}: {name}", flush=True)
            super().measure(part, name, run)

    def record(self, part: str, name: str, found: dict[str, Any]) -> None:
        """Write one more result among those of other processes."""
        with FileLock(self.runs / "results.lock"):
            self.read()
            self.results |= self._about
            super().record(part, name, found)

    def teacher_report(self) -> dict[str, Any]:
        """How the teacher was trained."""
        return json.loads((self.work / "teacher" / "training.json").read_text("utf-8"))

    @staticmethod
    def slug(name: str) -> str:
        """A name as a part of a file's name."""
        return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")

    # ------------------------------------------------------------------ images

    def training_images(
        self, count: int, seed: int, batch_size: int, augment: Augmentation | None, workers: int = 0
    ) -> Images:
        """Training images drawn with a seed: the same for every model."""
        return images_to_read(
            self._open("train"),
            self._teacher,
            indices=self._drawn(count, seed),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            augment=augment,
            name="train",
        )

    def rate_images(self) -> Images:
        """Training images that finetuning with the first seed does not read, evenly spread over the classes."""
        opened, settings = self._open("train"), self.settings
        read = set(self._drawn(settings.finetune_images, settings.seeds[0]))
        others = [index for index in range(len(opened)) if index not in read]
        kept, _ = split_indices(len(others), settings.rate_images, hold_out=False)
        indices = [others[index] for index in kept]
        return images_to_read(opened, self._teacher, indices=indices, batch_size=TEST_BATCH, name="train")

    def _drawn(self, count: int, seed: int) -> list[int]:
        available = len(self._open("train"))
        return sorted(random.Random(seed).sample(range(available), min(count, available)))

    def test_images(self, count: int) -> Images:
        """Test images evenly spread over the classes; they are read once and stay in memory."""
        if count not in self._tests:
            opened = self._open("validation")
            indices, _ = split_indices(len(opened), count, hold_out=False)
            workers = self.settings.workers
            images = images_to_read(
                opened, self._teacher, indices=indices, batch_size=TEST_BATCH, workers=workers, name="validation"
            )
            kept: Any = list(images.loader)
            images.loader = kept
            self._tests[count] = images
        return self._tests[count]

    # ------------------------------------------------------------------ models

    def teacher(self) -> Any:
        """A copy of the teacher."""
        return copy.deepcopy(self._teacher)

    def build(self, variant: Variant, seed: int) -> tuple[Any, dict[str, Any]]:
        """Make a model with the teacher's weights, its selectors and bypasses untrained; and its cost and settings."""
        return build_model(variant, self.teacher(), partial(self.curves, seed), seed)

    def curves(self, seed: int) -> list[ErrorCurve]:
        """Error curves of the layers on training images drawn with a seed."""

        def one() -> dict[str, Any]:
            images = self.training_images(self.settings.curve_images, seed, 32, None)
            accelerator = make_accelerator(DistillConfig(**DISTILL, seed=seed))
            found = measure_curves(accelerator, self.teacher(), MATCHED, images)
            return {"curves": [curve.to_dict() for curve in found]}

        self.measure("curves", f"seed {seed}", one)
        found = self.results["curves"][f"seed {seed}"]["curves"]
        return [ErrorCurve(**{key: tuple(values) for key, values in curve.items()}) for curve in found]

    def prepared(self, variant: Variant, seed: int) -> tuple[Any, dict[str, Any]]:
        """A model as it is before finetuning, its selectors trained and its bypasses fitted; and its cost."""
        model, about = self.build(variant, seed)
        if not (variant.is_distilled or variant.kind == "matched"):
            return model.eval(), about
        assert isinstance(model, TosaViT)
        name = f"{variant.selector_key if variant.is_distilled else variant.name}, seed {seed}"
        added = nn.ModuleDict({"selectors": model.selectors, "bypasses": model.bypasses})
        path = self.runs / f"{self.slug(name)}.added.safetensors"
        self.measure("distill", name, lambda: self._distill(model, added, seed, path), made=path)
        added.load_state_dict(load_file(path))
        return model.requires_grad_(True).eval(), about

    def _distill(self, model: TosaViT, added: nn.Module, seed: int, path: Path) -> dict[str, Any]:
        torch.manual_seed(seed)
        config = DistillConfig(**DISTILL, workers=self.settings.workers, seed=seed)
        fitted = model.config.is_fitted
        count = self.settings.calibration_images if fitted else self.settings.distill_images
        augmented = self.training_images(
            count, seed, config.batch_size, Augmentation(config.crop_scale), self.settings.workers
        )
        in_order = self.training_images(count, seed, 50, None)
        checkpoint = path.with_suffix(".checkpoint")
        report = distill(make_accelerator(config), model, augmented, in_order, config, checkpoint=checkpoint)
        checkpoint.unlink(missing_ok=True)
        _save(added, path)
        found: dict[str, Any] = {"images": count, "updates": report.updates, "seconds": report.seconds}
        if report.training is not None:
            found |= {"first_loss": report.training.first_loss, "mean_loss": report.training.last_loss}
        if report.calibration is not None:
            found["errors"] = report.calibration.errors
        return found

    def finetuned(self, variant: Variant, seed: int) -> Any:
        """A model after finetuning.

        Raises:
            SystemExit: If it was not finetuned yet.
        """
        model, _ = self.prepared(variant, seed)
        path = self._weights(variant, seed, self.rate())
        if not path.exists():
            raise SystemExit(f"error: {variant.name} with seed {seed} is not finetuned yet: run the part runs first.")
        model.load_state_dict(load_file(path))
        return model.eval()

    def _weights(self, variant: Variant, seed: int, lr: float) -> Path:
        return self.runs / f"{self.slug(f'{variant.name}, seed {seed}, {lr:g}')}.safetensors"

    # ------------------------------------------------------------------ parts

    def rate(self) -> float:
        """The learning rate of all models: the best of `RATES` for the dense one, which they are compared with."""
        self.try_rates()
        return best_rate(self.results["rates"])

    def try_rates(self, wait: bool = True) -> None:
        """Finetune with each learning rate, and measure on training images that were not read."""
        for variant in tried():
            for lr in RATES:
                self.measure("rates", _rate_name(variant, lr), partial(self._try_rate, variant, lr), wait=wait)

    def _try_rate(self, variant: Variant, lr: float) -> dict[str, Any]:
        seed = self.settings.seeds[0]
        model, _ = self.prepared(variant, seed)
        training = self._finetune(model, self._weights(variant, seed, lr), seed, lr)
        found = measure_models({"model": model}, self.rate_images(), AccuracyMeasure())
        return {"variant": variant.name, "lr": lr, "top1": found.models["model"].top1, **training}

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Measure a model, finetune it and measure it again."""
        model, about = self.prepared(variant, seed)
        whole = variant.kind == "matched"
        start = self.accuracy(model, self.settings.test_images if whole else self.settings.start_images, seed)
        lr = self.rate()
        training = self._finetune(model, self._weights(variant, seed, lr), seed, lr)
        found = self.accuracy(model, self.settings.test_images, seed)
        return {"variant": variant.name, "seed": seed, **found, "start": start, **about, **training}

    def _finetune(self, model: Any, path: Path, seed: int, lr: float) -> dict[str, Any]:
        """Finetune a model to its end, from where it stopped if it did; what is finished is read from `path`."""
        log = path.with_suffix(".json")
        if log.exists():
            model.load_state_dict(load_file(path))
            return json.loads(log.read_text("utf-8"))
        settings = self.settings
        config = FinetuneConfig(
            **FINETUNE, lr=lr, workers=settings.workers, seed=seed, checkpoint_every=settings.checkpoint_every
        )
        images = self.training_images(
            settings.finetune_images, seed, config.batch_size, finetune_augmentation(config), settings.workers
        )
        checkpoint = path.with_suffix(".checkpoint")
        resumed = checkpoint.exists()
        report = Classification().learn(
            make_accelerator(config), model, images, config, checkpoint=checkpoint, resume=resumed, progress=Log()
        )
        _save(model, path)
        found = {
            "updates": report.updates,
            "last_loss": report.last_loss if report.images else None,
            "seconds": report.seconds,
            "images_per_second": report.images_per_second,
            "resumed": resumed,
        }
        write_json(log, found)
        checkpoint.unlink(missing_ok=True)
        return found

    def accuracy(self, model: Any, count: int, seed: int) -> dict[str, Any]:
        """Accuracy on test images, in float32."""
        torch.manual_seed(seed)  # of random selection
        found = measure_models({"model": model}, self.test_images(count), AccuracyMeasure())
        accuracy = found.models["model"]
        return {"top1": accuracy.top1, "top5": accuracy.top5, "test_images": found.samples}

    def selectors(self, variant: Variant, seed: int) -> dict[str, Any]:
        """What the trained selectors predict, on the maps of the backbone before and after finetuning."""
        count = self.settings.selector_images
        found: dict[str, Any] = {"variant": variant.name, "seed": seed, "test_images": count}
        for stage, model in (("before", self.prepared(variant, seed)[0]), ("after", self.finetuned(variant, seed))):
            batches = (batch.images for batch in self.test_images(count).batches(True))
            found[stage] = measure_selectors(model, batches).to_dict()["layers"]
        return found

    def speed(self, chosen: list[Variant]) -> dict[str, Any]:
        """Images a second of the models in turns, in one process."""
        settings, seed = self.settings, self.settings.seeds[0]
        models: dict[str, Any] = {variant.name: self.prepared(variant, seed)[0] for variant in chosen}
        torch.manual_seed(0)
        images = torch.randn(settings.speed_batch, 3, *self._teacher.patch_embed.img_size)
        # timm's own model first: speed is told against it.
        report = time_in_turns(
            {"timm": self.teacher(), **models}, images, rounds=settings.speed_rounds, seconds=settings.speed_seconds
        )
        batch = settings.speed_batch
        rows = {
            name: {
                "images_per_second": batch / timing.median_s,
                "slowest": batch / timing.max_s,
                "fastest": batch / timing.min_s,
                **vars(report.speedups[name]),
            }
            for name, timing in report.timings.items()
        }
        return {"conditions": vars(report.conditions), "models": rows}


def _rate_name(variant: Variant, lr: float) -> str:
    return f"{variant.name}, {lr:g}"


def _save(module: nn.Module, path: Path) -> None:
    state = {name: value.detach().contiguous().clone() for name, value in module.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(state, temporary)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
