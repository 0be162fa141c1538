"""Dense models, encoder and decoder, on disk: one folder as for converted models, with an architecture of its own."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from tosa_cli.config import ARCHITECTURE, Provenance
from tosa_cli.errors import CheckpointError, ConfigError, TosaError, UnsupportedModelError
from tosa_cli.hub.checkpoint import load, load_checked, versions
from tosa_cli.hub.download import fetch_file
from tosa_cli.hub.folder import CARD, CONFIG, RECIPE, WEIGHTS, atomic_folder, read_json
from tosa_cli.hub.source import load_source
from tosa_cli.model.dense import DensePredictor
from tosa_cli.model.registry import build_dense
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.recipe import dump_recipe
from tosa_cli.task import DENSE_ARCHITECTURE, TaskConfig

PIPELINES = {"depth": "depth-estimation", "segmentation": "image-segmentation"}


def make_dense(name: str, config: TaskConfig, img_size: tuple[int, int] | None = None, seed: int = 0) -> DensePredictor:
    """Put a new decoder on an encoder.

    The encoder takes images of any size from then on; its position embedding is brought to `img_size` once.

    Args:
        name: A converted model (folder or Hub id), or a dense source as `tosa convert` takes it.
        config: What is predicted, and with which decoder.
        img_size: Image size (height, width) in pixels, brought to whole patches; None keeps the encoder's.
        seed: Seed of the decoder's first weights.

    Raises:
        TosaError: If the encoder cannot be found or read, or does not take images of any size.
    """
    encoder, provenance = _load_encoder(name)
    backbone = encoder.backbone if isinstance(encoder, TosaViT) else encoder
    patch = backbone.patch_embed.patch_size
    size = img_size or backbone.patch_embed.img_size
    backbone.reset_classifier(0)
    backbone.set_input_size(tuple(max(side, round(s / side) * side) for s, side in zip(size, patch, strict=True)))
    args = {**_encoder_args(encoder), "dynamic_img_size": True}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_dense(**args, **config.to_dict())
    except TypeError as error:
        raise UnsupportedModelError(
            f"{name} is a {args['base_architecture']}, which takes images of one size only, so it cannot be an encoder "
            f"for dense tasks ({error})."
        ) from error
    weights = {key: value for key, value in encoder.state_dict().items() if key in model.state_dict()}
    decoder = {key: value for key, value in model.state_dict().items() if key.startswith("decoder.")}
    model.load_state_dict({**weights, **decoder})
    model.backbone.pretrained_cfg = backbone.pretrained_cfg
    model.provenance = provenance
    return model.eval()


def is_dense(name: str) -> bool:
    """Whether a folder or Hub repository holds a dense model."""
    return _architecture(name) == DENSE_ARCHITECTURE


def save_dense(model: DensePredictor, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model folder: weights, configuration, model card and recipe. It appears whole or not at all.

    Raises:
        OutputError: If it exists and may not be overwritten, or cannot be written.
    """
    folder = Path(folder)
    with atomic_folder(folder, overwrite) as target:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        save_file(state, target / WEIGHTS, metadata={"format": "pt"})
        (target / WEIGHTS).chmod(target.stat().st_mode & 0o666)
        (target / CONFIG).write_text(json.dumps(describe_dense(model), indent=2) + "\n", encoding="utf-8")
        (target / RECIPE).write_text(dump_recipe(model.provenance.steps, versions()), encoding="utf-8")
        (target / CARD).write_text(_render_card(model, folder.absolute().name), encoding="utf-8")
    return folder


def describe_dense(model: DensePredictor) -> dict[str, Any]:
    """The config.json of a dense model, in timm's shape: the task's settings are in `model_args`."""
    config = _timm_config(model.backbone)
    args = {**_encoder_args(model.encoder), "dynamic_img_size": True, **model.config.to_dict()}
    config.update(architecture=DENSE_ARCHITECTURE, model_args=args, tosa=model.provenance.to_dict())
    return config


def load_dense(folder_or_repo: str | Path) -> DensePredictor:
    """Load a dense model, strictly: a missing or unknown key is an error.

    Args:
        folder_or_repo: A model folder, or the id of a Hub repository, `org/name[@revision]`.

    Returns:
        The model, in evaluation mode.

    Raises:
        SourceError: If there is no such folder or repository.
        CheckpointError: If the folder is broken, foreign, or of a newer format.
        HubError: If the Hub refuses or cannot be reached.
    """
    return load_checked(folder_or_repo, check_dense_config)


def check_dense_config(config: dict[str, Any], folder: str) -> Provenance:
    """Check the config.json of a folder or repository before anything is built from it, and read its provenance."""
    path = f"{folder}/{CONFIG}"
    if config.get("architecture") != DENSE_ARCHITECTURE:
        raise CheckpointError(f"{folder} holds no model with a decoder: train one with `tosa finetune --task depth`.")
    if not isinstance(config.get("model_args"), dict) or not isinstance(config.get("tosa"), dict):
        raise CheckpointError(f"{path} should hold objects under 'model_args' and 'tosa'.")
    try:
        return Provenance.from_dict(config["tosa"])
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def _load_encoder(name: str) -> tuple[Any, Provenance]:
    if _architecture(name) == ARCHITECTURE:
        converted = load(name)
        return converted, converted.provenance
    source = load_source(name)
    license_name = (source.model.pretrained_cfg or {}).get("license")
    return source.model, Provenance(
        source=name,
        base_model=source.name,
        base_hub_id=source.hub_id,
        base_revision=source.revision,
        license=license_name,
    )


def _architecture(name: str) -> str | None:
    """The architecture that a folder or Hub repository names; None without one, or where it cannot be read."""
    folder = Path(name.removeprefix("local-dir:"))
    repo_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        if folder.is_dir():
            return read_json(folder / CONFIG).get("architecture")
        if name.startswith(("local-dir:", ".", "/", "~")) or repo_id.count("/") != 1 or folder.exists():
            return None
        return read_json(fetch_file(repo_id, CONFIG, revision=revision or None)).get("architecture")
    except TosaError:
        return None  # whoever loads it tells why it cannot be loaded


def _timm_config(backbone: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(backbone, str(Path(folder, CONFIG)))
        return read_json(Path(folder, CONFIG))


def _encoder_args(encoder: nn.Module) -> dict[str, Any]:
    """What rebuilds an encoder, by the names of the registry."""
    backbone: Any = encoder.backbone if isinstance(encoder, TosaViT) else encoder
    config = _timm_config(backbone)
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


def _render_card(model: DensePredictor, name: str) -> str:
    """The model card: what it predicts, how it was made, what was measured, how to load it."""
    provenance, config = model.provenance, model.config
    metadata = ModelCardData(
        license=provenance.license,
        library_name="tosa",
        tags=["tosa", "timm", "vision-transformer", config.task],
        pipeline_tag=PIPELINES[config.task],
        base_model=provenance.base_hub_id,
        base_model_relation="finetune" if provenance.base_hub_id else None,
    )
    converted = isinstance(model.encoder, TosaViT)
    kind = "a [ToSA](https://arxiv.org/abs/2406.08816) encoder" if converted else "a dense encoder"
    what = (
        f"depth between {config.min_depth:g} and {config.max_depth:g} m"
        if config.task == "depth"
        else f"{config.num_labels} classes"
    )
    height, width = model.img_size
    sections = [
        f"# {name}",
        f"{what[0].upper()}{what[1:]} for every pixel: {kind} made from `{provenance.base_model}`, with the decoder "
        f"`{config.decoder}`, trained on images of {height}x{width} pixels.",
        _measured(provenance.results),
        "## How it was made\n\n`recipe.yaml` has every step with its settings: "
        + ", ".join(f"`tosa {command}`" for command in provenance.steps)
        + ".",
        f'## How to load it\n\n```python\nimport tosa_cli\n\nmodel = tosa_cli.load("{name}")\n'
        "maps = model(images)  # normalised by model.pretrained_cfg; any size\n```\n\n`pip install tosa-cli` first.",
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def _measured(results: Any) -> str:
    rows = [
        f"| `tosa {command}` | {key} | {value:.4f} |"
        for command, figures in results.items()
        for key, value in figures.items()
        if isinstance(value, float)
    ]
    return "## Measured\n\n| by | figure | value |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
