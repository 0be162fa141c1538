"""Whole models of transformers, in transformers' own format: read by their classes, written with a card."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tosa_cli.errors import CheckpointError, InputError, SourceError
from tosa_cli.hub.architectures import FAMILIES, is_transformers, is_wrapped
from tosa_cli.hub.checkpoint import versions
from tosa_cli.hub.folder import CARD, RECIPE, kind_of
from tosa_cli.hub.kind import find_config
from tosa_cli.hub.whole_card import render_whole_card
from tosa_cli.hub.writing import atomic_folder
from tosa_cli.model.runs import converted_runs
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
    """

    model: Any
    processor: Any
    name: str
    provenance: Provenance


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
        CheckpointError: If it cannot be read.
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
    class_name = _class_name(config)
    kind = getattr(transformers, class_name or "", None)
    if kind is None:
        raise SourceError(
            f"The config.json of {name} names the class {class_name} of transformers, which the installed version "
            f"{transformers.__version__} does not have: update transformers."
        )
    place, _, revision = name.removeprefix("local-dir:").removeprefix("hf-hub:").partition("@")
    place, options = (name.removeprefix("local-dir:"), {}) if Path(name).is_dir() else (place, {"revision": revision})
    options = {key: value for key, value in options.items() if value}
    try:
        if pretrained:
            with _without_bars():
                model, info = kind.from_pretrained(place, output_loading_info=True, **options)
            missing = [*info["missing_keys"], *info.get("mismatched_keys", ())]
            if missing:
                raise CheckpointError(
                    f"The weights of {name} lack {len(missing)} that {class_name} has, the first {missing[0]}: take a "
                    f"whole checkpoint."
                )
        else:
            model = kind(transformers.AutoConfig.from_pretrained(place, **options))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{name} was not read by transformers ({_words(error)}).") from error
    kept = getattr(model.config, PROVENANCE_KEY, None)
    return WholeModel(
        model.eval(), _processor(place, options), name, Provenance.from_dict(kept) if kept else Provenance(source=name)
    )


def save_whole(whole: WholeModel, folder: Path, overwrite: bool = False) -> Path:
    """Write a converted whole model: weights and config by transformers, processor, card and recipe; or nothing.

    Raises:
        OutputError: If the folder cannot be written.
    """
    model, provenance = whole.model, whole.provenance
    setattr(model.config, PROVENANCE_KEY, provenance.to_dict())
    with atomic_folder(folder, overwrite) as target:
        with _without_bars():
            model.save_pretrained(target, max_shard_size="1000GB")  # one file, as all commands expect
        if whole.processor is not None:
            whole.processor.save_pretrained(target)
        (target / RECIPE).write_text(dump_recipe(provenance.steps, versions()), encoding="utf-8")
        (target / CARD).write_text(render_whole_card(model, provenance, folder.resolve().name), encoding="utf-8")
    return folder


def is_converted(model: Any) -> bool:
    """Whether a model is converted."""
    return bool(converted_runs(model))


def _class_name(config: dict[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _processor(place: str, options: dict[str, Any]) -> Any:
    """What prepares inputs: the whole processor where there is a tokenizer too, else that of images alone."""
    import transformers

    for kind in (transformers.AutoProcessor, transformers.AutoImageProcessor):
        try:
            return kind.from_pretrained(place, **options)
        except (OSError, ValueError, KeyError, ImportError, TypeError):
            continue
    return None


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Within this context transformers draws no progress bars of its own, which last a moment here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
