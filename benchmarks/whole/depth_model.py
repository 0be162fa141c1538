"""A Depth Anything with a real encoder: DINOv2 ViT-S/14 from a package registry, its head trained on rendered rooms.

    python -m benchmarks.whole.depth_model [--work FOLDER]

The folder WORK/depth_anything then holds a `DepthAnythingForDepthEstimation` of transformers in the form of Depth
Anything V2 Small, metric, with its image processor: what a user downloads. Only neck and head are trained, on what the
frozen encoder says of the rooms, kept from one pass; the training is short, so figures of it compare models that share
it, and not with those of other work.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lab import WORK
from benchmarks.real.lab import fetch
from benchmarks.scenes.render_scenes import run as render_scenes

SIZE, ROOMS, SEED = 518, 200, 0
EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 3, 1e-3, 1e-2
MAX_DEPTH = 10
"""Metres, the farthest that a room goes."""
SIMILARITY = 0.85
"""The share of the mean error that the scale-invariant loss forgives, as in AdaBins and ZoeDepth."""

SIDES = {"norm1.": "norm1.", "norm2.": "norm2.", "mlp.fc1.": "mlp.fc1.", "mlp.fc2.": "mlp.fc2."}
SIDES |= {"attn.proj.": "attention.o_proj.", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
AROUND = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def build(work: Path) -> tuple[Path, Path]:
    """Make model and rooms, if they are not there; returns their folders."""
    folder, rooms = work / "depth_anything", work / f"rooms_{SIZE}"
    checkpoint, _ = fetch(work)
    render_scenes(rooms, ROOMS, SEED, SIZE, workers=1)
    if not folder.exists():
        train(checkpoint, rooms, folder)
    return folder, rooms


def build_untrained(work: Path) -> Path:
    """The same model before its head is trained, which is as fast; returns its folder."""
    folder = work / "depth_anything_untrained"
    if not folder.exists():
        import torch

        torch.manual_seed(SEED)
        write(new_model(fetch(work)[0]), folder)
    return folder


def write(model: Any, folder: Path) -> None:
    """Write a model and its processor, whole or not at all."""
    partial = folder.with_suffix(".new")
    model.eval().save_pretrained(partial)
    new_processor().save_pretrained(partial)
    partial.rename(folder)


def train(checkpoint: Path, rooms: Path, folder: Path) -> None:
    """Train neck and head on the rooms to train on, and write the model."""
    import torch

    torch.manual_seed(SEED)
    model, processor = new_model(checkpoint), new_processor()
    started = time.perf_counter()
    kept = list(features(model, processor, rooms))
    print(f"{len(kept)} rooms went through the encoder in {time.perf_counter() - started:.0f} s", flush=True)
    trained = torch.nn.ModuleList([model.neck, model.head]).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * len(kept))
    side = SIZE // model.config.patch_size
    for epoch in range(EPOCHS):
        losses = []
        for index in torch.randperm(len(kept)).tolist():
            maps, depth = kept[index]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                neck = model.neck([each.float() for each in maps], side, side)
            made = model.head([each.float() for each in neck], side, side)
            loss = distance(made, depth)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}, {seconds:.0f} s", flush=True)
    write(model, folder)


def features(model: Any, processor: Any, rooms: Path) -> Iterator[tuple[Any, Any]]:
    """What the encoder says of each room to train on, in half precision, and its depth (1, height, width) in metres."""
    import torch

    for pixels, depth in read_rooms(processor, rooms, "train"):
        with torch.no_grad():
            yield [each.half() for each in model.backbone(pixels).feature_maps], depth


def read_rooms(processor: Any, rooms: Path, split: str) -> Iterator[tuple[Any, Any]]:
    """Prepared pictures (1, 3, height, width) of a split, and their depths (1, height, width) in metres."""
    import numpy as np
    import torch
    from PIL import Image

    for line in (rooms / f"{split}.txt").read_text("utf-8").splitlines():
        picture, depth = line.split()
        with Image.open(rooms / picture) as opened:
            pixels = processor(images=opened.convert("RGB"), return_tensors="pt")["pixel_values"]
        with Image.open(rooms / depth) as opened:
            metres = torch.from_numpy(np.asarray(opened).astype(np.float32) / 1000)
        yield pixels, metres[None]


def distance(made: Any, depth: Any) -> Any:
    """Scale-invariant error of log depths (Eigen et al. 2014, Eq. 4, with its root), times 10."""
    difference = made.clamp_min(1e-3).log() - depth.log()
    return 10 * (difference.square().mean() - SIMILARITY * difference.mean().square()).clamp_min(1e-8).sqrt()


def new_model(checkpoint: Path) -> Any:
    """The model with the encoder's weights, and a neck and a head at random."""
    import transformers as hf
    from safetensors.torch import load_file

    layers = [3, 6, 9, 12]
    backbone = hf.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=SIZE, patch_size=14, out_indices=layers,
        apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        depth_estimation_type="metric",
        max_depth=MAX_DEPTH,
        neck_hidden_sizes=[48, 96, 192, 384],
    )
    model = hf.DepthAnythingForDepthEstimation(config).eval()
    weights = dict(renamed(load_file(checkpoint / "model.safetensors")))
    missing = model.backbone.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"embeddings.mask_token"}:
        raise RuntimeError(f"the encoder's weights do not fit: {missing}")
    return model


def renamed(weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """timm's weights of a DINOv2 by transformers' names."""
    for name, value in weights.items():
        if name in AROUND:
            yield AROUND[name], value
            continue
        _, number, rest = name.split(".", 2)
        layer = f"encoder.layer.{number}."
        if rest.startswith("attn.qkv."):
            for key, part in zip("qkv", value.chunk(3), strict=True):
                yield f"{layer}attention.{key}_proj.{rest.rpartition('.')[2]}", part
        else:
            begin = next(each for each in SIDES if rest.startswith(each))
            yield layer + SIDES[begin] + rest.removeprefix(begin), value


def new_processor() -> Any:
    """Depth Anything's own."""
    import transformers as hf

    return hf.DPTImageProcessor(
        size={"height": SIZE, "width": SIZE}, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3,
    )  # fmt: skip


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos, rooms and model go")
    folder, rooms = build(parser.parse_args().work)
    print(f"{folder} holds the model, {rooms} the rooms.")


if __name__ == "__main__":
    main()
