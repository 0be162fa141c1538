"""Weights of a whole model: transformers fills a model with what fits, and here that is set against what a file holds.

transformers leaves keys out that it does not know, draws anew what a file lacks, and turns whole numbers into floats.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tosa_cli.errors import CheckpointError, SourceError, TosaError, UnsupportedModelError
from tosa_cli.hub.weight_sets import begin_alike
from tosa_cli.hub.weights import check_finite, check_floats, weights_error


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
    with foreign(name), without_bars():
        model, info = kind.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    _check_found(info, name, kind.__name__)
    check_floats(_kinds_of(folder), str, name)
    check_finite(model, name)
    return model, sorted(info["unexpected_keys"])


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
        raise CheckpointError(f"{name} was not read by transformers ({_words(error)}).") from error


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


def _kinds_of(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the types and shapes of the weights in a folder's files, without their values."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key.endswith((".weight", ".bias")):
                    piece = opened.get_slice(key)
                    found[key] = piece[:0] if piece.get_shape() else opened.get_tensor(key)
    if not found:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            with suppress(Exception):  # transformers has read it, by whatever way it has
                state = torch.load(file, map_location="meta", weights_only=True, mmap=True)
                found |= {key: value for key, value in state.items() if key.endswith((".weight", ".bias"))}
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
