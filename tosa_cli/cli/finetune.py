"""`tosa finetune`."""

from typing import Any

from tosa_cli.cli import console
from tosa_cli.cli.distill import ResumeOption
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
from tosa_cli.errors import DataError
from tosa_cli.train.config import FinetuneConfig


@with_settings(FinetuneConfig)
def finetune(
    settings: dict[str, Any],
    model: ModelArgument = None,
    recipe: RecipeOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    json: JsonOption = False,
) -> None:
    """Finetune the model on labelled images, its selectors frozen (paper 2.3).

    Class folders are the labels, in alphabetical order, as in ImageNet. Without -o the model folder is brought to
    its next stage, the old weights in place until the new ones are whole.
    """
    config = FinetuneConfig.from_dict(settings_from("finetune", recipe, settings))
    name = resolve_model(model)

    from tosa_cli.cli.training import finish, load_for_training, training_images
    from tosa_cli.measure.accuracy import measure_accuracy
    from tosa_cli.train.data import check_labels
    from tosa_cli.train.finetune import finetune as run
    from tosa_cli.train.finetune import finetune_augmentation
    from tosa_cli.train.loop import make_accelerator

    job = load_for_training(name, output, overwrite, resume, "finetune")
    accelerator = make_accelerator(config, job.tracker_folder)
    train_images, held_out = training_images(job.model, config, finetune_augmentation(config))
    check_labels(train_images, job.model.num_classes)
    check_labels(held_out, job.model.num_classes)
    if train_images.classes != held_out.classes:
        raise DataError(f"The held-out images of {held_out.name} are of other classes than {train_images.name}.")
    job.start_trackers(accelerator, config)
    if len(job.model.selectors) and job.model.provenance.stage == "converted":
        console.warn("The selectors were not trained: run `tosa distill` first, or they select by the layer before.")
    console.say(
        f"Finetuning on {train_images.num_images} images of {train_images.name}; {held_out.num_images} images "
        f"are held out."
    )

    def measure() -> Any:
        return measure_accuracy(
            {"tosa": job.model}, held_out, device=accelerator.device, amp=config.amp, strict=config.strict
        )

    before = measure() if accelerator.is_main_process else None
    with console.progress("Finetuning") as progress:
        trained = run(
            accelerator, job.model, train_images, config, checkpoint=job.checkpoint, resume=resume, progress=progress
        )
    accelerator.end_training()
    if before is None:
        return
    after = measure()
    results = {
        "samples": after.samples,
        "top1_before": before.models["tosa"].top1,
        "top1_after": after.models["tosa"].top1,
        "top5_before": before.models["tosa"].top5,
        "top5_after": after.models["tosa"].top5,
    }
    report = {**finish(job, "finetuned", config, trained, held_out, results), "loss": trained.last_loss}
    if json:
        console.print_json(report)
    else:
        console.print_table(
            f"Accuracy on {after.samples} held-out images, in percent",
            ["", "top-1", "top-5"],
            [
                ["before", f"{results['top1_before']:.2f}", f"{results['top5_before']:.2f}"],
                ["after", f"{results['top1_after']:.2f}", f"{results['top5_after']:.2f}"],
            ],
        )
        console.say(f"{trained.updates} steps in {trained.seconds:.1f} s, {trained.images_per_second:.1f} images/s.")
    console.say(f"Wrote {job.folder}.")
    console.next_command(f"tosa eval {job.folder} --data-dir IMAGES --compare")
