"""`tosa distill`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tosa_cli.cli import console
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
from tosa_cli.train.config import DistillConfig

if TYPE_CHECKING:
    from tosa_cli.measure.selectors import SelectorReport

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

    from tosa_cli.cli.training import (
        features_held_out,
        finish,
        load_for_training,
        open_images,
        tell_images,
        watched_results,
    )
    from tosa_cli.measure.selectors import measure_selectors
    from tosa_cli.model.flops import count_flops
    from tosa_cli.train.distill import check_trainable, distill_augmentation
    from tosa_cli.train.distill import distill as run
    from tosa_cli.train.processes import make_accelerator
    from tosa_cli.train.weights import HeldOut, Watch

    job = load_for_training(name, output, overwrite, resume, "distill")
    check_trainable(job.model)
    accelerator = make_accelerator(config, job.tracker_folder)
    predicts_maps = job.model.config.selector == "attention"
    is_fitted = job.model.config.is_fitted
    augment = distill_augmentation(config) if predicts_maps else None
    images = open_images(job.model, config, augment=augment, in_order=is_fitted)
    held_out = images.held_out
    job.start_trackers(accelerator, config)
    tell_images("Distilling", images.training or images.in_order, held_out)

    def features() -> HeldOut:
        return features_held_out(job.model, job.model.backbone, held_out, accelerator, config)

    def selectors() -> "SelectorReport | None":
        if not (predicts_maps and accelerator.is_main_process):
            return None
        batches = (batch.images for batch in held_out.batches(config.strict))
        return measure_selectors(job.model, batches, accelerator.device)

    watch = Watch(features, every=0, keep_best=True) if is_fitted else None
    before = selectors()
    with console.progress("Distilling") as progress:
        done = run(
            accelerator,
            job.model,
            images.training,
            images.in_order,
            config,
            checkpoint=job.checkpoint,
            watch=watch,
            resume=resume,
            progress=progress,
        )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    results: dict[str, Any] = {}
    after = selectors()
    if before is not None and after is not None:
        results |= {"samples": after.samples, "layers": _selector_rows(before, after)}
    if watch is not None:
        results |= {**watched_results(watch), "fit_kept": done.fit_kept}
    if done.calibration is not None and done.fit_kept:
        results["bypass_errors"] = done.calibration.errors
    report = finish(job, "distilled", config, done, held_out, results)
    if json:
        console.print_json(report)
    else:
        _show(results)
        steps = console.counted(done.updates, "step")
        console.say(f"{steps}, {done.seconds:.1f} s in all, {done.images_per_second:.1f} images/s.")
    _warn_if_undone(results)
    reduction = count_flops(job.model).reduction
    console.say(f"Wrote {job.folder}: {reduction:.1%} fewer MACs.")
    console.next_command("tosa", "eval", job.folder, "--data-dir", "IMAGES", "--compare")


def _selector_rows(before: Any, after: Any) -> list[dict[str, Any]]:
    return [
        {
            "layer": a.layer,
            "kl_before": b.kl,
            "kl_after": a.kl,
            "kl_previous": a.kl_previous,
            "found": a.found,
            "found_previous": a.found_previous,
            "found_random": a.found_random,
        }
        for b, a in zip(before.layers, after.layers, strict=True)
    ]


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
        images = console.counted(results["samples"], "held-out image")
        console.print_table(
            f"Cosine of the final tokens to the dense model's, on {images}",
            ["", "patch", "class"],
            [
                [which, *(_cosine(results.get(f"{kind}_cosine_{which}")) for kind in ("patch", "class"))]
                for which in ("before", "after")
            ],
        )


def _warn_if_undone(results: dict[str, Any]) -> None:
    if not results.get("fit_kept", True):
        console.warn(
            "The fit was not kept: it did not bring the final tokens of the held-out images nearer to the dense "
            "model's. The images to fit on were too few or too different; what was to be fitted is as it was, and more "
            "images may make it better."
        )


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _show_selectors(results: dict[str, Any]) -> None:
    console.print_table(
        f"Selectors on {console.counted(results['samples'], 'held-out image')}",
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
