"""The saliency model of the wheel as a whole: somebody's own `nn.Module`, converted in place from Python."""

import math
import statistics
from functools import partial
from typing import Any

TARGETS = {"-25 %": 0.25, "-40 %": 0.4}
SIZE = 224
"""The size that the wheel's own model takes."""
CALIBRATION, HELD_OUT = 64, 95
FLAT = 0.05
"""A map whose standard deviation is below this, of values in 0..1, is nearly flat, and its correlation says little."""


def run_saliency(lab: Any) -> None:
    """Quality and speed for each target."""
    from benchmarks.whole.run_whole import encoder_time, speed

    dense = new_model(lab)
    lab.measure("encoder_time", "saliency", partial(encoder_time, dense, dense.encoder, SIZE))
    for name in TARGETS:
        lab.measure("saliency", name, partial(quality, lab, name))
        for runtime in ("eager", "onnxruntime"):
            key = f"{name}, {runtime}"
            lab.measure(
                "saliency_speed", key, lambda name=name, runtime=runtime: speed(model(lab, name), runtime, SIZE)
            )


def quality(lab: Any, name: str) -> dict[str, Any]:
    """Maps of held-out photos beside the dense model's."""
    import torch

    from tosa_cli.model.runs import dense
    from tosa_cli.model.runs.flops import count_whole

    converted = model(lab, name)
    correlations, errors = [], []
    with torch.inference_mode():
        for images in batches(lab, "held_out", HELD_OUT):
            with dense(converted):
                expected = converted(images).flatten(1)
            made = converted(images).flatten(1)
            errors += (made - expected).abs().mean(1).tolist()
            both = torch.stack([expected, made], 1)
            varied = expected.std(1) >= FLAT
            correlations += [torch.corrcoef(pair)[0, 1].item() for pair in both[varied]]
    flops = count_whole(converted, torch.zeros(1, 3, SIZE, SIZE))
    return {
        "samples": len(errors),
        "not_flat": len(correlations),
        "correlation": statistics.mean(correlations),
        "correlation_worst_tenth": statistics.quantiles(correlations, n=10)[0],
        "mean_absolute_error": statistics.mean(errors),
        "reduction": flops.reduction,
        "encoder_reduction": flops.encoder_reduction,
        "encoder_share": flops.encoder_dense_gmacs / flops.dense_gmacs,
    }


def model(lab: Any, name: str) -> Any:
    """The whole model, converted with keep rates that are found on calibration photos."""
    import tosa_cli

    whole = new_model(lab)
    images = list(batches(lab, "calibration", CALIBRATION))
    done = lab.results.get("saliency_rates", {}).get(name)
    if done is None:
        done = tosa_cli.choose_rates(whole, images, TARGETS[name]).to_dict()
        lab.record("saliency_rates", name, done)
    return tosa_cli.convert(whole, tosa_cli.TosaConfig.from_dict(done), example=images[0][:1])


def new_model(lab: Any) -> Any:
    """Encoder and head as one module from images (B, 3, height, width) to maps (B, height, width)."""
    from torch import Tensor, nn

    from benchmarks.real.checkpoint import load_saliency_head
    from tosa_cli.hub.source import load_source

    class Saliency(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = load_source(str(lab.checkpoint), img_size=SIZE).model
            self.head = load_saliency_head(lab.checkpoint)

        def forward(self, images: Tensor) -> Tensor:
            patches = self.encoder.forward_features(images)[:, 1:].transpose(1, 2)
            side = math.isqrt(patches.shape[2])
            return self.head(patches.unflatten(2, (side, side)))[:, 0]

    return Saliency().eval()


def batches(lab: Any, split: str, count: int) -> Any:
    """Photos of a split, evenly spread, in batches (8, 3, height, width)."""
    from tosa_cli.data.datasets import open_dataset, split_indices
    from tosa_cli.data.loading import images_to_read

    opened = open_dataset(str(lab.photos / split))
    indices, _ = split_indices(len(opened), count, hold_out=False)
    photos = images_to_read(opened, new_model(lab).encoder, indices=indices, batch_size=8, name=split)
    return (batch.images for batch in photos.batches(True))
