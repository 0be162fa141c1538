"""Saving and loading converted models: one folder, no pickle, strict keys (DESIGN: on disk)."""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.layers import to_2tuple
from timm.models._hub import save_config_for_hf

import tosa_cli
from tosa_cli.config import ARCHITECTURE, TosaConfig
from tosa_cli.errors import CheckpointError, ConfigError, OutputError, SourceError, TosaError
from tosa_cli.hub.download import fetch_file
from tosa_cli.hub.folder import CARD, CONFIG, RECIPE, WEIGHTS, is_model_folder, kind_of, read_json
from tosa_cli.hub.image_config import check_image_config
from tosa_cli.hub.weights import check_floats, weights_error
from tosa_cli.hub.writing import atomic_folder
from tosa_cli.model.predictor import Predictor, from_file_names, to_file_names
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import FORMAT_VERSION, Provenance
from tosa_cli.recipe import dump_recipe

__all__ = ["describe", "is_model_folder", "load", "versions", "with_results"]


def write_model(
    model: Any,
    folder: Path,
    describe: Callable[[Any], dict[str, Any]],
    render_card: Callable[[Any, str], str],
    overwrite: bool,
) -> Path:
    """Write a model of any kind that tosa writes, as `tosa_cli.save` does.

    Args:
        model: The model, with its provenance.
        folder: Where to.
        describe: Gives its config.json.
        render_card: Gives its card, by the name of the folder.
        overwrite: Replace a model folder that exists.
    """
    with atomic_folder(folder, overwrite) as target:
        state = {key: value.detach().cpu().contiguous() for key, value in _weights(model).items()}
        save_file(state, target / WEIGHTS, metadata={"format": "pt"})
        (target / WEIGHTS).chmod(target.stat().st_mode & 0o666)
        (target / CONFIG).write_text(json.dumps(describe(model), indent=2) + "\n", encoding="utf-8")
        (target / RECIPE).write_text(dump_recipe(model.provenance.steps, versions()), encoding="utf-8")
        try:
            card = render_card(model, folder.resolve().name)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"What the model's {CONFIG} holds under 'tosa' cannot be told in its card ({error!r}): correct it, or "
                f"convert the source anew."
            ) from error
        (target / CARD).write_text(card, encoding="utf-8")
    return folder


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """A model's weights by their names in its file."""
    return to_file_names(model.state_dict()) if isinstance(model, Predictor) else model.state_dict()


def describe(model: TosaViT) -> dict[str, Any]:
    """The model's config.json, in timm's shape.

    Returns:
        JSON values from which timm rebuilds the model; the block `tosa` holds provenance only.
    """
    backbone = model.backbone
    config = timm_config(backbone)
    for key in ("label_names", "label_descriptions"):
        # timm's place for them on the Hub.
        if config["pretrained_cfg"].get(key):
            config[key] = config["pretrained_cfg"].pop(key)
    base_args = {**config.get("model_args", {}), "img_size": list(backbone.patch_embed.img_size)}
    # At the top alone: transformers passes that and the arguments on, and stops where both have it.
    base_args.pop("num_classes", None)
    if hasattr(backbone, "norm_eps"):
        base_args["norm_eps"] = backbone.norm_eps
    settings = {"base_architecture": config["architecture"], **model.config.to_dict()}
    # A model of an older folder is written in the format of today.
    provenance = {**model.provenance.to_dict(), "format_version": FORMAT_VERSION}
    config.update(architecture=ARCHITECTURE, model_args={**settings, **base_args}, tosa=provenance)
    return config


def timm_config(backbone: Any) -> dict[str, Any]:
    """The config.json that timm writes for a dense model.

    Raises:
        OutputError: If the model was built from something that JSON does not hold, or without timm's `create_model`,
            so that nothing tells how to build it again.
    """
    if not (getattr(backbone, "pretrained_cfg", None) or {}).get("architecture"):
        raise OutputError(
            f"The model cannot be saved, as its {type(backbone).__name__} was built by its class, and timm cannot "
            f"build it again by a name: make it with timm.create_model, as in "
            f"timm.create_model('vit_tiny_patch16_224', img_size=64, depth=6), and convert that."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_config_for_hf(backbone, str(Path(folder, CONFIG)))
        except (TypeError, ValueError) as error:
            raise OutputError(
                f"{type(backbone).__name__} cannot be written to a {CONFIG} ({error}) Build it with timm's names in "
                f"the place of classes and functions, as in norm_layer='layernorm'."
            ) from error
        return read_json(Path(folder, CONFIG))


def load(
    folder_or_repo: str | Path,
    *,
    img_size: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> TosaViT:
    """Load a converted model, strictly: a missing or unknown key is an error.

    Args:
        folder_or_repo: A model folder, or the id of a Hub repository, `org/name[@revision]`.
        img_size: Image size in pixels, one number or (height, width); None keeps the saved one.
        revision: Branch, tag or commit on the Hub; None is the main branch, or what the id names.
        cache_dir: Where downloads are kept; None is the Hub client's cache, see `HF_HOME`.
        token: Access token for a private repository; None takes `HF_TOKEN` or the login.

    Returns:
        The model, in evaluation mode.

    Raises:
        SourceError: If there is no such folder, repository or revision.
        CheckpointError: If the folder is broken, foreign, or of a newer format.
        ConfigError: If the image size is no whole number of patches.
        HubError: If the Hub refuses or cannot be reached.
    """
    model = load_checked(folder_or_repo, check_config, revision=revision, cache_dir=cache_dir, token=token)
    if img_size is not None:
        resize(model, img_size)
    return model


def resize(model: TosaViT, img_size: int | tuple[int, int]) -> None:
    """Bring a model to an image size in pixels, one number or (height, width).

    Raises:
        ConfigError: If it is no whole number of patches.
    """
    model.family.check_img_size(model, img_size)
    model.set_input_size(to_2tuple(img_size))


def load_checked(
    folder_or_repo: str | Path,
    check: Callable[[dict[str, Any], str], Provenance],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Any:
    """Load a model of any kind that tosa writes; the arguments not named here are those of `load`.

    Args:
        folder_or_repo: A model folder, or the id of a Hub repository.
        check: Checks the configuration, before any weights are fetched, and reads the provenance; it is given the
            configuration and what to call the folder or repository in an error.

    Returns:
        The model, in evaluation mode.
    """
    name = str(folder_or_repo)
    folder = Path(name.removeprefix("local-dir:"))
    is_remote = not folder.is_dir()
    if is_remote:
        repo_id, revision = _parse_repo(name, revision)
        place: Any = {"cache_dir": cache_dir, "token": token, "shown": name}
        folder = fetch_file(repo_id, CONFIG, revision=revision, **place).parent
    provenance = check(read_json(folder / CONFIG), name if is_remote else str(folder))
    if is_remote:
        # Of the very commit that the configuration is of: a branch may move on in between.
        fetch_file(repo_id, WEIGHTS, revision=folder.name, **place)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}, so it is not a whole model folder: copy it again.")
    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except TosaError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be used: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / CONFIG} does not describe a model ({reason}): correct it, or convert the source anew."
        ) from error
    try:
        state = load_file(folder / WEIGHTS)
        check_floats(state, str, str(folder))
        model.load_state_dict(from_file_names(state) if isinstance(model, Predictor) else state)
    except TosaError:
        raise
    except Exception as error:
        raise weights_error(error, str(folder)) from error
    try:
        create_transform(**resolve_data_config(model=model))
    except Exception as error:
        reason = " ".join(str(error).split()) or "of its mean and std, one number a channel is expected"
        raise CheckpointError(
            f"pretrained_cfg in {folder / CONFIG} cannot be used ({reason}): correct it, or convert the source anew."
        ) from error
    if any(parameter.is_meta for parameter in model.parameters()):
        raise CheckpointError(f"{folder / CONFIG} cannot be used: leave out 'device' under model_args.")
    model.provenance = provenance
    return model.eval()


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {
        "tosa-cli": tosa_cli.__version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "accelerate": _version("accelerate"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _parse_repo(name: str, revision: str | None) -> tuple[str, str | None]:
    """Read `org/name[@revision]`."""
    repo_id, _, named_revision = name.removeprefix("hf-hub:").partition("@")
    if name.startswith(("local-dir:", ".", "/", "~")) or repo_id.count("/") != 1:
        path = name.removeprefix("local-dir:")
        raise SourceError(f"There is no model folder {path}. Make one with `tosa convert`, or name a Hub repository.")
    if named_revision and revision not in (None, named_revision):
        raise SourceError(f"{name} names another revision than the one given, {revision}: leave one of them out.")
    return repo_id, revision or named_revision or None


def check_config(config: dict[str, Any], folder: str) -> Provenance:
    """Check the config.json of a folder or repository before anything is built from it, and read its provenance."""
    path = f"{folder}/{CONFIG}"
    if kind_of(config) == "predictor":
        raise CheckpointError(
            f"{folder} holds a model with a decoder, which only `tosa eval`, `finetune`, `flops`, `viz` and `push` "
            f"take: name the converted model that its encoder came from."
        )
    if kind_of(config) == "whole":
        raise CheckpointError(
            f"{folder} holds a whole model of transformers: load it with its class there, as with AutoModel, after "
            f"`import tosa_cli`."
        )
    if kind_of(config) != "converted":
        raise CheckpointError(
            f"{folder} holds {config.get('architecture') or 'a model of another kind'}, which is not converted yet: "
            f"run `tosa convert {folder} --layers 2,4,6,8,10` first."
        )
    check_blocks(config, path)
    args = config["model_args"]
    for key in ("base_architecture", "layers"):
        if key not in args:
            raise CheckpointError(f"{path} lacks {key!r} under model_args: put it there, or convert the source anew.")
    if args.get("num_classes", config.get("num_classes")) != config.get("num_classes"):
        raise CheckpointError(
            f"{path} names {config.get('num_classes')} classes at the top, but "
            f"{args.get('num_classes')} under model_args: they must be the same."
        )
    try:
        TosaConfig.from_dict({key: args[key] for key in TosaConfig.field_names() if key in args})
        return Provenance.from_dict(config["tosa"])
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def check_blocks(config: dict[str, Any], path: str) -> None:
    """Check the parts that every config.json of ours has.

    Raises:
        CheckpointError: If one is missing, or something in it is of another type or out of range.
    """
    for key in ("model_args", "pretrained_cfg", "tosa"):
        if not isinstance(config.get(key), dict):
            raise CheckpointError(f"{path} should hold an object under {key!r}, but holds {config.get(key)!r}.")
    check_image_config(config, path)


def with_results(model: TosaViT, name: str, results: dict[str, Any]) -> None:
    """Record what was measured on a model, for its card."""
    model.provenance = dataclasses.replace(model.provenance, results={**model.provenance.results, name: results})
