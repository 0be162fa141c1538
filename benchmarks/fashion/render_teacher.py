"""What benchmarks/FASHION.md says of the teacher."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fashion.figures import Row, plotted_log
from benchmarks.writer import table

PUBLISHED = (
    "[The data set's own README](https://github.com/zalandoresearch/fashion-mnist) (Xiao et al. 2017, arXiv "
    "1708.07747) lists test accuracies of neural networks from 87.6 % (two convolutions with pooling) to 96.7 % (a "
    "wide ResNet of 8.9 million parameters), sent in and not verified there: convolutional networks nearly all, a few "
    "recurrent, fully connected and capsule ones, and no transformer; those of two or three convolutions have 87.6 to "
    "93.9 %. A ViT of about 400,000 parameters (six layers, patches of 4 x 4 of the 28 x 28 pixels) is [told to reach]"
    "(https://github.com/s-chh/PyTorch-Scratch-Vision-Transformer-ViT) 93.0 %, by default after 200 epochs."
)


def teacher_section(teacher: dict[str, Row], folder: Path) -> str:
    """How it was trained, and what it reaches; its log is plotted into a folder."""
    if not teacher:
        return ""
    report = teacher["training"]
    rows = [
        [
            phase["phase"],
            str(phase["epochs"]),
            str(phase["img_size"]),
            f"{phase['lr']:g}",
            str(phase["updates"]),
            f"{phase['last_loss']:.3f}",
            f"{phase['seconds'] / 60:.0f} min",
        ]
        for phase in report["phases"]
    ]
    return "\n\n".join(
        [
            "## The teacher",
            f"`python -m benchmarks.fashion.teacher`: {report['parameters']:,} parameters, seed {report['seed']}, test "
            f"accuracy top-1 {report['top1']:.2f} %, top-5 {report['top5']:.2f} %. {PUBLISHED}",
            table(["phase", "epochs", "image size", "learning rate", "steps", "last loss", "time"], rows),
            _log(report["phases"], folder),
        ]
    ).rstrip()


def _log(phases: Sequence[Row], folder: Path) -> str:
    plot = plotted_log(phases, folder)
    if not plot:
        return ""
    # A log may begin late: what a run did before it was kept is not in it.
    kept = [f"{phase['phase']} from step {phase['log'][0]['step']} on" for phase in phases if phase["log"]]
    return f"The log, a mean of 100 steps each: {', '.join(kept)}.\n\n{plot}"
