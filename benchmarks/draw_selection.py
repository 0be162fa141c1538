"""Draw which patches of a photo of a cat a real DINOv2 computes, as in the paper's Fig. 4.

    python benchmarks/draw_selection.py [--work FOLDER]

It takes the checkpoint, the photos and the distilled model of run_real.py where they are already there, and else makes
them; and writes benchmarks/results/selection_cat.png.
"""

import argparse
from pathlib import Path

from run_real import HERE, KEEP_RATE, LAYERS, script, tosa

PICTURE = HERE / "results" / "selection_cat.png"
DRAWN = "2,6,10"
CAT = "chelsea_00.jpg"


def main() -> None:
    """Make what is missing, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where checkpoint, photos and models go")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, photos, model = work / "dinov2_small", work / "photos", work / "real_224"
    if not model.exists():
        if not checkpoint.exists():
            script("real_checkpoint.py", checkpoint)
        if not photos.exists():
            script("real_photos.py", photos)
        converted = work / "real_224_converted"
        settings = ("--layers", LAYERS, "--keep-rate", KEEP_RATE, "--img-size", "224", "--overwrite", "--json")
        tosa("convert", f"local-dir:{checkpoint}", *settings, "-o", str(converted))
        data = ("--data-dir", str(photos / "calibration"), "--val-dir", str(photos / "held_out"))
        tosa("distill", str(converted), *data, "-o", str(model), "--json")
    tosa(
        "viz",
        str(model),
        str(photos / "held_out" / CAT),
        "--layers",
        DRAWN,
        "-o",
        str(PICTURE),
        "--overwrite",
        "--json",
    )
    print(f"Wrote {PICTURE}")


if __name__ == "__main__":
    main()
