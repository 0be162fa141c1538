"""`tosa distill`."""

from typing import Annotated, Any

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import (
    JsonOption,
    ModelArgument,
    OutputOption,
    OverwriteOption,
    RecipeOption,
    resolve_model,
    settings_from,
    with_settings,
)
from tosa_cli.train.config import DistillConfig

ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an interrupted run.")]


@with_settings(DistillConfig)
def distill(
    settings: dict[str, Any],
    model: ModelArgument = None,
    recipe: RecipeOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    json: JsonOption = False,
) -> None:
    """Train the selectors on any folder of images: no labels are read, and the backbone is not touched.

    Each selector learns to predict the attention maps of its layer from the logits of the layer before (paper 2.2).
    Without -o the model folder is brought to its next stage, the old weights in place until the new ones are whole.
    """
    config = DistillConfig.from_dict(settings_from("distill", recipe, settings))
    name = resolve_model(model)

    from tosa_cli.cli.training import finish, load_for_training, training_images
    from tosa_cli.measure.flops import count_flops
    from tosa_cli.measure.selectors import measure_selectors
    from tosa_cli.train.distill import check_trainable, distill_augmentation
    from tosa_cli.train.distill import distill as run
    from tosa_cli.train.loop import make_accelerator

    job = load_for_training(name, output, overwrite, resume, "distill")
    check_trainable(job.model)
    accelerator = make_accelerator(config, job.tracker_folder)
    train_images, held_out = training_images(job.model, config, distill_augmentation(config))
    job.start_trackers(accelerator, config)
    console.say(
        f"Training {len(job.model.selectors)} selectors on {train_images.num_images} images of "
        f"{train_images.name}; {held_out.num_images} images are held out."
    )

    def measure() -> Any:
        batches = (batch.images for batch in held_out.batches(config.strict))
        return measure_selectors(job.model, batches, accelerator.device)

    before = measure() if accelerator.is_main_process else None
    with console.progress("Distilling") as progress:
        trained = run(
            accelerator,
            job.model,
            train_images,
            config,
            checkpoint=job.checkpoint,
            resume=resume,
            progress=progress,
        )
    accelerator.end_training()
    if before is None:
        return
    after = measure()
    rows = [
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
    results = {"samples": after.samples, "layers": rows}
    report = finish(job, "distilled", config, trained, held_out, results)
    if json:
        console.print_json(report)
    else:
        _show(results)
        seconds, speed = trained.seconds, trained.images_per_second
        console.say(f"{trained.updates} steps in {seconds:.1f} s, {speed:.1f} images/s.")
    reduction = count_flops(job.model).reduction
    console.say(f"Wrote {job.folder}: {reduction:.1%} fewer MACs.")
    console.next_command(f"tosa eval {job.folder} --data-dir IMAGES --compare")


def _show(results: dict[str, Any]) -> None:
    console.print_table(
        f"Selectors on {results['samples']} held-out images",
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
