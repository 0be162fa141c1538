"""The state of an unfinished run: one file, without pickle, replaced in one step.

A run that is killed while it writes leaves the checkpoint before, whole. Random numbers are not in it: each step
draws its own from the seed (see `loop.seed_step`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tosa_cli.errors import CheckpointError, OutputError
from tosa_cli.hub.writing import staging, staging_folder
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.timm_interface import FinetunableViT
from tosa_cli.model.tosa_vit import TosaViT


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        epoch: Epoch that is under way, from 0.
        batch: Batches of it that are done.
        update: Optimizer steps that are done.
        settings: The run's settings.
        tensors: Weights, optimizer, average and best weights, by name.
        optimizer: The optimizer's numbers that are no tensors.
        history: What was measured on held-out images.
        seconds: Time that the run took.
    """

    epoch: int
    batch: int
    update: int
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("epoch", "batch", "update"), int),
    **dict.fromkeys(("settings", "optimizer"), dict),
    "history": list,
    "seconds": (int, float),
}

NO_RESULT = "-" * 64
"""Stands in a checkpoint for the fingerprint of a result that there is not yet, and is as long."""


def checkpoint_path(output: Path, command: str) -> Path:
    """Where the checkpoint of a command that writes `output` lies: beside it."""
    output = output.resolve()
    return output.with_name(f"{output.name}.{command}-checkpoint.safetensors")


def write_checkpoint(path: Path, state: TrainState) -> None:
    """Write a checkpoint; the one before stays until the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """
    numbers = {
        "epoch": state.epoch,
        "batch": state.batch,
        "update": state.update,
        "settings": state.settings,
        "optimizer": state.optimizer,
        "history": state.history,
        "seconds": state.seconds,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(path) as folder:
            temporary = folder / path.name
            save_file(tensors, temporary, metadata=_metadata(json.dumps(numbers), tensors))
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except (OSError, OutputError, SafetensorError) as error:
        raise OutputError(
            f"The checkpoint {path} could not be written ({error.__cause__ or error}). Free space and add --resume."
        ) from error


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what a run that was killed while it wrote one left behind."""
    path.unlink(missing_ok=True)
    shutil.rmtree(staging(path), ignore_errors=True)


def check_resumable(path: Path) -> None:
    """Check that there is a checkpoint.

    Raises:
        CheckpointError: If there is none.
    """
    if not path.is_file():
        raise CheckpointError(f"There is nothing to resume: {path} does not exist. Leave out --resume to start anew.")


def read_checkpoint(path: Path) -> TrainState:
    """Read a checkpoint.

    Raises:
        CheckpointError: If there is none, or it is not one.
    """
    check_resumable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text, checksum = metadata["tosa"], metadata.get("checksum")  # older checkpoints have none
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = _checked_state(json.loads(text), tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of tosa ({error}). Delete it and start anew.") from error
    if checksum not in (None, _checksum(text, tensors)):
        raise CheckpointError(f"{path} is not whole: its checksum is another. Delete it and start anew.")
    return state


def note_result(path: Path, result: str) -> None:
    """Note in a checkpoint, in its place, the fingerprint of the model that its run ended in.

    With it a run that was killed between writing its model and removing its checkpoint is known to have ended.
    """
    with open(path, "r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        place = header.find(NO_RESULT.encode())
        if place >= 0:
            file.seek(8 + place)
            file.write(result.encode())


def read_result(path: Path) -> str | None:
    """The fingerprint of the model that a checkpoint's run ended in; None if it did not end or there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            result = (file.metadata() or {}).get("result")
    except (SafetensorError, OSError):
        return None
    return None if result == NO_RESULT else result


def _metadata(text: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    return {"tosa": text, "checksum": _checksum(text, tensors), "result": NO_RESULT}


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _bytes_of(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _checked_state(numbers: Any, tensors: dict[str, Tensor]) -> TrainState:
    """The state that a header tells.

    Raises:
        TypeError: If something is missing or of another type.
    """
    state = TrainState(tensors=tensors, **numbers)
    for name, kind in _KINDS.items():
        value = getattr(state, name)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):
            raise TypeError(f"{name} is {value!r}")
    return state


def fingerprint(model: FinetunableViT | Predictor) -> str:
    """What tells a model from others: a hash of its settings and weights."""
    settings = [model.config.to_dict() if isinstance(model, Predictor) else model.settings]
    if isinstance(model, Predictor) and isinstance(model.encoder, TosaViT):
        settings.append(model.encoder.config.to_dict())
    return hash_of(settings, model.state_dict())


def hash_of(settings: Iterable[Mapping[str, Any]], weights: Mapping[str, Tensor]) -> str:
    """A hash of settings and of weights by name."""
    digest = hashlib.sha256("".join(map(json.dumps, settings)).encode())
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(_bytes_of(value))
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors by name and plain numbers."""
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                numbers[f"{index}.{key}"] = value
    # Some of timm's optimizers keep the learning rate as a tensor.
    groups = [
        {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in state["param_groups"]
    ]
    return tensors, {"state": numbers, "param_groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put back what `pack_optimizer` took, but for the learning rate, which the settings and the schedule give."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers["state"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()["param_groups"]
    groups = [
        {**old, **new, **{key: old[key] for key in ("lr", "initial_lr") if key in old}}
        for old, new in zip(current, numbers["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
