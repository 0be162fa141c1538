"""What commands do with a whole model of transformers."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tosa_cli.cli import console
from tosa_cli.cli.curves import show_search
from tosa_cli.cli.flops import flops_rows, share
from tosa_cli.cli.options import remember_model
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.errors import ConfigError
from tosa_cli.progress import counted
from tosa_cli.settings import option_name
from tosa_cli.train.config import DistillConfig

if TYPE_CHECKING:
    from tosa_cli.export.config import ExportConfig
    from tosa_cli.model.runs.flops import WholeFlops


def is_whole(name: str) -> bool:
    """Whether a folder or Hub repository holds a whole model that tosa converted."""
    from tosa_cli.hub.kind import find_kind

    return find_kind(name) == "whole"


def is_source(name: str) -> bool:
    """Whether a folder or Hub repository holds a model of transformers that is, or was, converted as a whole."""
    from tosa_cli.hub.whole import is_whole_source

    return is_whole(name) or is_whole_source(name)


def check_given(command: str, given: Mapping[str, Any], *taken: str) -> None:
    """Check that a command was given nothing that it does not take for a whole model.

    Raises:
        ConfigError: Naming what was given.
    """
    names = [option_name(name) for name, value in given.items() if name not in taken and value is not None]
    if names:
        takes = ", ".join(map(option_name, taken)) or "nothing but its name"
        raise ConfigError(f"`tosa {command}` of a whole model takes {takes}: leave out {' and '.join(names)}.")


def convert(config: ConvertConfig, folder: Path, overwrite: bool, dry_run: bool, json: bool) -> None:
    """`tosa convert` of a model of transformers."""
    from tosa_cli.workflow import whole_folder

    report = whole_folder.convert(config, name=folder.name, listener=console)
    kind = type(report.whole.model).__name__
    console.say(f"Checked: with every token kept, the converted {kind} equals its source.")
    if not dry_run:
        whole_folder.save(report.whole, folder, overwrite)
        remember_model(folder)
    if json:
        found = {"search": report.search.to_dict()} if report.search is not None else {}
        console.print_json({**report.flops.to_dict(), "kind": kind, **found})
    else:
        if report.search is not None:
            show_search(report.search)
        show_flops(report.flops)
    if dry_run:
        console.say("Dry run: nothing was written.")
        return
    console.say(f"Wrote {folder}: after `import tosa_cli`, {kind}.from_pretrained({str(folder)!r}) loads it.")
    console.next_command("tosa", "distill" if report.config.needs_distill else "eval", "--data-dir", "PHOTOS")


def inspect(source: str, given: Mapping[str, Any], json: bool) -> None:
    """`tosa inspect` of a model of transformers that is converted as a whole."""
    check_given("inspect", given)

    from tosa_cli.workflow.whole_inspect import inspect_whole

    report = inspect_whole(source)
    if json:
        console.print_json(report.to_dict())
        return
    facts, (height, width) = report.facts, report.facts["img_size"]
    encoder = facts["encoder_gmacs"] / facts["dense_gmacs"]
    console.print_line(
        f"{source}, a {facts['kind']}, can be converted as a whole: {facts['depth']} layers of {facts['block']} in "
        f"{facts['encoder']}, {facts['tokens']} tokens ({facts['num_prefix_tokens']} of them prefix tokens) of width "
        f"{facts['embed_dim']}, {facts['num_heads']} heads."
    )
    console.print_line(
        f"{facts['counted']} takes {facts['dense_gmacs']:.3f} GMACs at {height}x{width}; {share(encoder)} of them are "
        f"in these layers, the rest stays as it is."
    )
    console.print_table(
        "MACs saved of the whole, by --target-reduction, which is of the layers",
        [f"{target:.0%}" for target in report.savings],
        [[share(saved) for saved in report.savings.values()]],
    )
    console.next_command("tosa", "convert", source, "--preset", "calibrated", "--data-dir", "PHOTOS")


def flops(name: str, json: bool) -> None:
    """`tosa flops` of a whole model."""
    from tosa_cli.model.runs.flops import count_whole
    from tosa_cli.workflow.whole_folder import load_converted

    report = count_whole(load_converted(name).model, name=name)
    if json:
        console.print_json(report.to_dict())
    else:
        show_flops(report)


DISTILLED_BY = (
    "data_dir", "max_samples", "epochs", "batch_size", "grad_accum_steps", "lr", "opt", "sched", "warmup_epochs",
    "min_lr", "weight_decay", "clip_grad", "amp", "workers", "seed", "strict", "device", "log_with",
    "checkpoint_every", "max_minutes", "crop_scale",
)  # fmt: skip
"""Settings of `tosa distill` that mean something for a whole model."""

FINETUNED_BY = (
    "data_dir", "max_samples", "objective", "epochs", "batch_size", "grad_accum_steps", "lr", "opt", "sched",
    "warmup_epochs", "min_lr", "weight_decay", "clip_grad", "amp", "workers", "seed", "strict", "device",
    "log_with", "checkpoint_every", "max_minutes", "feature_layers", "eval_every", "hflip", "crop_scale", "model_ema",
    "model_ema_decay", "grad_checkpointing",
)  # fmt: skip
"""Settings of `tosa finetune` that mean something for a whole model."""


def distill(
    name: str,
    config: DistillConfig,
    given: Mapping[str, Any],
    output: Path | None,
    overwrite: bool,
    resume: bool,
    json: bool,
) -> None:
    """`tosa distill` of a whole model."""
    defaults = DistillConfig().to_dict()
    changed = {key: value for key, value in config.to_dict().items() if value != defaults[key]}
    check_given("distill", {**changed, **given}, *DISTILLED_BY)

    from tosa_cli.cli.distill import show_distilled
    from tosa_cli.workflow.whole_distill import distill

    report = distill(name, config, output=output, overwrite=overwrite, resume=resume, listener=console)
    show_distilled(report, json)
    console.say(f"Wrote {report.folder}: {report.model.flops.reduction:.1%} fewer MACs.")
    console.next_command("tosa", "eval", report.folder, "--data-dir", "PHOTOS")


def finetune(
    name: str, given: Mapping[str, Any], output: Path | None, overwrite: bool, resume: bool, json: bool
) -> None:
    """`tosa finetune` of a whole model: without labels, by its own dense self."""
    check_given("finetune", given, *FINETUNED_BY)

    from tosa_cli.cli.finetune import tell_best
    from tosa_cli.train.config import FinetuneConfig
    from tosa_cli.workflow.whole_finetune import finetune

    config = FinetuneConfig.from_dict({key: value for key, value in given.items() if value is not None})
    report = finetune(name, config, output=output, overwrite=overwrite, resume=resume, listener=console)
    if json:
        console.print_json(report.to_dict())
    else:
        found = report.held_out
        kinds = [kind for kind in ("patch", "class") if f"{kind}_cosine_after" in found]
        console.print_table(
            f"Cosine of the encoder's tokens to the dense model's, on {found['samples']} held-out images",
            ["", *kinds],
            [[when, *(f"{found[f'{kind}_cosine_{when}']:.4f}" for kind in kinds)] for when in ("before", "after")],
        )
    if report.watch is not None:
        tell_best(report.watch)
    console.say(f"Wrote {report.folder}.")
    console.next_command("tosa", "eval", report.folder, "--data-dir", "PHOTOS")


def evaluate(name: str, given: Mapping[str, Any], texts: Sequence[str], update_card: bool, json: bool) -> None:
    """`tosa eval` of a whole model: how near its outputs are to the dense model's."""
    check_given("eval", given, "data_dir", "max_samples")

    from tosa_cli.hub.writing import alone
    from tosa_cli.workflow import whole_folder

    folder = Path(name.removeprefix("local-dir:"))
    # Measured and written by one run: another one would put other weights under these figures.
    with alone(folder) if update_card else nullcontext():
        report = whole_folder.evaluate(name, given.get("data_dir", ""), given.get("max_samples"), console, texts)
        if json:
            console.print_json(report.to_dict())
        else:
            title = f"Outputs of {name} against the dense model's, {report.samples} images"
            show_agreement(title, report.outputs)
        if update_card:
            whole_folder.record(name, folder, report)
            console.say(f"Wrote the result into {folder}.")


def export(name: str, path: Path, config: "ExportConfig", json: bool) -> None:
    """`tosa export` of a whole model: one ONNX file for images of its own size."""
    from tosa_cli.workflow import whole_folder

    kind, report = whole_folder.export(name, path, config, console)
    if json:
        console.print_json(report.to_dict())
        return
    shape, quantized = "x".join(map(str, report.input)), report.quantized
    console.print_line(
        f"{report.file}: {(quantized or report).size_mb:.1f} MB; {kind}, takes {shape}; gives "
        f"{', '.join(report.outputs)}."
    )
    console.print_line(
        f"{'Before quantisation it was' if quantized else 'It was'} run on random images: outputs differ by "
        f"{report.difference:.2g} at most."
    )
    if quantized is not None:
        show_agreement(f"int8 against float32, {quantized.images} pieces of photos", quantized.outputs)
        console.print_line(
            f"{quantized.size_mb:.1f} MB against {report.size_mb:.1f}; {quantized.speedup:.2f}x the speed of float32 "
            f"(turn by turn {quantized.speedup_min:.2f} to {quantized.speedup_max:.2f}; "
            f"{counted(quantized.threads, 'thread')})."
        )
    console.next_command("tosa", "bench", name, "-b", "1", "--runtime", "onnxruntime")


def show_agreement(title: str, outputs: "Mapping[str, Mapping[str, float]]") -> None:
    """Print how near outputs are to others."""
    console.print_table(
        title,
        ["output", "figure", "mean"],
        [[output, figure, f"{value:.4f}"] for output, figures in outputs.items() for figure, value in figures.items()],
    )


def show_flops(report: "WholeFlops") -> None:
    """Print the table of a report."""
    rows = flops_rows(report.layers)
    around = (report.gmacs - report.encoder_gmacs) * 1e3
    rows.append(["the rest", "", "", "", f"{around:.2f}", "", "", ""])
    height, width = report.img_size
    console.print_table(
        f"{report.model} at {height}x{width}: MACs of one image, in millions",
        ["layer", "kind", "tokens", "kept", "MMACs", "selector", "bypass", "saved"],
        rows,
    )
    console.print_line(
        f"{report.counted}: {report.gmacs:.3f} GMACs, dense {report.dense_gmacs:.3f}: {share(report.reduction)} less; "
        f"in the layers {share(report.encoder_reduction)} less, which are "
        f"{share(report.encoder_dense_gmacs / report.dense_gmacs)} of the dense model."
    )
    console.print_line(f"{report.params / 1e6:.2f} M parameters. FLOPs = 2 * MACs.")
