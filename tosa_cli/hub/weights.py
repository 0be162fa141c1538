"""The weights of a dense model: read, checked and loaded, and what to say where that fails."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._hub import load_state_dict_from_path
from torch import Tensor, nn

from tosa_cli.errors import CheckpointError, TosaError
from tosa_cli.hub.files import WEIGHTS_FILES, folder_files, load_pickle
from tosa_cli.hub.positions import TABLE
from tosa_cli.hub.weight_sets import WeightSet, begin_alike, choose_weights
from tosa_cli.model.families import Backbone, family_of

_HEADS = ("head.", "head_dist.")
_HEADS_OF_OTHERS = ("visual.proj", "pre_logits.")
"""Beginnings of the names of heads: timm's, and those of others."""

_WITHOUT_USE = (
    *("mask_token", "*rope*", "*.periods", "*.bias_mask", "*relative_position_index", "*num_batches_tracked"),
    *("lm_head.*", "local_cls_norm*", "projectors.*"),
)
"""What is computed or needed in pretraining alone."""

_WHOLE_NUMBERS = ("*relative_position_index", "*num_batches_tracked", "*.bias_mask")


def read_weights(path: Path, wanted: str | None = None) -> WeightSet:
    """Read the weights in a file, or in a folder in timm's format, without what training put around them.

    Args:
        path: The file or folder.
        wanted: Which of several sets of weights to take; None takes the one that is usual.

    Raises:
        CheckpointError: If they are broken, hold more than tensors, or a part is missing.
        ConfigError: If there is no set of that name.
    """
    return read_parts(lambda: _read_folder(path) if path.is_dir() else _read_file(path), wanted, str(path))


def read_parts(read: Callable[[], Any], wanted: str | None, shown: str) -> WeightSet:
    """Read weights, and find those of the model among them, as `read_weights` does.

    Args:
        read: Reads what there is.
        wanted: Which of several sets of weights to take; None takes the one that is usual.
        shown: What to call it.
    """
    try:
        return choose_weights(read(), wanted, shown)
    except TosaError:
        raise
    except Exception as error:
        raise weights_error(error, shown) from error


def _read_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return load_pickle(path)


def _read_folder(folder: Path) -> Any:
    files = folder_files(folder)
    if any(files.find(name) for name in WEIGHTS_FILES):
        return files.weights(lambda _: False)
    # timm finds weights under more names.
    return load_state_dict_from_path(folder, weights_only=True)


def load_weights(
    model: Backbone,
    weights: WeightSet,
    shown: str,
    num_classes: int | None,
    own_size: tuple[int, int] | None = None,
    antialias: bool = True,
) -> None:
    """Load weights strictly: each of them is used, or it is one that a model has no use for.

    A head of another size is left as it is only if a new one was asked for.

    Args:
        model: The model.
        weights: The weights, by names that timm reads.
        shown: What to call them in an error.
        num_classes: Number of classes that was asked for; None keeps the source's.
        own_size: The image size (height, width) in pixels that their positions are for; None is the model's.
        antialias: Whether a position embedding that is made smaller is smoothed, which timm does.

    Raises:
        CheckpointError: If they do not fit.
    """
    state = weights.tensors
    if num_classes is not None and num_outputs(state) != num_classes:
        state = {key: value for key, value in state.items() if not key.startswith((*_HEADS, *_HEADS_OF_OTHERS))}
        replaced = {key: value for key, value in model.state_dict().items() if key.startswith(_HEADS)}
    else:
        replaced = {}
    check_floats(state, weights.named, shown)
    try:
        fitted = _fit(state, model, own_size, antialias)
        unused = [key for key in state if key not in fitted.used and not _has_no_use(key, state[key])]
        if unused:
            raise _unused_error(unused, weights, model, shown)
        loaded = {**fitted.state, **replaced}
        _check_keys(loaded, fitted, model, weights, shown)
        model.load_state_dict(loaded)
    except TosaError:
        raise
    except Exception as error:
        raise weights_error(error, shown) from error


def num_outputs(state: Mapping[str, Tensor]) -> int:
    """Number of outputs of the head among weights: of open_clip's own models, the width of the projection."""
    if "visual.proj" in state:
        return int(state["visual.proj"].shape[1])
    return len(state["head.weight"]) if "head.weight" in state else 0


@dataclass(frozen=True)
class _Fitted:
    """Weights by a model's names and sizes, and what they were made of: keys of the weights, by those of the model."""

    state: dict[str, Tensor]
    made_of: dict[str, set[str]]

    @property
    def used(self) -> set[str]:
        """Keys of which something was made."""
        return set().union(*self.made_of.values())


def _fit(state: Mapping[str, Tensor], model: Any, own_size: tuple[int, int] | None, antialias: bool) -> _Fitted:
    """Bring weights into a model's names and sizes by timm's filter, and see what becomes of each of them.

    Autograd tells: the filter computes with the weights, so that the graph of what it returns leads to what was used.
    """
    size = tuple(own_size or model.patch_embed.img_size)
    before = model.__dict__.get("pretrained_model_args")
    model.pretrained_model_args = {**(before or {}), "img_size": size}  # from where the filter reads the old grid
    try:
        # The filter prints what it cannot use, and stdout is for reports. Who loads a model may be in inference mode.
        with torch.inference_mode(False), torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            values = {key: value.clone() if value.is_inference() else value.detach() for key, value in state.items()}
            leaves = {key: value.requires_grad_(value.is_floating_point()) for key, value in values.items()}
            fitted = family_of(model).fit_checkpoint(dict(leaves), model, adapt_layer_scale=True, antialias=antialias)
    finally:
        if before is None:
            del model.pretrained_model_args
        else:
            model.pretrained_model_args = before
    names = {id(value): key for key, value in leaves.items()}
    made_of = {key: _leaves_of(value, names) for key, value in fitted.items()}
    result = {key: value.detach() for key, value in fitted.items()}
    if size == tuple(model.patch_embed.img_size):
        # Tables of a grid that is no square are resampled even where they are of the right size.
        result |= {key: state[key] for key in result if key.endswith(TABLE) and key in state}
    return _Fitted(result, made_of)


def _leaves_of(value: Tensor, names: Mapping[int, str]) -> set[str]:
    """Which of some tensors a tensor was computed from; they are named by their identity."""
    found, seen, waiting = set(), set(), [value.grad_fn]
    if id(value) in names:
        found.add(names[id(value)])
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = names.get(id(getattr(node, "variable", None)))
        if leaf is not None:
            found.add(leaf)
        waiting += [before for before, _ in node.next_functions]
    return found


def _has_no_use(key: str, value: Tensor) -> bool:
    """Whether nothing is lost with a weight that the model does not have: it is known, or a bias of zeros."""
    return any(fnmatchcase(key, pattern) for pattern in _WITHOUT_USE) or (key.endswith("bias") and not value.any())


def _unused_error(unused: list[str], weights: WeightSet, model: Backbone, shown: str) -> CheckpointError:
    biases, architecture = [key for key in unused if key.endswith("bias")], str(model.pretrained_cfg["architecture"])
    if biases:
        largest = max(weights.tensors[key].abs().max().item() for key in biases)
        with_bias = f"{architecture}_qkvb"
        hint = f"name --architecture {with_bias}" if timm.is_model(with_bias) else "name another with --architecture"
        return CheckpointError(
            f"The weights of {shown} do not fit: they have biases such as {weights.named(biases[0])!r}, up to "
            f"{largest:.2g}, which {architecture} does without: {hint}."
        )
    return _unknown_error(weights.named(unused[0]), shown)


def _unknown_error(key: str, shown: str) -> CheckpointError:
    return CheckpointError(f"The weights of {shown} do not fit: they have the unknown key {key!r}.")


def _check_keys(loaded: Mapping[str, Tensor], fitted: _Fitted, model: Backbone, weights: WeightSet, shown: str) -> None:
    """Check that weights have the model's keys, and name a wrong one as their file does."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in loaded]
    if missing:
        front = begin_alike(weights.tensors)
        alike = f", and each of their keys begins with {front!r}" if front else ""
        raise CheckpointError(
            f"The weights of {shown} do not fit: they lack the key {weights.named(missing[0])!r}{alike}."
        )
    unknown = [key for key in loaded if key not in wanted]
    if unknown:
        made_of = sorted(fitted.made_of.get(unknown[0], ())) or unknown
        raise _unknown_error(weights.named(made_of[0]), shown)


def check_floats(state: Mapping[str, Tensor], named: Callable[[str], str], shown: str) -> None:
    """Check that weights are numbers with a point: whole and complex ones would be cut to what they are not.

    Args:
        state: The weights.
        named: Gives the name of a key in the file.
        shown: What to call them.

    Raises:
        CheckpointError: If one is of another type.
    """
    for key, value in state.items():
        if not value.is_floating_point() and not any(fnmatchcase(key, pattern) for pattern in _WHOLE_NUMBERS):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"The weights of {shown} are not floating-point: {named(key)!r} is of type {kind}. Take the model from "
                f"before it was quantized or cast."
            )


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
            return CheckpointError(
                f"The weights of {what} do not fit its configuration: {key} has shape {found}, expected {expected}."
            )
    keys = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: \"([^\"]+)\"", text)
    if keys:
        problem = {"Missing": "lack the key", "Unexpected": "have the unknown key"}[keys.group(1)]
        key = keys.group(2)
        return CheckpointError(f"The weights of {what} do not fit: they {problem} {key!r}.")
    if isinstance(error, (EOFError, AttributeError, TypeError)) or "PytorchStreamReader" in text:
        return CheckpointError(f"The weights of {what} are broken or cut short. Download or copy them again.")
    return CheckpointError(f"The weights of {what} cannot be loaded ({text[:300]}). Download or copy them again.")
