"""Makes benchmarks/FASHION.md and its plot from benchmarks/results/fashion.json; long, as the page's text is here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fashion.answer import answer
from benchmarks.fashion.figures import (
    Row,
    best_rate,
    comparisons,
    cost,
    differences,
    found,
    plotted,
    plotted_log,
    spread,
    top1,
)
from benchmarks.fashion.variants import Settings, Variant, variants
from benchmarks.writer import speedup, table

PUBLISHED = (
    "[The data set's own README](https://github.com/zalandoresearch/fashion-mnist) (Xiao et al. 2017, arXiv "
    "1708.07747) lists test accuracies of neural networks from 87.6 % (two convolutions with pooling) to 96.7 % (a "
    "wide ResNet of 8.9 million parameters), sent in and not verified there: convolutional networks nearly all, a few "
    "recurrent, fully connected and capsule ones, and no transformer; those of two or three convolutions have 87.6 to "
    "93.9 %. A ViT of about 400,000 parameters (six layers, patches of 4 x 4 of the 28 x 28 pixels) is [told to reach]"
    "(https://github.com/s-chh/PyTorch-Scratch-Vision-Transformer-ViT) 93.0 %, by default after 200 epochs."
)


def render(results: dict[str, Any], folder: Path) -> None:
    """Write the page and the plot."""
    runs = results.get("runs", {})
    sections = [
        _head(results),
        answer(results),
        _accuracy(results),
        plotted(runs, folder / "results"),
        comparisons(runs),
        _selectors(results.get("selectors", {})),
        _pictures(results.get("pictures", {})),
        _training(results),
        _rates(results),
        _speed(results.get("speed", {})),
        _teacher(results.get("teacher", {}), folder / "results"),
        _limits(results),
    ]
    (folder / "FASHION.md").write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")


def _head(results: dict[str, Any]) -> str:
    settings = results["settings"]
    tuned = settings["finetune"]
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    return (
        "# The paper's Table 1 on Fashion-MNIST\n\n"
        "Made by `python -m benchmarks.fashion.run_fashion` from `results/fashion.json`; the figures are not typed by "
        "hand.\n\n"
        "The paper's own table is on ImageNet, which was out of reach. This is the same experiment on Fashion-MNIST "
        "(60,000 training and 10,000 test images of ten classes): a teacher in DeiT's shape, 12 layers and 197 tokens "
        "(56 x 56 pixels, patches of 4 x 4), 64 wide with two heads, is converted, its selectors are trained with the "
        "backbone frozen, and backbone and bypasses are finetuned with the selectors frozen.\n\n"
        f"Every model, the dense one too, is finetuned alike: one pass over {settings['finetune_images']:,} training "
        f"images, which with their order are the same for all models of a seed; batch size {tuned['batch_size']}, "
        f"{tuned['opt']}, {_rate(results.get('rates', {}))}falling by a cosine to {tuned['min_lr']:g}, weight decay "
        f"{tuned['weight_decay']:g}, label smoothing {tuned['smoothing']:g}, crops from {tuned['crop_scale']:g} of the "
        f"image, flips; {tuned['amp']}. Selectors are trained on {settings['distill_images']:,} training images "
        f"without labels. Accuracy is measured in float32 on {settings['test_images']:,} test images. The matched "
        f"models take error curves from {settings['curve_images']} and their fit from "
        f"{settings['calibration_images']:,} training images, without labels.\n\n"
        f"A seed draws all these images and their order, and the weights of untrained selectors. The teacher is one "
        f"and the same. ± is the standard deviation over the seeds. The preset `calibrated`, without finetuning, is "
        f"measured on this teacher in [MERGING.md](MERGING.md).\n\nMachine: {machine}. "
        f"Teacher apart, all that is on this page took {_hours(results):.1f} hours of one process, of which several "
        f"may run at once."
    )


def _hours(results: dict[str, Any]) -> float:
    """Hours that the measurements took, one after the other."""
    parts = ("rates", "distill", "runs", "curves", "selectors", "speed", "pictures")
    rows = (row for part in parts for row in results.get(part, {}).values())
    return sum(row.get("total_seconds", row.get("seconds", 0.0)) for row in rows) / 3600


def _rate(rates: dict[str, Row]) -> str:
    """The learning rate that was chosen, as a part of a sentence."""
    return f"the learning rate {best_rate(rates):g} " if rates else "the learning rate "


def _rates(results: dict[str, Any]) -> str:
    rates = results.get("rates", {})
    if not rates:
        return ""
    names, tried = (sorted({row[key] for row in rates.values()}) for key in ("variant", "lr"))
    accuracy = {(row["variant"], row["lr"]): f"{row['top1']:.2f}" for row in rates.values()}
    rows = [[name, *(accuracy.get((name, lr), "") for lr in tried)] for name in names]
    return "\n\n".join(
        [
            f"The learning rate is the best of these for the dense model, by top-1 on "
            f"{results['settings']['rate_images']:,} training images that its finetuning did not read (the teacher "
            "did). So the model that all others are compared with has the one that suits it, which need not be the "
            "one that suits them:",
            table(["model", *(f"{lr:g}" for lr in tried)], rows),
        ]
    )


def _accuracy(results: dict[str, Any]) -> str:
    runs, teacher = results.get("runs", {}), results.get("teacher", {}).get("training")
    if not runs:
        return ""
    dense = found(runs, "dense")
    speeds = results.get("speed", {}).get("float32", {}).get("models", {})
    rows = []
    if teacher:
        gmacs = cost(dense)[0] if dense else ""
        rows.append(
            ["the teacher, not finetuned", gmacs, "0.0 %", f"{teacher['top1']:.2f}", f"{teacher['top5']:.2f}", "", ""]
        )
    for variant in variants():
        own = found(runs, variant.name)
        if not own:
            continue
        speed = f"{speeds[variant.name]['images_per_second']:.0f}" if variant.name in speeds else ""
        macs = cost(own)
        if variant.kind == "matched":
            starts = [run["start"] for run in own.values()]
            accuracy = [spread([start[key] for start in starts]) for key in ("top1", "top5")]
            rows.append([f"{variant.name}, not finetuned", *macs, *accuracy, "", speed])
        accuracy = [spread([run[key] for run in own.values()]) for key in ("top1", "top5")]
        gained = differences(own, dense, top1) if variant.kind != "dense" else []
        name = f"{variant.name}, finetuned"
        rows.append([name, *macs, *accuracy, spread(gained, "+") if gained else "", speed])
    head = ["model", "GMACs", "MACs saved", "top-1", "top-5", "top-1 against dense finetuned, same seed", "images/s"]
    return "\n\n".join(
        [
            "## Accuracy",
            "ToSA is the paper's setting: layers 2,4,6,8,10, trained attention selectors, identity bypass; then keep "
            "rate, selection and query rows. `random` and `previous` have that setting with chance, and with the map "
            "of the layer before, in the place of the trained selector, and so spend fewer MACs at the same keep "
            "rate. Merging is ToMe's and pruning EViT's, both by their papers, at the MACs of the ToSA model with "
            "shared selection and all rows. MACs count selectors, matching and bypasses; the matched models choose "
            "layers and keep rates anew for each seed, so that theirs are a mean over the seeds too.",
            table(head, rows),
        ]
    )


def _selectors(selectors: dict[str, Row]) -> str:
    parts = []
    for name in dict.fromkeys(row["variant"] for row in selectors.values()):
        own = list(found(selectors, name).values())
        rows = []
        for stage in ("before", "after"):
            for i, first in enumerate(own[0][stage]):
                layers = [row[stage][i] for row in own]
                cells = [spread([layer[key] for layer in layers], digits=3) for key in ("kl", "kl_previous")]
                cells += [
                    spread([100 * layer[key] for layer in layers], digits=1) for key in ("found", "found_previous")
                ]
                rows.append([stage, str(first["layer"]), *cells, f"{100 * first['found_random']:.1f}"])
        head = ["finetuning", "layer", "KL, selector", "KL, previous", "selector", "previous", "random"]
        parts += [f"{name}, {len(own)} seeds:", table(head, rows)]
    if not parts:
        return ""
    count = next(iter(selectors.values()))["test_images"]
    return "\n\n".join(
        [
            "## What the selectors learn",
            f"On {count} test images, against the maps of the backbone run densely: the teacher's before finetuning, "
            "the finetuned backbone's after it, with the same selector. KL is summed over the heads, in nats, lower "
            "is better; `previous` takes the map of the layer before as the prediction. The three last columns are "
            "the share of the true top-K patches that are selected, in %.",
            *parts,
        ]
    )


def _pictures(pictures: dict[str, Row]) -> str:
    if not pictures:
        return ""
    parts = ["## Which patches are computed", "Test images, finetuned models; skipped patches are dark."]
    parts += [f"{name}, seed {row['seed']}:\n\n![{name}](results/{row['file']})" for name, row in pictures.items()]
    return "\n\n".join(parts)


def _training(results: dict[str, Any]) -> str:
    runs, distill = results.get("runs", {}), results.get("distill", {})
    rows = []
    for variant in variants():
        own = list(found(runs, variant.name).values())
        whole = [run for run in own if not run["resumed"]]
        if own:
            rates = [run["images_per_second"] for run in whole]
            losses = [run["last_loss"] for run in whole]
            rows.append(
                [
                    variant.name,
                    str(len(own)),
                    spread([run["start"]["top1"] for run in own]),
                    spread(rates, digits=0) if rates else "interrupted",
                    spread(losses, digits=3) if losses else "interrupted",
                    _kept(own[0]),
                ]
            )
    if not rows:
        return ""
    parts = [
        "## Training",
        "Images a second of finetuning, loading included, and the mean loss of the pass; runs that were interrupted "
        "and resumed count for the accuracy only. What was chosen is that of the first seed; pruning's keep rate is a "
        "share of the patches that are left, the others are shares of all tokens. Top-1 before finetuning "
        f"is on {results['settings']['start_images']:,} test images evenly spread over the classes, of the matched "
        "models on all.",
        table(
            ["model", "runs", "top-1 before", "training images/s", "loss", "keep rates, or tokens merged or kept"], rows
        ),
    ]
    if distill:
        listed = [f"- {name}: {row['updates']} steps, {row['seconds']:.0f} s" for name, row in distill.items()]
        parts.append("Selector training, and the fit of bypasses (no steps):\n\n" + "\n".join(listed))
    return "\n\n".join(parts)


def _kept(run: Row) -> str:
    if "num_merged" in run:
        return "merged: " + ",".join(map(str, run["num_merged"]))
    if "keep_rate" in run:
        return f"layers {','.join(map(str, run['layers']))} at {run['keep_rate']:g} of the patches"
    rates = run["keep_rates"]
    if len(set(rates.values())) == 1 and len(rates) > 1:
        return f"layers {','.join(rates)} at {next(iter(rates.values())):g}"
    return ", ".join(f"{layer}: {rate:g}" for layer, rate in rates.items()) or "all tokens"


def _speed(speed: dict[str, Row]) -> str:
    if not speed:
        return ""
    conditions, models = speed["float32"]["conditions"], speed["float32"]["models"]
    rows = [
        [
            name,
            f"{row['images_per_second']:.0f} ({row['slowest']:.0f} to {row['fastest']:.0f})",
            speedup(row),
        ]
        for name, row in models.items()
    ]
    return "\n\n".join(
        [
            "## Speed",
            f"In turns in one process: {conditions['dtype']}, batch {conditions['batch_size']}, "
            f"{conditions['threads']} threads, {conditions['device']}, eager; median of {conditions['rounds']} turns "
            "and their range. A model so narrow (64) spends much of its time outside of matrix products, so this "
            "says little of a DeiT: RESULTS.md has the speed of models of the usual widths.",
            table(["model", "images/s", "against timm's dense model"], rows),
        ]
    )


def _teacher(teacher: dict[str, Row], folder: Path) -> str:
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


def _limits(results: dict[str, Any]) -> str:
    seeds = results["settings"].get("seeds", Settings.seeds)
    runs = results.get("runs", {})
    missing = [name for variant in variants() for name in _missing(variant, runs, seeds)]
    text = (
        "## What was not run\n\nImageNet, and so the paper's own table: figures on small grey images of ten classes "
        "need not hold there. One teacher, one pass of finetuning."
    )
    parts = [part for part in ("selectors", "speed", "pictures") if not results.get(part)]
    if missing:
        text += f"\n\nRuns that are missing: {'; '.join(missing)}."
    return text + (f"\n\nParts that are missing: {', '.join(parts)}." if parts else "")


def _missing(variant: Variant, runs: dict[str, Row], seeds: Sequence[int]) -> list[str]:
    left = [seed for seed in seeds if seed not in found(runs, variant.name)]
    return [f"{variant.name}, seed {', '.join(map(str, left))}"] if left else []
