"""`tosa demo`: the whole workflow on handwritten digits, offline."""

import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import OverwriteOption
from tosa_cli.errors import InputError, OutputError

if TYPE_CHECKING:
    from tosa_cli.data.loading import Images

DENSE_EPOCHS = 16
MARKER = ".tosa-demo"


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("tosa-demo"),
    overwrite: OverwriteOption = False,
    seed: Annotated[int, typer.Option(help="Seed of all that is random.")] = 0,
) -> None:
    """Run the whole workflow on a small real data set, offline, in under two minutes on two cores.

    A small ViT learns scikit-learn's handwritten digits; then it is converted, distilled, finetuned and measured,
    and each command is printed as it runs.
    """
    started = time.perf_counter()
    _clear(output, overwrite)
    data, dense = output / "digits", output / "dense"
    console.say("Writing scikit-learn's handwritten digits as images ...")
    write_digits(data)
    console.say(f"Training a small dense ViT on them for {DENSE_EPOCHS} epochs ...")
    train_dense(data, dense, seed)
    training = ["--data-dir", str(data), "-b", "32", "-j", "0", "--seed", str(seed), "--epochs", "5"]
    settings = ["--lr", "5e-4", "--warmup-epochs", "1", "--smoothing", "0", "--hflip", "0", "--crop-scale", "0.95"]
    converted, distilled, finetuned = (output / name for name in ("converted", "distilled", "finetuned"))
    run = partial(_run, context.find_root().command)
    run("convert", dense, "--layers", "2,4,6", "--keep-rate", "0.25", "-o", converted)
    run("distill", converted, *training, "-o", distilled)
    run("finetune", distilled, *training, *settings, "-o", finetuned)
    run("eval", finetuned, "--data-dir", data, "-b", "64", "-j", "0", "--compare", "--update-card")
    run("flops", finetuned)
    _show_stages(data, dense, [converted, distilled, finetuned])
    console.say(f"Done in {time.perf_counter() - started:.0f} s. The model and its card are in {finetuned}.")
    console.next_command("tosa", "convert", "deit_tiny", "--layers", "2,4,6,8,10")


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits of 8x8 pixels as PNG: `train` and `validation`, one folder a class.

    Raises:
        InputError: If scikit-learn is not installed.
    """
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("The digits of the demo need a package: run `pip install 'tosa-cli[demo]'`.") from error
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "validation" if index % 5 == 0 else "train"
        path = folder / split / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((32, 32), Image.Resampling.BICUBIC).save(path)


def train_dense(data: Path, folder: Path, seed: int) -> None:
    """Train a ViT of 6 layers and 37 tokens from scratch, and save it in timm's format."""
    import timm
    import torch
    from timm.models import save_for_hf
    from timm.optim import create_optimizer_v2
    from torch import nn

    from tosa_cli.data.datasets import open_dataset
    from tosa_cli.data.loading import Augmentation, images_to_read
    from tosa_cli.train.config import TrainConfig
    from tosa_cli.train.loop import train
    from tosa_cli.train.processes import make_accelerator
    from tosa_cli.train.schedule import make_scheduler

    torch.manual_seed(seed)
    size: dict[str, Any] = {"img_size": 24, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}
    model: Any = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, **size)
    model.pretrained_cfg.update(mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, license="apache-2.0")

    class Classify(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any, targets: Any) -> Any:
            return nn.functional.cross_entropy(self.model(images), targets)

    config = TrainConfig(
        data_dir=str(data),
        epochs=DENSE_EPOCHS,
        batch_size=32,
        lr=1.5e-3,
        weight_decay=0.05,
        warmup_epochs=2,
        workers=0,
        seed=seed,
        device="cpu",
    )
    images = images_to_read(
        open_dataset(str(data), split="train"),
        model,
        batch_size=32,
        seed=seed,
        augment=Augmentation(crop_scale=0.95, hflip=0.0),
        name=str(data),
    )
    checkpoint = folder.with_name("dense-checkpoint.safetensors")
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    with console.progress("Training") as progress:
        train(
            make_accelerator(config),
            Classify().train(),
            images,
            optimizer,
            config,
            checkpoint=checkpoint,
            make_scheduler=make_scheduler(config),
            progress=progress,
        )
    checkpoint.unlink(missing_ok=True)
    save_for_hf(model.eval(), str(folder), safe_serialization=True)


def _clear(output: Path, overwrite: bool) -> None:
    if output.exists() and any(output.iterdir()):
        if not overwrite or not (output / MARKER).exists():
            raise OutputError(
                f"{output} already exists. Choose another folder with -o, or pass --overwrite if it is of "
                f"an earlier demo."
            )
        import shutil

        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def _run(root: Callable[..., Any], *words: str | Path) -> None:
    """Run a command as a user would, and show it so that it can be pasted into a shell."""
    arguments = [str(word) for word in words]
    console.say(f"\n$ {shlex.join(['tosa', *arguments])}")
    root(arguments, standalone_mode=False)


def _show_stages(data: Path, dense: Path, folders: list[Path]) -> None:
    import timm

    from tosa_cli.data.datasets import open_dataset
    from tosa_cli.data.loading import images_to_read
    from tosa_cli.hub.checkpoint import load
    from tosa_cli.measure.evaluation import measure_models
    from tosa_cli.model.flops import count_flops
    from tosa_cli.tasks.classification import AccuracyMeasure

    models: dict[str, Any] = {"dense": timm.create_model(f"local-dir:{dense}", pretrained=True)}
    models |= {folder.name: load(folder) for folder in folders}
    images = images_to_read(open_dataset(str(data), split="validation"), models["dense"], batch_size=64)
    accuracy = measure_models(models, images, AccuracyMeasure()).models
    rows = [
        [name, f"{accuracy[name].top1:.2f}", f"{count_flops(model).gmacs:.4f}", *_selector_quality(model, images)]
        for name, model in models.items()
    ]
    console.say("")
    console.print_table(
        f"The four stages on {images.num_images} test images that none of them saw",
        ["stage", "top-1 %", "GMACs", "selectors: KL", "true top-K found"],
        rows,
    )


def _selector_quality(model: Any, images: "Images") -> list[str]:
    """Mean KL and share found of the selectors of a stage; the dense model has none."""
    from tosa_cli.measure.selectors import measure_selectors
    from tosa_cli.model.tosa_vit import TosaViT

    if not isinstance(model, TosaViT):
        return ["-", "-"]
    layers = measure_selectors(model, (batch.images for batch in images.batches(strict=True))).layers
    kl, found = (sum(getattr(layer, name) for layer in layers) / len(layers) for name in ("kl", "found"))
    return [f"{kl:.2f}", f"{found:.1%}"]
