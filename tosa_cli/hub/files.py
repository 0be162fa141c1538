"""The files of a model, in a folder or in a repository on the Hub, by their names there."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load
from safetensors import safe_open
from yaml import YAMLError

from tosa_cli.errors import CheckpointError, TosaError
from tosa_cli.hub.download import find_file
from tosa_cli.hub.folder import CARD, WEIGHTS, read_json

_INDEX = ".index.json"
WEIGHTS_FILES = (WEIGHTS, WEIGHTS + _INDEX, "pytorch_model.bin", "pytorch_model.bin" + _INDEX)
"""What transformers looks for, in this order; an index names the files that large weights are split into."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Files:
    """Where a model's files are.

    Attributes:
        shown: What to call the model in an error.
        find: Gives the local path of a file, or None if the model has no such file.
    """

    shown: str
    find: Callable[[str], Path | None]

    def json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object; None if there is no such file."""
        path = self.find(name)
        return None if path is None else read_json(path, f"{name} of {self.shown}")

    def processor(self) -> dict[str, Any] | None:
        """The image processor's configuration; None if there is none."""
        for name in PROCESSOR_FILES:
            values = self.json(name)
            if values is not None:
                # A processor of images and text has its image part in a block of its own.
                own = values.get("image_processor", values)
                return own if isinstance(own, dict) else values
        return None

    def license(self) -> str | None:
        """The license that the model card names, if there is one."""
        try:
            path = self.find(CARD)
            license_name = ((path and metadata_load(path)) or {}).get("license")
        except (TosaError, OSError, ValueError, YAMLError):
            return None  # nothing that a conversion should fail for, offline say
        return license_name if isinstance(license_name, str) else None

    def weights(self, leave_out: Callable[[str], bool]) -> dict[str, Any]:
        """Read what the files of weights hold: tensors, or dictionaries of such and whatever was saved beside.

        Args:
            leave_out: Tells of a key whether its tensor need not be read.

        Raises:
            CheckpointError: If there are none, or an index is not one.
            Exception: Whatever reading a broken file raises.
        """
        for name in WEIGHTS_FILES:
            path = self.find(name)
            if path is None:
                continue
            parts = self._parts(name) if name.endswith(_INDEX) else [path]
            state: dict[str, Any] = {}
            for part in parts:
                state.update(_read(part, leave_out))
            return state
        raise CheckpointError(f"{self.shown} has no weights: expected {WEIGHTS} or pytorch_model.bin.")

    def _parts(self, index: str) -> list[Path]:
        names = (self.json(index) or {}).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} of {self.shown} names no files under 'weight_map'. Download it again.")
        parts = []
        for name in sorted(set(map(str, names.values()))):
            # A name is not a path: it must not lead out of the model.
            path = self.find(name) if Path(name).name == name else None
            if path is None:
                raise CheckpointError(f"{self.shown} lacks {name}, which {index} names. Download it again.")
            parts.append(path)
        return parts


def folder_files(folder: Path) -> Files:
    """Files of a folder."""
    return Files(str(folder), lambda name: folder / name if (folder / name).is_file() else None)


def hub_files(hub_id: str, commit: str, shown: str) -> Files:
    """Files of a repository on the Hub, downloaded when they are asked for.

    Args:
        hub_id: Id of the repository.
        commit: The commit that all of them are of: a branch may move on between two downloads.
        shown: What to call it in an error.
    """
    return Files(shown, lambda name: find_file(hub_id, name, revision=commit, shown=shown))


def load_pickle(path: Path) -> Any:
    """What a file of PyTorch holds, as long as it is tensors and settings.

    Raises:
        Exception: Whatever reading it raises.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # which many training scripts save beside
        return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path, leave_out: Callable[[str], bool]) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        state = load_pickle(path)
        return {key: value for key, value in state.items() if not (isinstance(key, str) and leave_out(key))}
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if not leave_out(key)}  # noqa: SIM118
