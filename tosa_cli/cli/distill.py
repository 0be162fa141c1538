"""`tosa distill`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tosa_cli.cli import console, whole
from tosa_cli.cli.options import (
    JsonOption,
    ModelArgument,
    OutputOption,
    OverwriteOption,
    PresetOption,
    RecipeOption,
    preset_recipe,
    resolve_model,
    settings_from,
    with_settings,
)
from tosa_cli.progress import counted, figure
from tosa_cli.train.config import DistillConfig

if TYPE_CHECKING:
    from tosa_cli.workflow.run_report import RunReport

ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an interrupted run.")]


@with_settings(DistillConfig)
def distill(
    settings: dict[str, Any],
    model: ModelArgument = None,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    json: JsonOption = False,
) -> None:
    """Train the selectors and fit the bypass on any folder of images: no labels are read, the backbone is not touched.

    The selector `attention` learns to predict the attention maps of its layer from the logits of the layer before
    (paper 2.2). Bypass and probe are fitted in closed form, layer by layer. Without -o the model folder is brought to
    its next stage, the old weights in place until the new ones are whole.
    """
    config = DistillConfig.from_dict(settings_from("distill", preset_recipe(preset, recipe), settings))
    name = resolve_model(model)
    if whole.is_whole(name):
        whole.distill(name, config, settings, output, overwrite, resume, json)
        return

    from tosa_cli.model.flops import count_flops
    from tosa_cli.workflow.distill import distill as run

    report = run(name, config=config, output=output, overwrite=overwrite, resume=resume, listener=console)
    show_distilled(report, json)
    console.say(f"Wrote {report.folder}: {count_flops(report.model).reduction:.1%} fewer MACs.")
    console.next_command("tosa", "eval", report.folder, "--data-dir", "IMAGES", "--compare")


def show_distilled(report: "RunReport", json: bool) -> None:
    """Print what was trained and fitted, and warn of selectors and of a fit that are no better."""
    if json:
        console.print_json(report.to_dict())
    else:
        _show(report.held_out)
        speed = report.images_per_second
        pace = "" if speed is None else f", {report.seconds:.1f} s in all, {speed:.1f} images/s"
        console.say(f"{report.steps}{pace}.")
    _warn_if_undone(report.held_out)


def _show(results: dict[str, Any]) -> None:
    if "layers" in results:
        _show_selectors(results)
    if "bypass_errors" in results:
        console.print_table(
            "Error of the bypass, as a share of the true update",
            ["layer", "error"],
            [[str(layer), f"{error:.1%}"] for layer, error in results["bypass_errors"].items()],
        )
    if "patch_cosine_after" in results:
        images = counted(results["samples"], "held-out image")
        console.print_table(
            f"Cosine of the final tokens to the dense model's, on {images}",
            ["", "patch", "class"],
            [
                [which, *(figure(results.get(f"{kind}_cosine_{which}")) for kind in ("patch", "class"))]
                for which in ("before", "after")
            ],
        )


def _warn_if_undone(results: dict[str, Any]) -> None:
    from tosa_cli.hub.measured import selectors_undone

    if undone := selectors_undone(results):
        console.warn(undone)
    if not results.get("fit_kept", True):
        console.warn(
            "The fit was not kept: it did not bring the final tokens of the held-out images nearer to the dense "
            "model's. The images to fit on were too few or too different; what was to be fitted is as it was, and more "
            "images may make it better."
        )


def _show_selectors(results: dict[str, Any]) -> None:
    console.print_table(
        f"Selectors on {counted(results['samples'], 'held-out image')}",
        ["layer", "KL before", "KL after", "top-K found", "by previous map", "by chance"],
        [
            [
                str(row["layer"]),
                f"{row['kl_before']:.4f}",
                f"{row['kl_after']:.4f}",
                f"{row['found']:.1%}",
                f"{row['found_previous']:.1%}",
                f"{row['found_random']:.1%}",
            ]
            for row in results["layers"]
        ],
    )
