"""The state of an unfinished run: one file, without pickle, replaced in one step.

A run that is killed while it writes leaves the checkpoint before, whole. Random numbers are not in it: each step
draws its own from the seed (see `loop.seed_step`).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tosa_cli.errors import CheckpointError, OutputError


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        epoch: Epoch that is under way, from 0.
        batch: Batches of it that are done.
        update: Optimizer steps that are done.
        settings: The run's settings.
        tensors: Weights, optimizer and average, by name.
        optimizer: The optimizer's numbers that are no tensors.
    """

    epoch: int
    batch: int
    update: int
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]


def checkpoint_path(output: Path, command: str) -> Path:
    """Where the checkpoint of a command that writes `output` lies: beside it."""
    output = output.absolute()
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
    }
    temporary = path.with_name(path.name + ".writing")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"tosa": json.dumps(numbers)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"The checkpoint {path} could not be written ({error}). Free space and add --resume."
        ) from error


def read_checkpoint(path: Path) -> TrainState:
    """Read a checkpoint.

    Raises:
        CheckpointError: If there is none, or it is not one.
    """
    if not path.is_file():
        raise CheckpointError(f"There is nothing to resume: {path} does not exist. Leave out --resume to start anew.")
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads((file.metadata() or {})["tosa"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return TrainState(tensors=tensors, **numbers)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of tosa ({error}). Delete it and start anew.") from error


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
    return tensors, {"state": numbers, "param_groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put back what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers["state"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = [
        {**old, **new} for old, new in zip(optimizer.state_dict()["param_groups"], numbers["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
