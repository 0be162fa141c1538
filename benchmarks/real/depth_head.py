"""A linear depth head on the final tokens of a real DINOv2, trained once on the dense encoder's of rendered rooms.

    python -m benchmarks.real.depth_head [--work FOLDER]

As DINOv2 is probed (Oquab et al. 2023, section 7.4): a linear map of each patch token beside the class token gives
weights of 256 depths. The encoder is frozen, so its tokens of each room are computed once. WORK/depth_head.safetensors
holds the head, WORK/rooms_224 the rooms, those to measure on last; what reads other tokens of the same encoder gets the
head unchanged.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.lab import WORK
from benchmarks.real.lab import SMALL, RealLab, fetch
from benchmarks.scenes.render_scenes import DEPTH_SCALE, name_of
from benchmarks.scenes.render_scenes import run as render_scenes

ROOMS, HELD_OUT, SEED = 200, 60, 0
"""Rooms to train on, others to measure on, and the seed of all."""
EPOCHS, BATCH_SIZE, LEARNING_RATE = 40, 16, 1e-3
FIGURES = {"abs_rel": "AbsRel", "d1": "δ<1.25"}
"""What is told of the errors of `tosa_cli.tasks.depth`."""


class DepthHead:
    """The head, and the rooms that it is measured on.

    Args:
        lab: Has the encoder.
        work: Folder of head and rooms, which are made if they are not there.
    """

    def __init__(self, lab: RealLab, work: Path) -> None:  # noqa: D107
        import torch
        from safetensors.torch import load_file

        from tosa_cli.model.predictor import Predictor
        from tosa_cli.task import TaskConfig

        torch.manual_seed(SEED)
        self.encoder = lab.source(SMALL)
        self.predictor: Any = Predictor(self.encoder, TaskConfig(task="depth", decoder="linear"))
        self.rooms, path = work / f"rooms_{SMALL}", work / "depth_head.safetensors"
        render_scenes(self.rooms, ROOMS + HELD_OUT, SEED, SMALL, workers=1)
        if not path.exists():
            self._train(path)
        self.predictor.decoder.load_state_dict(load_file(path))
        self.predictor.eval()
        self.held_out = [self.read(index) for index in batched(ROOMS, ROOMS + HELD_OUT)]

    def maps(self, tokens: Any) -> Any:
        """Depth maps (B, height, width) in metres of final tokens (B, N, D), behind one class token."""
        from tosa_cli.model.decoders import DecoderFeatures
        from tosa_cli.model.decoders.base import resize

        side = math.isqrt(tokens.shape[1] - 1)
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        weights = self.predictor.decoder(DecoderFeatures([patches], [tokens[:, 0]]))
        return resize(self.predictor._depth(weights.float()), (SMALL, SMALL))[:, 0]

    def errors(self, model: Any) -> dict[str, float]:
        """Errors of the depths that the head reads from a model's tokens of held-out rooms: means over the rooms."""
        import torch

        from tosa_cli.tasks.depth import DEPTH_FIGURES, depth_errors

        found = []
        with torch.inference_mode():
            for images, depth in self.held_out:
                made = self.maps(model.forward_features(images))
                found += [depth_errors(one.flatten(), true.flatten()) for one, true in zip(made, depth, strict=True)]
        means = dict(zip(DEPTH_FIGURES, torch.stack(found).mean(0).tolist(), strict=True))
        return {"rooms": len(found), **{name: means[name] for name in FIGURES}}

    def read(self, indices: range) -> tuple[Any, Any]:
        """Prepared pictures (B, 3, height, width) of rooms, and their depths (B, height, width) in metres."""
        import numpy as np
        import torch
        from PIL import Image
        from timm.data import resolve_data_config

        config = resolve_data_config(model=self.encoder)
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        pictures, depths = [], []
        for index in indices:
            with Image.open(self.rooms / "rgb" / name_of(index)) as opened:
                pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1) / 255
            with Image.open(self.rooms / "depth" / name_of(index)) as opened:
                depths.append(torch.from_numpy(np.array(opened).astype(np.float32)) / DEPTH_SCALE)
            pictures.append((pixels - mean) / std)
        return torch.stack(pictures), torch.stack(depths)

    def _train(self, path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from tosa_cli.tasks.depth import silog_loss

        started = time.perf_counter()
        with torch.inference_mode():
            kept = [
                (self.encoder.forward_features(images), depth) for images, depth in map(self.read, batched(0, ROOMS))
            ]
        tokens, depths = (torch.cat(parts).clone() for parts in zip(*kept, strict=True))
        print(f"{ROOMS} rooms went through the encoder in {time.perf_counter() - started:.0f} s", flush=True)
        decoder = self.predictor.decoder.train()
        optimizer = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE)
        steps = EPOCHS * -(-ROOMS // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for epoch in range(EPOCHS):
            losses = []
            for chosen in torch.randperm(ROOMS).split(BATCH_SIZE):
                loss = silog_loss(self.maps(tokens[chosen]), depths[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            if (epoch + 1) % 10 == 0:
                seconds = time.perf_counter() - started
                print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}, {seconds:.0f} s", flush=True)
        partial = path.with_suffix(".new")
        save_file(decoder.state_dict(), partial)
        partial.rename(path)


def batched(start: int, stop: int) -> list[range]:
    """Numbers of rooms in batches."""
    return [range(low, min(low + BATCH_SIZE, stop)) for low in range(start, stop, BATCH_SIZE)]


def main() -> None:
    """Make rooms and head, and tell the dense encoder's errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos, rooms and head go")
    work = parser.parse_args().work
    fetch(work)
    lab = RealLab(work)
    print(DepthHead(lab, work).errors(lab.source(SMALL).eval()))


if __name__ == "__main__":
    main()
