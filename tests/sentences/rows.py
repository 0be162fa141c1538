"""How a row of the tables of sentences is written, and how it is checked."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from tosa_cli.errors import TosaError

Row = tuple[str, Callable[..., Any], str]
"""What the matter is; what fails, whose parameters are fixtures; what is said, where "…" stands for what varies."""


def table(rows: list[Row]) -> pytest.MarkDecorator:
    """Make a test of `check` for every row."""
    return pytest.mark.parametrize(("fails", "sentence"), [pytest.param(*row[1:], id=row[0]) for row in rows])


def check(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    """Check that what fails says the sentence, the whole of it and nothing else."""
    fixtures = {name: request.getfixturevalue(name) for name in inspect.signature(fails).parameters}
    with pytest.raises((TosaError, AttributeError, ValueError)) as failure:
        fails(**fixtures)
    told = str(failure.value)
    pattern = ".+?".join(re.escape(part) for part in sentence.split("…"))
    assert re.fullmatch(pattern, told), f"It says\n{told}\nand the table\n{sentence}"
