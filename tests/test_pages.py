"""What README.md, the pages in docs/ and the recipes name is there: files, commands, their options, Python names."""

import re
from pathlib import Path

import pytest
import typer

import tosa_cli
from tosa_cli.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert all((page.parent / link).exists() for link in links if not link.startswith("http"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_are_named(page: Path) -> None:
    for command, words in re.findall(r"\btosa ([a-z]+)((?: +[^\s`#|]+)+)", page.read_text()):
        if command not in COMMANDS:
            continue
        known = {flag for param in COMMANDS[command].params for flag in (*param.opts, *param.secondary_opts)}
        given = {word.partition("=")[0].rstrip(";,.)") for word in words.split() if re.match(r"--?[a-z]", word)}
        assert given <= known, f"tosa {command}{words}"


def test_names_in_python_are_the_librarys() -> None:
    names = {name for page in PAGES for name in re.findall(r"\btosa_cli\.([a-zA-Z]\w*)\b(?!/)", page.read_text())}
    assert len(names) > 10 and all(hasattr(tosa_cli, name) for name in names)
