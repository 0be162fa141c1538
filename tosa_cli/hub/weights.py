"""The weights of a dense model: read, checked and loaded, and what to say where that fails."""

import re
from pathlib import Path

from safetensors import SafetensorError
from timm.models import load_state_dict
from timm.models._hub import load_state_dict_from_path
from torch import Tensor, nn

from tosa_cli.errors import CheckpointError, TosaError
from tosa_cli.hub.files import WEIGHTS_FILES, folder_files
from tosa_cli.hub.state_dict import unwrap
from tosa_cli.model.families import Backbone, family_of

_HEADS = ("head.", "head_dist.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights in a file, or in a folder in timm's format, without what training put around them.

    Raises:
        CheckpointError: If they are broken, hold more than tensors, or a part is missing.
    """
    try:
        state = unwrap(_read_folder(path) if path.is_dir() else load_state_dict(str(path), weights_only=True))
        if not all(isinstance(key, str) for key in state):
            raise TypeError("its keys are no names")
        return state
    except TosaError:
        raise
    except Exception as error:
        raise weights_error(error, str(path)) from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    files = folder_files(folder)
    if any(files.find(name) for name in WEIGHTS_FILES):
        return files.weights(lambda _: False)
    # timm finds weights under more names.
    return load_state_dict_from_path(folder, weights_only=True)


def load_weights(model: Backbone, state: dict[str, Tensor], shown: str, num_classes: int | None) -> None:
    """Load weights strictly; a head of another size is left as it is only if a new one was asked for.

    Args:
        model: The model.
        state: The weights, by timm's names.
        shown: What to call them in an error.
        num_classes: Number of classes that was asked for; None keeps the source's.

    Raises:
        CheckpointError: If they do not fit.
    """
    try:
        state = family_of(model).fit_checkpoint(state, model, adapt_layer_scale=True)
        head = state.get("head.weight")
        if num_classes is not None and (0 if head is None else len(head)) != num_classes:
            new = {key: value for key, value in model.state_dict().items() if key.startswith(_HEADS)}
            state = {key: value for key, value in state.items() if not key.startswith(_HEADS)} | new
        model.load_state_dict(state)
    except Exception as error:
        raise weights_error(error, shown) from error


def check_finite(model: nn.Module | Backbone, shown: str) -> None:
    """Check the weights of a source, which a run that diverged may have spoilt.

    Args:
        model: The source.
        shown: What to call it in an error.

    Raises:
        CheckpointError: If a value is infinite or not a number.
    """
    for key, value in model.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"The weights of {shown} hold values that are not finite, the first of them under {key!r}: take a "
                f"checkpoint from before they were spoilt."
            )


def weights_error(error: Exception, what: str) -> TosaError:
    """Say in one sentence why weights could not be read or do not fit."""
    text = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return CheckpointError(f"The weights of {what} are broken or cut short ({text}). Download or copy them again.")
    if "weights_only" in text or "UnpicklingError" in type(error).__name__:
        return CheckpointError(
            f"The weights of {what} are a pickle that holds more than tensors, and were not loaded: unpickling them "
            f"could run code. Ask for a .safetensors file."
        )
    if "size mismatch" in text:
        mismatch = re.search(r"size mismatch for (\S+): .*?torch.Size\((\[.*?\])\).*?torch.Size\((\[.*?\])\)", text)
        if mismatch:
            key, found, expected = mismatch.groups()
            key = key.removeprefix("backbone.")
            return CheckpointError(
                f"The weights of {what} do not fit its configuration: {key} has shape {found}, expected {expected}."
            )
    keys = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: \"([^\"]+)\"", text)
    if keys:
        problem = {"Missing": "lack the key", "Unexpected": "have the unknown key"}[keys.group(1)]
        key = keys.group(2).removeprefix("backbone.")
        return CheckpointError(f"The weights of {what} do not fit: they {problem} {key!r}.")
    if isinstance(error, (EOFError, AttributeError, TypeError)) or "PytorchStreamReader" in text:
        return CheckpointError(f"The weights of {what} are broken or cut short. Download or copy them again.")
    return CheckpointError(f"The weights of {what} cannot be loaded ({text[:300]}).")
