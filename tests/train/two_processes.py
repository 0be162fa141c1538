"""What `test_processes.py` runs in each of two processes; the first prints what it found as JSON."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from tests.train.tiny_runs import (
    FITTED,
    StopAt,
    curves_all,
    fit_all,
    fit_one,
    run_distill,
    run_features,
    run_finetune,
    same,
    tiny_tosa,
    weights,
)
from tosa_cli.data.samples import ImageSamples, Sample
from tosa_cli.errors import DataError, TrainingError
from tosa_cli.fit import calibrate as calibration
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.processes import make_accelerator

torch.set_num_threads(1)
PARTS = ("selectors", "bypasses")
folder = Path(sys.argv[1])
found = {}
read: list[int] = []
get_item = ImageSamples.__getitem__


def remember(samples: ImageSamples, position: int) -> Sample:
    read.append(position)
    return get_item(samples, position)


ImageSamples.__getitem__ = remember  # type: ignore[method-assign]
accelerator = make_accelerator(TrainConfig(device="cpu"))
found["processes"] = accelerator.num_processes
group = torch.distributed.distributed_c10d._get_default_group()
found["patience"] = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()

for name, run, part, images in (
    ("distill", run_distill, "selectors", folder / "photos"),
    ("finetune", run_finetune, "backbone", folder / "digits"),
):
    settings = {"batch_size": 4, "checkpoint_every": 1}
    if name == "finetune":
        settings |= {"mixup": 0.8, "drop_path": 0.3, "model_ema": True, "model_ema_decay": 0.5}
    whole, resumed = tiny_tosa(), tiny_tosa()
    read.clear()
    report = run(whole, images, folder / f"{name}-whole", **settings)
    found[f"{name}_read"] = gather_object([sorted(read)])
    found[f"{name}_images"], found[f"{name}_updates"] = report.images, report.updates
    try:
        run(tiny_tosa(), images, folder / f"{name}-part", progress=StopAt(4), **settings)
    except TrainingError as error:
        found[f"{name}_interrupted"] = str(error)
    run(resumed, images, folder / f"{name}-part", resume=True, **settings)
    found[f"{name}_resumes"] = gather_object([same(weights(whole, part), weights(resumed, part))])
    total = float(sum(value.double().sum() for value in weights(whole, part).values()))
    found[f"{name}_agree"] = len(set(gather_object([total]))) == 1

# The best weights by what the main process measures are those of all.
settings = {"batch_size": 4, "checkpoint_every": 1, "eval_every": 1, "model_ema": True, "model_ema_decay": 0.5}
whole, resumed = tiny_tosa(selector="random"), tiny_tosa(selector="random")
_, expected = run_features(whole, folder / "photos", folder / "features-whole", **settings)
with contextlib.suppress(TrainingError):
    progress = StopAt(4)
    run_features(
        tiny_tosa(selector="random"), folder / "photos", folder / "features-part", progress=progress, **settings
    )
_, watch = run_features(resumed, folder / "photos", folder / "features-part", resume=True, **settings)
found["features_resumes"] = gather_object([watch.history == expected.history])
found["features_weights"] = gather_object([same(weights(whole, "backbone"), weights(resumed, "backbone"))])
total = float(sum(value.double().sum() for value in weights(whole, "backbone").values()))
found["features_agree"] = len(set(gather_object([(total, watch.best.update)]))) == 1

# Broken images that one process meets are known to all, and stop all.
report = run_distill(tiny_tosa(), folder / "broken", folder / "broken-run", batch_size=4, epochs=1)
found["broken"] = gather_object([[Path(name).name for name in report.failed]])
try:
    run_distill(tiny_tosa(), folder / "broken", folder / "broken-run", batch_size=4, epochs=1, strict=True)
except DataError as error:
    found["strict"] = gather_object([str(error)])

# What is fitted is to the last bit what one process fits, whichever of the two is done first.
for late in range(2):
    run_step = calibration.skipped_features

    def slowly(*args: Any, late: int = late, run_step: Any = run_step) -> Any:
        time.sleep(0.02 * (accelerator.process_index == late))
        return run_step(*args)

    calibration.skipped_features = slowly
    found[f"fitted_{late}"] = gather_object([fit_all(folder, accelerator)])
    calibration.skipped_features = run_step
found["curves"] = gather_object([curves_all(folder, accelerator)])
for images in ("broken", "strict"):
    try:
        report = fit_one(tiny_tosa(**FITTED[0]), folder / "broken", accelerator, strict=images == "strict")
        found[f"fit_{images}"] = gather_object([[Path(name).name for name in report.failed]])
    except DataError as error:
        found[f"fit_{images}"] = gather_object([str(error)])

# Selectors train while the bypasses, which they do not move, wait for their fit.
model = tiny_tosa(bypass="nearest+affine")
run_distill(model, folder / "photos", folder / "fitted", batch_size=4)
total = [float(sum(value.double().sum() for value in weights(model, part).values())) for part in PARTS]
found["fitted"] = len(set(gather_object([tuple(total)]))) == 1

if accelerator.is_main_process:
    sys.stdout.write(json.dumps(found))
accelerator.end_training()
