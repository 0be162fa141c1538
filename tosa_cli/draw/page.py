"""One HTML page of pictures that needs nothing else: they are inlined, and nothing is fetched."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tosa_cli.progress import figure

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
h2 { margin-top: 3rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #8886; text-align: right; }
th:first-child, td:first-child { text-align: left; }
""".strip()


@dataclass(frozen=True)
class PageEntry:
    """One picture of the page.

    Attributes:
        name: Name of the image.
        png: The file of its picture.
        patch_cosine: Mean cosine of its patch tokens to the dense model's; None if not compared.
        class_cosine: The same of the class token.
        figures: What else was measured, by heading.
        shows: What the picture shows.
    """

    name: str
    png: Path
    patch_cosine: float | None = None
    class_cosine: float | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    shows: str = "Selection"


def render_page(title: str, about: Sequence[str], entries: Sequence[PageEntry]) -> Iterator[str]:
    """Render the page, a part at a time, so that no more than one picture is in memory.

    Args:
        title: Its title.
        about: Paragraphs below the title.
        entries: Its pictures.

    Yields:
        HTML.
    """
    paragraphs = "\n".join(f"<p>{escape(text)}</p>" for text in about)
    yield (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{paragraphs}\n"
        f"{_contents(entries)}\n"
    )
    for number, entry in enumerate(entries, start=1):
        yield f"{_section(number, entry)}\n"
    yield "</body>\n</html>\n"


def _contents(entries: Sequence[PageEntry]) -> str:
    compared = any(entry.patch_cosine is not None for entry in entries)
    columns = ["image", *(["patch cosine", "class cosine"] if compared else [])]
    columns += dict.fromkeys(heading for entry in entries for heading in entry.figures)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = "\n".join(_row(number, entry, columns) for number, entry in enumerate(entries, start=1))
    return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"


def _row(number: int, entry: PageEntry, columns: Sequence[str]) -> str:
    cosines = {"patch cosine": figure(entry.patch_cosine), "class cosine": figure(entry.class_cosine)}
    values = {**cosines, **entry.figures}
    cells = "".join(f"<td>{escape(values.get(column, '-'))}</td>" for column in columns[1:])
    return f'<tr><td><a href="#image-{number}">{escape(entry.name)}</a></td>{cells}</tr>'


def _section(number: int, entry: PageEntry) -> str:
    data = base64.b64encode(entry.png.read_bytes()).decode("ascii")
    name = escape(entry.name)
    alt = f"{escape(entry.shows)} in {name}"
    return f'<h2 id="image-{number}">{name}</h2>\n<img src="data:image/png;base64,{data}" alt="{alt}">'
