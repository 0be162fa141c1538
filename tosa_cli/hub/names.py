"""What to call what is made of a model, and where it goes, by the name that the user gave it. Imports no torch."""

from pathlib import Path
from typing import Any

from tosa_cli.errors import InputError

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


def stem_of(name: str) -> str:
    """The last part of a model's name, without revision and ending: `vit` of `hf-hub:me/vit@main` or `./vit.pth`."""
    name = name.removeprefix("hf-hub:").removeprefix("local-dir:").rstrip("/")
    stem = Path(name if Path(name).exists() else name.partition("@")[0]).name or "model"
    for ending in _ENDINGS:
        stem = stem.removesuffix(ending)
    return stem


def from_anywhere(source: str) -> str:
    """A source by a name that holds in every directory: a local one by its whole path, any other as it is."""
    prefix = "local-dir:" if source.startswith("local-dir:") else ""
    path = Path(source.removeprefix(prefix))
    if not source or not path.exists():
        return source
    # A file keeps its name, which tells its format and architecture, even where it is a link as in the Hub's cache.
    return prefix + str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def own_folder(model: Any, may_be_remote: bool) -> Path | None:
    """The folder of a model that was named; None for a model itself.

    Raises:
        InputError: If the model is on the Hub and no output folder was named, or there is no such folder.
    """
    if not isinstance(model, (str, Path)):
        return None
    name = str(model)
    own = Path(name.removeprefix("local-dir:"))
    if not may_be_remote and not own.is_dir():
        if not (own.is_absolute() or name.startswith(".")) and "/" in name:
            raise InputError(f"{name} is on the Hub: name the folder to write with -o.")
        raise InputError(f"There is no model folder {own}. Make one with `tosa convert`, or check the path.")
    return own
