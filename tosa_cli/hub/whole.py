"""Whole models of transformers, in transformers' own format: read by their classes, written with a card."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tosa_cli.errors import CheckpointError, ConfigError, InputError, SourceError, UnsupportedModelError
from tosa_cli.hub.architectures import FAMILIES
from tosa_cli.hub.checkpoint import versions
from tosa_cli.hub.download import fetch_file
from tosa_cli.hub.files import PROCESSOR_FILES
from tosa_cli.hub.folder import CARD, CONFIG, RECIPE, kind_of, read_json
from tosa_cli.hub.kind import find_config, is_transformers, is_wrapped
from tosa_cli.hub.whole_card import render_whole_card
from tosa_cli.hub.whole_weights import class_of_name, foreign, read_model, without_bars
from tosa_cli.hub.writing import atomic_folder
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.flops import WholeFlops, count_whole
from tosa_cli.provenance import Provenance
from tosa_cli.recipe import dump_recipe

PROVENANCE_KEY = "tosa"
"""Key of the config under which a whole model keeps what made it."""


@dataclass
class WholeModel:
    """A model of transformers, and what prepares its images.

    Attributes:
        model: The model, in evaluation mode.
        processor: Its processor of images; None if none lies beside it.
        name: Its folder or Hub id.
        provenance: What made it.
        unused: Keys of its files that the model has no use for.
    """

    model: Any
    processor: Any
    name: str
    provenance: Provenance
    unused: tuple[str, ...] = ()

    @cached_property
    def flops(self) -> WholeFlops:
        """Its MACs as it is converted when they are first asked for: what is trained and written does not change them.

        Raises:
            ConfigError: If it is not converted.
        """
        return count_whole(self.model)


def is_whole_source(name: str, asked: bool = False) -> bool:
    """Whether a source is converted as a whole: a model of transformers that does not become one of timm's.

    Args:
        name: A folder, or the id of a Hub repository.
        asked: Whether to take any model of transformers so.
    """
    config = find_config(name)
    if not is_transformers(config) or is_wrapped(config) or kind_of(config) is not None:
        return False
    return asked or (config["model_type"] not in FAMILIES and _class_name(config) is not None)


def load_whole(name: str, pretrained: bool = True) -> WholeModel:
    """Read a model of transformers, converted or not, by its own class.

    Args:
        name: A folder, or the id of a Hub repository, `org/name[@revision]`.
        pretrained: Load its weights, or start at random.

    Raises:
        InputError: If transformers is not installed.
        SourceError: If there is no such model.
        CheckpointError: If it cannot be read, or its weights are not what its class has.
        UnsupportedModelError: If it is quantized.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "A whole model needs transformers, which is not installed: pip install 'tosa-cli[transformers]'."
        ) from error
    config = find_config(name)
    if not is_transformers(config):
        raise SourceError(f"There is no model of transformers in {name}: name a folder or a Hub id that holds one.")
    kind = class_of_name(_class_name(config), name)
    if config.get("quantization_config"):
        raise UnsupportedModelError(
            f"{name} is quantized, and quantized layers are not converted: take the model from before it was quantized."
        )
    check_numbers(config, name)
    folder, options = Path(name.removeprefix("local-dir:")), {}
    place = str(folder)
    if not folder.is_dir():
        place, _, revision = name.removeprefix("hf-hub:").partition("@")
        options = {"revision": revision} if revision else {}
        folder = fetch_file(place, CONFIG, revision=revision or None).parent
    unused: list[str] = []
    if pretrained:
        model, unused = read_model(kind, name, folder, place, options)
    else:
        with foreign(name):
            model = kind(transformers.AutoConfig.from_pretrained(place, **options))
    if unused and kind_of(config) is not None:
        raise CheckpointError(f"The weights of {name} do not fit: they have the unknown key {unused[0]!r}.")
    kept = getattr(model.config, PROVENANCE_KEY, None)
    try:
        provenance = Provenance(source=name) if kept is None else Provenance.from_dict(kept)
    except ConfigError as error:
        raise CheckpointError(f"{name}/{CONFIG} cannot be used: {error}") from error
    return WholeModel(
        model.eval(),
        _processor(place, folder, options),
        name,
        provenance,
        tuple(unused),
    )


def check_numbers(config: Mapping[str, Any], name: str) -> None:
    """Check what transformers builds a model from that then fails in its first pass: NaN, and numbers below 0.

    Args:
        config: The config, or a part of it.
        name: The model.

    Raises:
        CheckpointError: If there is such a value.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_numbers(value, name)
        elif value != value or (key.startswith("num_") and isinstance(value, int | float) and value < 0):
            raise CheckpointError(
                f"{name}/{CONFIG} cannot be used: {key} is {value}. Write the number there that the model was made "
                f"with, or take the model from its source again."
            )


def save_whole(whole: WholeModel, folder: Path, overwrite: bool = False) -> Path:
    """Write a converted whole model: weights and config by transformers, processor, card and recipe; or nothing.

    Raises:
        OutputError: If the folder cannot be written.
    """
    model, provenance = whole.model, whole.provenance
    setattr(model.config, PROVENANCE_KEY, provenance.to_dict())
    with atomic_folder(folder, overwrite) as target:
        with without_bars():
            model.save_pretrained(target, max_shard_size="1000GB")  # one file, as all commands expect
        if whole.processor is not None:
            whole.processor.save_pretrained(target)
        (target / RECIPE).write_text(dump_recipe(provenance.steps, versions()), encoding="utf-8")
        card = render_whole_card(model, provenance, folder.resolve().name, whole.flops)
        (target / CARD).write_text(card, encoding="utf-8")
    return folder


def is_converted(model: Any) -> bool:
    """Whether a model is converted."""
    return bool(converted_runs(model))


def _class_name(config: dict[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _processor(place: str, folder: Path, options: dict[str, Any]) -> Any:
    """What prepares inputs: the whole processor where there is a tokenizer too, else that of images alone.

    Raises:
        CheckpointError: If its file is broken.
    """
    import transformers

    files = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    for file in files:
        read_json(file)
    wrong: Exception | None = None
    for kind in (transformers.AutoProcessor, transformers.AutoImageProcessor):
        try:
            return kind.from_pretrained(place, **options)
        except (OSError, ValueError, KeyError, ImportError):
            continue  # a kind that is not known here, or none
        except Exception as error:
            wrong = error
    if wrong is not None and files:
        raise CheckpointError(
            f"{files[0]} was not read by transformers ({type(wrong).__name__}: {' '.join(str(wrong).split())[:200]}): "
            f"correct it, or update transformers."
        ) from wrong
    return None
