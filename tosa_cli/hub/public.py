"""What of a model folder others get to see: names of folders without where they lie, and a card that says how to load.

A folder keeps the paths of its source and data, as `eval --compare` reads the source from there. On the Hub they would
tell about the user's machine and help nobody. Imports no torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

PATH_SETTINGS = ("data_dir", "val_dir", "depth_dir", "val_depth_dir", "split_file", "val_split_file")
_LOCAL_SOURCE = "local-dir:"
_ABSOLUTE = re.compile(r"file:|(local-dir:)?(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\)")
_REMOTE = re.compile(r"(?!file:)[\w+.-]+://")
_READER = re.compile(r"(hfds|hfids|tfds|wds)/", re.IGNORECASE)
"""What stands before the name of a data set that timm does not read as a folder of images."""


def without_paths(values: Any, hub_id: str | None, key: str = "") -> Any:
    """JSON values in which each local path is only the name of its folder or file.

    Args:
        values: Any JSON values, such as the settings of each command.
        hub_id: Id of the source on the Hub, which is no path; None if it does not come from there.
        key: Name that the values stand under.
    """
    if isinstance(values, Mapping):
        return {name: without_paths(value, hub_id, name) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_paths(value, hub_id, key) for value in values]
    return _public(key, values, hub_id) if isinstance(values, str) else values


def public_config(content: bytes) -> bytes:
    """A config.json without local paths; the very same bytes if it has none."""
    config = json.loads(content)
    block = config.get("tosa") if isinstance(config, dict) else None
    if not isinstance(block, dict):
        return content
    cleaned = without_paths(block, block.get("base_hub_id"))
    return content if cleaned == block else (json.dumps({**config, "tosa": cleaned}, indent=2) + "\n").encode()


def public_recipe(content: bytes, hub_id: str | None) -> bytes:
    """A recipe.yaml without local paths; the very same bytes if it has none."""
    recipe = yaml.safe_load(content)
    cleaned = without_paths(recipe, hub_id)
    if cleaned == recipe:
        return content
    return ("# What made this model.\n" + yaml.safe_dump(cleaned, sort_keys=False, default_flow_style=None)).encode()


def public_card(card: str, config: Mapping[str, Any]) -> str:
    """A card without the local paths that its model's configuration knows of."""
    block = config.get("tosa")
    if not isinstance(block, Mapping):
        return card
    hub_id = block.get("base_hub_id")
    names = {path: name for path, name in _paths(block, hub_id) if re.search(r"[/\\]", path)}
    if not names:
        return card
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(rf"(?<![\w/\\.-])({longest_first})(?![\w/\\-])", lambda found: names[found.group()], card)


def how_to_load(name: str, repo_id: str | None = None) -> str:
    """The card's section on loading.

    Args:
        name: Name of the model folder.
        repo_id: Where it is on the Hub; None if it is not there.
    """
    if repo_id is None:
        lines = (
            f'model = tosa_cli.load("{name}")  # a folder, or org/name on the Hub\n'
            f'model = timm.create_model("local-dir:{name}", pretrained=True)  # the same; hf-hub:org/name on the Hub\n'
        )
    else:
        lines = (
            f'model = tosa_cli.load("{repo_id}")\n'
            f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True)  # the same\n'
            f'features = timm.create_model("hf-hub:{repo_id}", pretrained=True, features_only=True)  # maps of layers\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        )
    return (
        f"## How to load it\n\n```python\nimport timm\nimport tosa_cli\n\n{lines}```\n\n"
        "`pip install tosa-cli` first. `forward`, `forward_features` and `forward_intermediates` are timm's."
    )


def how_to_load_predictor(name: str, repo_id: str | None = None) -> str:
    """The same of a model with a decoder."""
    return (
        f'## How to load it\n\n```python\nimport tosa_cli\n\nmodel = tosa_cli.load("{repo_id or name}")\n'
        "maps = model(images)  # normalised by model.pretrained_cfg; any size\n```\n\n`pip install tosa-cli` first."
    )


def address_card(card: str, repo_id: str, before: str | None = None) -> str:
    """A card that says how to load the model from a repository; one of another form is left as it is.

    Args:
        card: The card.
        repo_id: The repository.
        before: The repository from which it says to load it so far; None is the folder.
    """
    title = re.search(r"^# (.+)$", card, flags=re.MULTILINE)
    if title is None:
        return card
    for section in (how_to_load, how_to_load_predictor):
        card = card.replace(section(title.group(1), before), section(title.group(1), repo_id))
    whole = '.from_pretrained("{}")'
    return card.replace(whole.format(before or title.group(1)), whole.format(repo_id))


def add_pictures(card: str, names: Sequence[str], config: Mapping[str, Any]) -> str:
    """A card that shows pictures of what the model computes, files beside it; before its settings, or at its end.

    Args:
        card: The card.
        names: Names of the pictures.
        config: The model's config.json.
    """
    if not names:
        return card
    alt, sentences = _picture_words(config.get("model_args") or {})
    pictures = "\n\n".join(f"![{alt}]({name})" for name in names)
    section = f"## What it computes\n\n{pictures}\n\n{sentences}\n"
    before, settings, after = card.partition("\n## Settings\n")
    return f"{before}\n{section}{settings}{after}" if settings else f"{card.rstrip()}\n\n{section}"


def _picture_words(args: Mapping[str, Any]) -> tuple[str, str]:
    """What a picture shows, in a few words and in sentences, by what the model is made of."""
    selection = (
        "Patches as in the image are computed by the layer, dimmed ones skip it; all of them are there at the end."
    )
    predicted = {"depth": "Depth in metres", "segmentation": "Classes"}.get(args.get("task", ""))
    if predicted is None:
        return "Patches that each ToSA layer computes", selection
    if "layers" not in args:
        return f"{predicted} as predicted", f"{predicted} as predicted, beside the image."
    beside = f"{predicted} as predicted, beside what the same weights predict with every token computed in every layer."
    return f"Patches that each ToSA layer computes; {predicted.lower()} as predicted", f"{selection} {beside}"


def _paths(values: Any, hub_id: str | None, key: str = "") -> Iterator[tuple[str, str]]:
    """The local paths among JSON values, each with what becomes of it."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _paths(value, hub_id, name)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _paths(value, hub_id, key)
    elif isinstance(values, str) and (name := _public(key, values, hub_id)) != values:
        yield values, name


def _public(key: str, value: str, hub_id: str | None) -> str:
    reader = _READER.match(value)
    if reader and key != "source" and key not in PATH_SETTINGS:
        name = value[reader.end() :]
        # An id on the Hub has one slash at most.
        is_path = not _REMOTE.match(name) and (_ABSOLUTE.match(name) or len(re.findall(r"[/\\]", name)) > 1)
        return reader.group() + _name(name) if is_path else value
    return _name(value) if _is_path(key, value, hub_id) else value


def _is_path(key: str, value: str, hub_id: str | None) -> bool:
    if _REMOTE.match(value):
        return False
    if key == "source":
        source = value.removeprefix("hf-hub:").partition("@")[0]
        return not (hub_id and source == hub_id)
    return key in PATH_SETTINGS or bool(_ABSOLUTE.match(value))


def _name(path: str) -> str:
    path = path.removeprefix(_LOCAL_SOURCE)
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
