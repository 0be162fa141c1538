"""Draw which patches of a photo of a cat a real DINOv2 computes, as in the paper's Fig. 4.

    python -m benchmarks.real.draw_selection [--work FOLDER]

It takes the checkpoint, the photos and the distilled model of run_real where they are already there, and else makes
them; and writes benchmarks/results/selection_cat.png.
"""

import argparse
from pathlib import Path

from benchmarks.lab import FIGURES, WORK
from benchmarks.real.lab import fetch
from benchmarks.real.run_real import KEEP_RATE, LAYERS, tosa

PICTURE = FIGURES / "selection_cat.png"
DRAWN = "2,6,10"
CAT = "chelsea_00.jpg"


def main() -> None:
    """Make what is missing, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint, photos and models go")
    work: Path = parser.parse_args().work
    checkpoint, photos = fetch(work)
    model = work / "real_224"
    if not model.exists():
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
