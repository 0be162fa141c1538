"""Predictors (encoder and decoder) on disk: one folder as for converted models, with an architecture of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tosa_cli.errors import CheckpointError, ConfigError, UnsupportedModelError
from tosa_cli.hub.checkpoint import check_blocks, load, load_checked, timm_config
from tosa_cli.hub.folder import CONFIG, kind_of
from tosa_cli.hub.image_settings import check_pixels
from tosa_cli.hub.kind import find_config, find_kind
from tosa_cli.hub.source import load_source
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.registry import build_predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance
from tosa_cli.settings import option_name
from tosa_cli.source_config import PixelSettings
from tosa_cli.task import PREDICTOR_ARCHITECTURE, TaskConfig


def make_predictor(
    name: str,
    config: TaskConfig,
    img_size: tuple[int, int] | None = None,
    seed: int = 0,
    *,
    architecture: str | None = None,
    weights_key: str | None = None,
    pixels: PixelSettings | None = None,
    tell: Callable[[str], None] = lambda note: None,
) -> Predictor:
    """Put a new decoder on an encoder.

    The encoder takes images of any size from then on; its position embedding is brought to `img_size` once.

    Args:
        name: A converted model (folder or Hub id), or a dense source as `tosa convert` takes it.
        config: What is predicted, and with which decoder.
        img_size: Image size (height, width) in pixels, brought to whole patches; None keeps the encoder's.
        seed: Seed of the decoder's first weights.
        architecture: timm's name of the architecture of a weights file.
        weights_key: Which weights to take of a file that holds several.
        pixels: What the values of pixels are put through, where it is not as a dense source says.
        tell: Told what the user should know about how the source was read.

    Raises:
        TosaError: If the encoder cannot be found or read, or does not take images of any size.
        ConfigError: If something is said of how to read a source, but the model is converted already.
    """
    encoder, provenance = _load_encoder(name, architecture, weights_key, pixels or PixelSettings(), tell)
    backbone = encoder.backbone if isinstance(encoder, TosaViT) else encoder
    patch = backbone.patch_embed.patch_size
    size = img_size or backbone.patch_embed.img_size
    backbone.reset_classifier(0)
    backbone.set_input_size(tuple(max(side, round(s / side) * side) for s, side in zip(size, patch, strict=True)))
    args = {**_encoder_args(encoder), "dynamic_img_size": True}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_predictor(**args, **config.to_dict())
    except TypeError as error:
        raise UnsupportedModelError(
            f"{name} is a {args['base_architecture']}, which takes images of one size only, so it cannot be an encoder "
            f"for depth and segmentation ({error}): take another model."
        ) from error
    needed = model.encoder.state_dict()
    model.encoder.load_state_dict({key: value for key, value in encoder.state_dict().items() if key in needed})
    model.pretrained_cfg = backbone.pretrained_cfg
    model.provenance = provenance
    return model.eval()


def is_predictor(name: str) -> bool:
    """Whether a folder or Hub repository holds a predictor."""
    return find_kind(name) == "predictor"


def task_of(name: str) -> str | None:
    """The task of the predictor in a folder or Hub repository; None if there is none."""
    config = find_config(name)
    if kind_of(config) != "predictor":
        return None
    args = config.get("model_args")
    return args.get("task", TaskConfig.task) if isinstance(args, dict) else TaskConfig.task


def describe_predictor(model: Predictor) -> dict[str, Any]:
    """The config.json of a predictor, in timm's shape: the task's settings are in `model_args`."""
    config = timm_config(model.backbone)
    args = {**_encoder_args(model.encoder), "dynamic_img_size": True, **model.config.to_dict()}
    config.update(architecture=PREDICTOR_ARCHITECTURE, model_args=args, tosa=model.provenance.to_dict())
    return config


def load_predictor(folder_or_repo: str | Path) -> Predictor:
    """Load a predictor, strictly: a missing or unknown key is an error.

    Args:
        folder_or_repo: A model folder, or the id of a Hub repository, `org/name[@revision]`.

    Returns:
        The model, in evaluation mode.

    Raises:
        SourceError: If there is no such folder or repository.
        CheckpointError: If the folder is broken, foreign, or of a newer format.
        HubError: If the Hub refuses or cannot be reached.
    """
    return load_checked(folder_or_repo, check_predictor_config)


def check_predictor_config(config: dict[str, Any], folder: str) -> Provenance:
    """Check the config.json of a folder or repository before anything is built from it, and read its provenance."""
    path = f"{folder}/{CONFIG}"
    if kind_of(config) != "predictor":
        raise CheckpointError(f"{folder} holds no model with a decoder: train one with `tosa finetune --task depth`.")
    check_blocks(config, path)
    try:
        return Provenance.from_dict(config["tosa"])
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def _load_encoder(
    name: str,
    architecture: str | None,
    weights_key: str | None,
    pixels: PixelSettings,
    tell: Callable[[str], None],
) -> tuple[Any, Provenance]:
    if find_kind(name) == "converted":
        for setting, value in {"architecture": architecture, "weights_key": weights_key}.items():
            if value is not None:
                raise ConfigError(
                    f"{name} is converted, and no file of weights: leave out {option_name(setting)} {value}."
                )
        converted = load(name)
        check_pixels(converted, pixels, name)
        return converted, converted.provenance
    source = load_source(name, architecture=architecture, weights_key=weights_key, images=pixels)
    for note in source.notes:
        tell(note)
    return source.model, source.provenance(name)


def _encoder_args(encoder: nn.Module) -> dict[str, Any]:
    """What rebuilds an encoder, by the names of the registry."""
    backbone: Any = encoder.backbone if isinstance(encoder, TosaViT) else encoder
    config = timm_config(backbone)
    settings = encoder.config.to_dict() if isinstance(encoder, TosaViT) else {}
    norm_eps = {"norm_eps": backbone.norm_eps} if hasattr(backbone, "norm_eps") else {}
    return {
        "base_architecture": config["architecture"],
        **settings,
        **config.get("model_args", {}),
        **norm_eps,
        "img_size": list(backbone.patch_embed.img_size),
        "num_classes": 0,
    }
