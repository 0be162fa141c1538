"""The Python interface: `convert`, `load`, `save`."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from tosa_cli.config import TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.description import Data, read_from
from tosa_cli.errors import ConfigError
from tosa_cli.hub import checkpoint
from tosa_cli.hub.folder import kind_of
from tosa_cli.hub.predictor import check_predictor_config
from tosa_cli.hub.source import load_source
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance
from tosa_cli.workflow.convert import as_source, convert_source
from tosa_cli.workflow.convert import convert as run_convert
from tosa_cli.workflow.save import save
from tosa_cli.workflow.whole import convert_whole, is_whole

__all__ = ["convert", "load", "save"]


def load(
    folder_or_repo: str | Path,
    *,
    img_size: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> TosaViT | Predictor:
    """Load a converted model, or one with a decoder, strictly: a missing or unknown key is an error.

    Args:
        folder_or_repo: A model folder, or the id of a Hub repository, `org/name[@revision]`.
        img_size: Image size in pixels, one number or (height, width); None keeps the saved one. A model with a decoder
            takes any size as it is.
        revision: Branch, tag or commit on the Hub; None is the main branch, or what the id names.
        cache_dir: Where downloads are kept; None is the Hub client's cache, see `HF_HOME`.
        token: Access token for a private repository; None takes `HF_TOKEN` or the login.

    Returns:
        The model, in evaluation mode.

    Raises:
        TosaError: If there is none, or it is broken; the subclass and the message say which.
    """
    model: TosaViT | Predictor = checkpoint.load_checked(
        folder_or_repo, _check_config, revision=revision, cache_dir=cache_dir, token=token
    )
    if img_size is not None and isinstance(model, TosaViT):
        checkpoint.resize(model, img_size)
    return model


def _check_config(config: dict[str, Any], folder: str) -> Provenance:
    is_predictor = kind_of(config) == "predictor"
    return check_predictor_config(config, folder) if is_predictor else checkpoint.check_config(config, folder)


def convert(
    source: str | Path | nn.Module,
    config: TosaConfig | ConvertConfig,
    data: Data | str | Path | None = None,
    *,
    example: Any = None,
) -> Any:
    """Turn a pretrained ViT into a ToSA model; with every token kept it equals its source, which is checked.

    What is new is drawn as PyTorch's modules draw their weights, from its global generator: `torch.manual_seed` before
    makes it repeatable. Of a `ConvertConfig` the `seed` alone says what is drawn, and the generator stays as it was.

    Args:
        source: A timm name, Hub id, folder or weights file, or a timm model, which becomes part of the new one. Or any
            other model with a known run of blocks inside, as transformers' are: that is converted in place.
        config: Where and how tokens are selected; or with all that `tosa convert` can do: layers by measurement, a
            share of the MACs to save, another image size or number of classes.
        data: The images to choose layers by, or their folder.
        example: For a model that is converted in place, a batch that it takes: images (B, C, height, width), a tuple
            or a dictionary. None makes one of random images of the model's own size.

    Returns:
        A `TosaViT` in evaluation mode; of a model that is converted in place, that model.

    Raises:
        TosaError: If the source cannot be found, read or converted; the subclass and the message say which.
    """
    if data is not None and not isinstance(config, ConvertConfig):
        raise ConfigError("Images choose the layers, but a TosaConfig names them: pass a ConvertConfig, or no images.")
    if isinstance(source, nn.Module) and is_whole(source):
        if isinstance(config, ConvertConfig):
            raise ConfigError(
                f"{type(source).__name__} is converted in place, by a TosaConfig, which names layers and keep rates: "
                f"pass one."
            )
        return convert_whole(source, config, example)
    if example is not None:
        raise ConfigError("An example is of a model that is converted in place: leave it out for a timm model.")
    if isinstance(config, ConvertConfig):
        config = read_from(config, data)
        if isinstance(source, nn.Module):
            return run_convert(config, source).model
        return run_convert(dataclasses.replace(config, source=str(source))).model
    if isinstance(source, nn.Module):
        return convert_source(as_source(source), config, "")
    return convert_source(load_source(str(source)), config, str(source))
