"""Small images with depth maps and masks, in the real formats."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from tests.train.tiny_runs import photos


@functools.cache
def scene(number: int, height: int = 32, width: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photo's cut-out whose lower part is a floor: pixels, depth in metres (1 to 5), and 0 or 1 for wall or floor."""
    photo = photos()[number % 2]
    top, left = (37 * number) % (photo.shape[0] - height), (61 * number) % (photo.shape[1] - width)
    pixels = photo[top : top + height, left : left + width].copy()
    horizon = height // 4 + (5 * number) % (height // 2)
    rows = np.arange(height)[:, None].repeat(width, axis=1)
    floor = rows >= horizon
    depth = np.where(floor, 5 - 4 * (rows - horizon) / (height - horizon), 5.0).astype(np.float32)
    pixels[floor] = (pixels[floor] * 0.3).astype(np.uint8)
    return pixels, depth, floor.astype(np.uint8)


def save_png16(path: Path, depth: np.ndarray, scale: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((depth * scale).round().astype(np.uint16)).save(path)


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(folder: Path, count: int = 12, size: tuple[int, int] = (32, 32), kind: str = "png") -> Path:
    """A folder of `rgb/`, `depth/` and `mask/`."""
    for i in range(count):
        pixels, depth, floor = scene(i, *size)
        save_image(folder / "rgb" / f"{i:03d}.png", pixels)
        save_image(folder / "mask" / f"{i:03d}.png", floor)
        if kind == "png":
            save_png16(folder / "depth" / f"{i:03d}.png", depth, 1000)
        else:
            (folder / "depth").mkdir(parents=True, exist_ok=True)
            np.save(folder / "depth" / f"{i:03d}.npy", depth)
    return folder


def write_nyu(folder: Path, count: int = 4, size: tuple[int, int] = (480, 640)) -> tuple[Path, Path]:
    """NYU Depth v2 as PNG pairs; returns the folder and the split file, whose lines are those of BTS."""
    lines = []
    for i in range(count):
        pixels, depth, _ = scene(i, 40, 60)
        repeat = size[0] // 40, size[1] // 60 + 1
        image, depth = np.kron(pixels, np.ones((*repeat, 1), np.uint8)), np.kron(depth, np.ones(repeat, np.float32))
        save_image(folder / f"kitchen_0001/rgb_{i:05d}.jpg", image[: size[0], : size[1]])
        save_png16(folder / f"kitchen_0001/sync_depth_{i:05d}.png", depth[: size[0], : size[1]], 1000)
        lines.append(f"/kitchen_0001/rgb_{i:05d}.jpg /kitchen_0001/sync_depth_{i:05d}.png 518.8579")
    split = folder / "files.txt"
    split.write_text("\n".join(lines) + "\n")
    return folder, split


def write_nyu_mat(folder: Path, count: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """NYU's labelled .mat with its axes in Matlab's order, and splits.mat: the even images are for training."""
    import h5py
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    scenes = [scene(i, *size) for i in range(count)]
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([pixels.transpose(2, 1, 0) for pixels, _, _ in scenes])
        file["rawDepths"] = np.stack([depth.T for _, depth, _ in scenes])
        file["depths"] = np.stack([depth.T + 100 for _, depth, _ in scenes])
    numbers = np.arange(1, count + 1)[:, None]
    savemat(folder / "splits.mat", {"trainNdxs": numbers[::2], "testNdxs": numbers[1::2]})
    return folder


def write_kitti(folder: Path, count: int = 3, size: tuple[int, int] = (375, 1242)) -> tuple[Path, Path, Path]:
    """KITTI's raw images and annotated depth; returns both folders and the split file, one line of it without depth."""
    raw, annotated = folder / "raw", folder / "annotated"
    lines = ["2011_09_26/d_sync/image_02/data/9999999999.png None 721.5377"]
    for i in range(count):
        name = f"{i:010d}.png"
        height, width = size[0] - i, size[1] - 2 * i
        image = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        depth = np.zeros((height, width), np.float32)
        depth[::3, ::2] = np.linspace(60, 4, height)[::3, None]  # as sparse as a lidar's
        save_image(raw / "2011_09_26/d_sync/image_02/data" / name, image)
        part = "train" if i % 2 else "val"
        save_png16(annotated / part / "d_sync/proj_depth/groundtruth/image_02" / name, depth, 256)
        lines.append(f"2011_09_26/d_sync/image_02/data/{name} d_sync/proj_depth/groundtruth/image_02/{name} 721.5377")
    split = folder / "eigen.txt"
    split.write_text("\n".join(lines) + "\n")
    return raw, annotated, split
