"""A file that says which class of a model each class of data is. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tosa_cli.errors import DataError


def read_class_map(path: str) -> dict[str, int] | None:
    """Read a class map.

    Args:
        path: A JSON object of names and indices; or a text file with a line for each class: NAME and INDEX with a comma
            or a tab between, or, in the order of the indices, names alone. Empty if there is none.

    Returns:
        The index of the model's output for each name of a class, or of its folder; None if there is none.

    Raises:
        DataError: If it cannot be read.
    """
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        is_json = path.lower().endswith(".json")
        found = _of_json(json.loads(text, object_pairs_hook=_once)) if is_json else _of_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"The class map {path} cannot be read ({error}): it is a JSON object of names and indices, or a text file "
            f"with a line NAME,INDEX for each class, or with names alone in their order."
        ) from error
    return found


def _of_json(values: Any) -> dict[str, int]:
    if not isinstance(values, Mapping) or not values:
        raise ValueError("it holds no object")
    for name, index in values.items():
        if type(index) is not int or index < 0:
            raise ValueError(f"the index of {name!r} is {index!r}")
    return dict(values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names with their values, each name once: else the last of them would count, without a word."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len({*names}) < len(names) else None
    if twice is not None:
        raise ValueError(f"it names {twice!r} twice")
    return dict(pairs)


def _of_lines(text: str) -> dict[str, int]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [line.rpartition("\t" if "\t" in line else ",") for line in lines]
    if lines and all(name and index.strip().isdecimal() for name, _, index in pairs):
        found = [(name.strip(), int(index)) for name, _, index in pairs]
    else:
        found = [(line, index) for index, line in enumerate(lines)]
    if not found:
        raise ValueError("it is empty")
    return _once(found)
