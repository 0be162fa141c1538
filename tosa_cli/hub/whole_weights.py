"""Weights of a whole model: transformers fills a model with what fits, and here that is set against what a file holds.

transformers leaves keys out that it does not know, draws anew what a file lacks, and turns whole numbers into floats.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from tosa_cli.errors import CheckpointError, SourceError, TosaError, UnsupportedModelError
from tosa_cli.hub.adapters import check_no_adapter_among, check_no_adapter_beside
from tosa_cli.hub.files import WEIGHTS_FILES, Files, folder_files
from tosa_cli.hub.folder import WEIGHTS, WEIGHTS_SUFFIXES
from tosa_cli.hub.weight_sets import begin_alike, flat_tensors
from tosa_cli.hub.weights import check_finite, check_floats, weights_error
from tosa_cli.hub.whole_names import own_names


def read_model(kind: Any, name: str, folder: Path, place: str, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Read a model by its class.

    Args:
        kind: The class.
        name: What the source is called.
        folder: The folder, or that of the Hub client's cache, in which its files lie.
        place: Where transformers finds it: a folder, or the id of a Hub repository.
        options: More for `from_pretrained`, as a revision.

    Returns:
        The model, and the keys of its files that it has no use for.

    Raises:
        CheckpointError: If the weights are broken, do not fit, or are no finite floating-point numbers.
    """
    files = Files(name, folder_files(folder).find)
    check_no_adapter_beside(files)
    if Path(place) == folder:
        _check_there(folder, name)
    with foreign(name), without_bars():
        model, info = kind.from_pretrained(place, **options, **_TOLD)
    named: dict[str, str] = {}
    if info["missing_keys"]:
        model, info, named = _by_own_names(model, info, files)
    _check_found(info, name, kind.__name__)
    unused = sorted(info["unexpected_keys"])
    check_no_adapter_among(unused, name)
    _check_no_bias_lost(model, unused, name)
    check_floats(_kinds_of(folder, model, {*unused, *(named.get(key, key) for key in unused)}), str, name)
    check_finite(model, name)
    return model, [named.get(key, key) for key in unused]


_TOLD = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""transformers tells of keys and shapes, and does not judge them."""


def _check_there(folder: Path, name: str) -> None:
    """Check that weights are under a name that transformers reads."""
    if any((folder / known).is_file() for known in WEIGHTS_FILES):
        return
    others = [file for file in folder.iterdir() if file.suffix in WEIGHTS_SUFFIXES]
    largest = max(others, key=lambda file: file.stat().st_size, default=None)
    if largest is None:
        return
    meant = WEIGHTS if largest.suffix == ".safetensors" else "pytorch_model.bin"
    raise CheckpointError(
        f"{name} has no {WEIGHTS} or pytorch_model.bin, but {largest.name}: if that is the model, call it {meant}."
    )


def _by_own_names(model: Any, info: Mapping[str, Any], files: Files) -> tuple[Any, Mapping[str, Any], dict[str, str]]:
    """Read a model once more, without what training put around its names, if it is found in its files that way.

    Returns:
        The model, what transformers tells of its keys, and the names in the file by the model's own.
    """
    try:
        held = files.weights(lambda _: False)
    except CheckpointError:
        raise
    except Exception:
        return model, info, {}  # what was read is told
    best: tuple[Any, Mapping[str, Any], dict[str, str]] = (model, info, {})
    # The second only where the first is not enough: names in files may have other first words than the model's parts.
    for parts in (None, [part for part, _ in model.named_children()]):
        found = own_names(held, parts, files.shown)
        names = {own: name for own, (name, _) in found.items()}
        state = {own: tensor for own, (_, tensor) in found.items()}
        if all(own == name for own, name in names.items()) or not best[1]["missing_keys"]:
            continue
        with foreign(files.shown), without_bars():
            again, told = type(model).from_pretrained(None, config=model.config, state_dict=state, **_TOLD)
        if len(told["missing_keys"]) < len(best[1]["missing_keys"]):
            best = again, told, names
    if hasattr(model, "generation_config"):  # which is in a file of its own
        best[0].generation_config = model.generation_config
    return best


def _check_no_bias_lost(model: Any, unused: list[str], name: str) -> None:
    """Check that no layer that the model has lacks what its file has for it, as biases."""
    modules = {place for place, _ in model.named_modules()}
    for key in unused:
        place, _, leaf = key.rpartition(".")
        if leaf in ("weight", "bias") and place in modules:
            raise CheckpointError(
                f"The weights of {name} have {key!r}, but its config.json leaves it out of {type(model).__name__}: "
                f"take the config.json that belongs to them."
            )


@contextmanager
def foreign(name: str) -> Iterator[None]:
    """Say in one sentence what goes wrong in transformers, which raises errors of any kind over others' files.

    Args:
        name: What the source is called.
    """
    try:
        yield
    except TosaError:
        raise
    except ImportError as error:
        raise UnsupportedModelError(
            f"{name} needs a package that is not installed ({_words(error)}). Take the model from before it was "
            f"quantized or cast, or install the package."
        ) from error
    except Exception as error:
        if "safetensors" in type(error).__module__.lower() or "Safetensor" in type(error).__name__:
            raise weights_error(error, name) from error
        raise CheckpointError(
            f"{name} was not read by transformers ({_words(error)}): correct it, or update transformers."
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from warning of what is checked here, and from drawing bars, which last a moment here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_found(info: Mapping[str, Any], name: str, kind: str) -> None:
    """Check that a model's weights were all in its files, with its shapes."""
    other = sorted(info["mismatched_keys"], key=lambda entry: entry[0])
    if other:
        key, found, expected = other[0]
        raise CheckpointError(
            f"The weights of {name} do not fit its config.json: {key} has shape {list(found)}, expected "
            f"{list(expected)}."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        front = begin_alike(info["unexpected_keys"])
        is_other = front and not any(key.startswith(front) for key in missing)
        alike = f", and keys that it does not have begin with {front!r}" if is_other else ""
        raise CheckpointError(
            f"The weights of {name} lack {len(missing)} that {kind} has, the first {missing[0]!r}{alike}: take a whole "
            f"checkpoint of this model."
        )


def _kinds_of(folder: Path, model: nn.Module, unused: Collection[str]) -> dict[str, torch.Tensor]:
    """Tensors of the types of the weights in a folder's files, without their values, and without those of which the
    model has no use or makes whole numbers, as indices."""
    indices = {key.rpartition(".")[2] for key, value in model.named_buffers() if not value.is_floating_point()}
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key not in unused and key.rpartition(".")[2] not in indices:
                    piece = opened.get_slice(key)
                    found[key] = piece[:0] if piece.get_shape() else opened.get_tensor(key)
    if not found:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            with suppress(Exception):  # transformers has read it, by whatever way it has
                state = torch.load(file, map_location="meta", weights_only=True, mmap=True)
                kept = ((key, value) for key, _, value in flat_tensors(state) if key not in unused)
                found |= {key: value for key, value in kept if key.rpartition(".")[2] not in indices}
    return found


def class_of_name(name: str | None, shown: str) -> Any:
    """The class of transformers that a config.json names.

    Args:
        name: Its name; None if none is named.
        shown: What the source is called.

    Raises:
        SourceError: If there is no such class.
    """
    import transformers

    if name is None:
        raise SourceError(
            f"The config.json of {shown} does not say of which class the model is: name it under 'architectures', as "
            f'in "architectures": ["DepthAnythingForDepthEstimation"].'
        )
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise SourceError(
            f"The config.json of {shown} names the class {name}, which is no model of the installed transformers "
            f"{transformers.__version__}: update transformers."
        )
    return kind


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
