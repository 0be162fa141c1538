"""Makes benchmarks/DEPLOY.md from the figures of `run_deploy`."""

from collections.abc import Iterator
from typing import Any

from benchmarks.writer import speedup, table

SAVINGS = {224: (0.25, 0.4), 518: (0.3, 0.45)}
"""Shares of the MACs to save, by image size in pixels."""
GROWTH = (224, 392, 518, 784, 1036)
"""Image sizes in pixels at which speed is followed."""
DENSE = "dense"
CUT = "nothing chosen"
"""The dense layers on as many tokens as the first saving computes: `benchmarks.real.cut`."""
SMALLER = "smaller input"
COMPILED = "PyTorch float32, compiled"
NNCF = "OpenVINO int8, NNCF"
RUNTIMES = (
    "PyTorch float32",
    "PyTorch bfloat16",
    COMPILED,
    "ONNX Runtime float32",
    "ONNX Runtime int8",
    "ONNX Runtime int8, static",
    "OpenVINO float32",
    "OpenVINO bfloat16",
    "OpenVINO int8, static",
    NNCF,
)
ACROSS = (
    "PyTorch float32",
    "ONNX Runtime float32",
    "ONNX Runtime int8",
    "OpenVINO float32",
    "OpenVINO bfloat16",
    "OpenVINO int8, static",
)
"""Runtimes that are timed against each other."""
TITLES = {
    "224": "ViT-S/14 at 224 pixels",
    "518": "ViT-S/14 at 518 pixels",
    "base": "ViT-B/14 at 224 pixels, random weights",
}


def render(results: dict[str, Any]) -> str:
    """The page, from the committed figures."""
    setting = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = [
        "# In the runtimes people deploy",
        "Made by `python -m benchmarks.deploy.run_deploy` from `results/deploy.json`; nothing here is typed by hand. "
        f"The preset `calibrated`, no finetuning; {setting}.",
        "Each row is one file, or one model of PyTorch, for just so many images. A timed call gives all final tokens "
        "of images that are in memory; dense and converted are timed in turns, and a speed is the median of the ratios "
        "turn by turn with their range, against the dense model *in the same runtime*. Beside it stands the ratio of "
        "the shortest turns, which a busy machine disturbs least. Two rows bound the speed of the "
        f"first saving: `{CUT}` runs the dense layers on as many tokens as it computes in each, and answers nothing; "
        f"`{SMALLER}` is the dense model on a smaller image at its MACs, its tokens resized back. Errors are 1 - "
        "cosine to the dense float32 tokens times 1000, patch / class, and saliency the correlation of the maps of a "
        "trained head, on held-out photos. int8 is ONNX Runtime's quantisation, of which OpenVINO runs the same file, "
        "but for the rows of NNCF, which quantises for OpenVINO; products of activations with each other stay float in "
        "all.",
        *sections(results),
    ]
    return "\n\n".join(parts) + "\n"


def elsewhere(rows: dict[str, dict[str, Any]], machine: dict[str, Any]) -> Iterator[str]:
    """Which of the runtimes were measured on another machine than the page's."""
    others = {name: row["machine"] for name, row in rows.items() if row.get("machine", machine) != machine}
    if others:
        which = "all" if len(others) == len(rows) else ", ".join(others)
        used = next(iter(others.values()))
        yield f"Of another machine ({which}): {', '.join(f'{key} {value}' for key, value in used.items())}."


def sections(results: dict[str, Any]) -> Iterator[str]:
    """A part for each model, size and batch; then the growth with the image."""
    rows = results.get("rows", {})
    if results.get("across"):
        yield "## Which runtime first: one image of 224 pixels, against the dense model in PyTorch float32"
        yield "All of these were timed in turns with each other."
        yield from earlier("across", results)
        yield across_table(results["across"]["224 1"])
    for name, title in TITLES.items():
        for batch in (1, 8):
            found = {runtime: rows[key] for runtime in RUNTIMES if (key := f"{name} {batch} {runtime}") in rows}
            if found:
                threads = next(iter(found.values()))["threads"]
                yield f"## {title}, {batch} {'image' if batch == 1 else 'images'} at a time, {threads} threads"
                yield from elsewhere(found, results["machine"])
                yield from earlier(f"{name} {batch}", results)
                yield runtime_table(found)
    if results.get("growth"):
        yield "## How it grows with the image: a quarter of the MACs less, one image, PyTorch float32"
        yield from earlier("growth", results)
        yield growth_table(results["growth"])


def earlier(table: str, results: dict[str, Any]) -> Iterator[str]:
    """A sentence over a table that is of keep rates and groups of before."""
    if table in results.get("earlier", ()):
        yield "Measured with keep rates and groups of an earlier version; MERGING.md has today's tokens."


def runtime_table(found: dict[str, Any]) -> str:
    """A row for each model in each runtime."""
    has_quality = any("quality" in row for entry in found.values() for row in entry["models"].values())
    head = ["runtime", "model", "MACs", "ms", "against dense there", "shortest"]
    lines = []
    for runtime, entry in found.items():
        dense = entry["models"][DENSE]["min_s"]
        for kind, row in entry["models"].items():
            macs = f"-{row['reduction']:.1%}" if row["reduction"] else ""
            line = [
                runtime,
                kind,
                macs,
                f"{row['median_s'] * 1e3:.1f}",
                speedup(row),
                f"{dense / row['min_s']:.2f}x",
            ]
            if has_quality:
                line += quality(row.get("quality"))
            lines.append(line)
    return table(head + (["error", "saliency"] if has_quality else []), lines)


def across_table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each runtime, with the speeds of dense and converted."""
    kinds = [DENSE, *(f"-{saving:.0%}" for saving in SAVINGS[224])]
    lines = [[runtime, *(speedup(found[f"{runtime}, {kind}"]) for kind in kinds)] for runtime in ACROSS]
    return table(["runtime", *kinds], lines)


def quality(found: dict[str, Any] | None) -> list[str]:
    """Errors and the correlation of saliency maps."""
    if found is None:
        return ["", ""]
    return [f"{found['patch'] * 1e3:.1f} / {found['class'] * 1e3:.1f}", f"{found['saliency']:.4f}"]


def growth_table(growth: dict[str, Any]) -> str:
    """Speed by the size of the image."""
    lines = [
        [
            str(size),
            str(row["tokens"]),
            f"{row['dense_ms']:.0f}",
            speedup(row),
            f"{row['ideal']:.2f}x",
            f"{row['selection_share']:.1%}",
        ]
        for size in GROWTH
        if (row := growth.get(str(size)))
    ]
    head = ["pixels", "tokens", "dense ms", "speed", "ratio of MACs", "share of matching in the MACs"]
    return table(head, lines)
