"""What to call what is made of a model, by the name that the user gave it. Imports no torch."""

from pathlib import Path

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


def stem_of(name: str) -> str:
    """The last part of a model's name, without revision and ending: `vit` of `hf-hub:me/vit@main` or `./vit.pth`."""
    name = name.removeprefix("hf-hub:").removeprefix("local-dir:").rstrip("/")
    stem = Path(name if Path(name).exists() else name.partition("@")[0]).name or "model"
    for ending in _ENDINGS:
        stem = stem.removesuffix(ending)
    return stem
