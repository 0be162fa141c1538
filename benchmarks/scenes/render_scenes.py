"""Render a depth data set that needs no download: furnished rooms with exact depth, the same for everyone by a seed.

    python -m benchmarks.scenes.render_scenes OUT_FOLDER --count 3000 --seed 0 [--size 224] [--workers 2]

OUT_FOLDER then holds

    rgb/000000.png, ...      pictures
    depth/000000.png, ...    depth from the plane of the camera, 16-bit PNG in millimetres, no holes
    train.txt, test.txt      a line `rgb/000000.png depth/000000.png` for each image; every tenth is a test image
    scenes.json, README.md   what made it

Every image is a room of its own, so that training and test images share none. Depth has the same bits on every machine;
pictures agree to rounding. Run it again to go on where it stopped, or with a larger --count to render more.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.downloads import UserError
from benchmarks.scenes.rooms import Scene, draw_scene
from benchmarks.scenes.shading import render_depth, render_image

VERSION = 1
"""Of what a seed gives: a change of rooms, rays or textures needs another."""
DEPTH_SCALE = 1000  # values of a depth file in one metre
NEAREST, FARTHEST = 0.5, 10.0  # metres: what range cameras see indoors, and the cap of NYU Depth v2
LEAST_MEDIAN = 1.2  # metres: pictures of one piece of furniture from close by are drawn again
TEST_EVERY = 10
META = "scenes.json"
README = """# Rendered rooms with exact depth

{count} images of {size} x {size} pixels, made by version {version} of
`python -m benchmarks.scenes.render_scenes --count {count} --seed {seed} --size {size}`.

`rgb/NAME` is a picture, `depth/NAME` its depth: 16-bit PNG, millimetres from the plane of the camera, {nearest:g} to
{farthest:g} m, measured everywhere. `train.txt` and `test.txt` have a line `rgb/NAME depth/NAME` for each image.
The field of view is 49 to 65 degrees.
"""


def room(seed: int, index: int, size: int) -> tuple[Scene, Any]:
    """The scene of an image, and its depth (size, size) in metres; drawn again until the depth is in range."""
    for attempt in range(100):
        scene = draw_scene(seed, index, attempt)
        depth = render_depth(scene, size)
        if depth.min() >= NEAREST and depth.max() <= FARTHEST and np.median(depth) >= LEAST_MEDIAN:
            return scene, depth
    raise RuntimeError(f"no room in range for seed {seed}, image {index}")


def render(seed: int, index: int, size: int) -> tuple[Any, Any]:
    """An image (size, size, 3) in bytes, and its depth (size, size) in millimetres as 16-bit numbers."""
    scene, depth = room(seed, index, size)
    image = render_image(scene, size, seed=seed * 1_000_003 + index)
    return image, np.round(depth * DEPTH_SCALE).astype(np.uint16)


def name_of(index: int) -> str:
    """File name of an image and of its depth."""
    return f"{index:06d}.png"


def write_pair(folder: Path, seed: int, index: int, size: int) -> None:
    """Render an image and write both files, each whole or not at all."""
    for kind, pixels in zip(("rgb", "depth"), render(seed, index, size), strict=True):
        path = folder / kind / name_of(index)
        scratch = path.with_name(f".{path.name}.tmp")
        Image.fromarray(pixels).save(scratch, format="PNG")
        os.replace(scratch, path)


def is_test(index: int) -> bool:
    """Whether an image is one to test on."""
    return index % TEST_EVERY == TEST_EVERY - 1


def prepare(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that it holds the same rooms.

    Raises:
        UserError: If it holds something else.
    """
    meta = folder / META
    if meta.exists():
        found = json.loads(meta.read_text(encoding="utf-8"))
        for key in ("version", "seed", "size"):
            if found[key] != settings[key]:
                raise UserError(
                    f"{folder} holds images with {key} {found[key]}, not {settings[key]}: name another folder."
                )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and was not written by this script: name another folder.")
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    write_text(meta, json.dumps({**settings, "complete": False}, indent=2) + "\n")


def finish(folder: Path, settings: dict[str, Any]) -> None:
    """Write the split files, and what made the images."""
    lines = [f"rgb/{name_of(index)} depth/{name_of(index)}\n" for index in range(settings["count"])]
    for name, test in (("train.txt", False), ("test.txt", True)):
        write_text(folder / name, "".join(line for index, line in enumerate(lines) if is_test(index) == test))
    write_text(folder / "README.md", README.format(**settings, nearest=NEAREST, farthest=FARTHEST))
    write_text(folder / META, json.dumps({**settings, "complete": True}, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def run(folder: Path, count: int, seed: int, size: int, workers: int) -> tuple[int, float]:
    """Render what is missing.

    Args:
        folder: Where it goes.
        count: Number of images.
        seed: Seed of the rooms.
        size: Pixels along each side.
        workers: Processes that render.

    Returns:
        Number of images that were rendered now, and the seconds that took.

    Raises:
        UserError: If the folder holds something else.
    """
    settings = {"version": VERSION, "seed": seed, "size": size, "count": count, "depth_scale": DEPTH_SCALE}
    prepare(folder, settings)
    missing = [
        index
        for index in range(count)
        if not all((folder / kind / name_of(index)).exists() for kind in ("rgb", "depth"))
    ]
    started = time.perf_counter()
    for done, _ in enumerate(_write_all(folder, seed, missing, size, workers), start=1):
        if done % 20 == 0 or done == len(missing):
            rate = done / (time.perf_counter() - started)
            print(f"{done} of {len(missing)} images, {rate:.1f} images/s", file=sys.stderr, flush=True)
    finish(folder, settings)
    return len(missing), time.perf_counter() - started


def _write_all(folder: Path, seed: int, indices: list[int], size: int, workers: int) -> Iterator[None]:
    """Write images, and tell after each; no more wait at a time than keep the workers busy."""
    if workers <= 1:
        for index in indices:
            yield write_pair(folder, seed, index, size)
        return
    left = iter(indices)
    with ProcessPoolExecutor(workers) as pool:
        waiting = {pool.submit(write_pair, folder, seed, index, size) for index in islice(left, 4 * workers)}
        while waiting:
            done = next(as_completed(waiting))
            waiting.remove(done)
            waiting |= {pool.submit(write_pair, folder, seed, index, size) for index in islice(left, 1)}
            yield done.result()


def main() -> None:
    """Parse the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--count", type=int, default=3000, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rooms, from 0 up")
    parser.add_argument("--size", type=int, default=224, help="pixels along each side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    args = parser.parse_args()
    try:
        for option, least in (("count", 1), ("seed", 0), ("size", 16), ("workers", 1)):
            if getattr(args, option) < least:
                raise UserError(f"--{option} must be {least} or more, not {getattr(args, option)}.")
        rendered, seconds = run(args.out_folder, args.count, args.seed, args.size, args.workers)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{rendered} images rendered in {seconds:.0f} s; {args.out_folder} holds {args.count}.", file=sys.stderr)


if __name__ == "__main__":
    main()
