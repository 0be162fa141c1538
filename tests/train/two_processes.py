"""What `test_processes.py` runs in each of two processes; the first prints what it found as JSON."""

import json
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from tests.train.tiny_runs import StopAt, run_distill, run_finetune, same, tiny_tosa, weights
from tosa_cli.errors import DataError, TrainingError
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.loop import make_accelerator
from tosa_cli.train.samples import ImageSamples, Sample

torch.set_num_threads(1)
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

# Broken images that one process meets are known to all, and stop all.
report = run_distill(tiny_tosa(), folder / "broken", folder / "broken-run", batch_size=4, epochs=1)
found["broken"] = gather_object([[Path(name).name for name in report.failed]])
try:
    run_distill(tiny_tosa(), folder / "broken", folder / "broken-run", batch_size=4, epochs=1, strict=True)
except DataError as error:
    found["strict"] = gather_object([str(error)])

if accelerator.is_main_process:
    sys.stdout.write(json.dumps(found))
accelerator.end_training()
