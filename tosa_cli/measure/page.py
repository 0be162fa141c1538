"""One HTML page of pictures that needs nothing else: they are inlined, and nothing is fetched."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

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
        png: Its picture.
        patch_cosine: Mean cosine of its patch tokens to the dense model's; None if not compared.
        class_cosine: The same of the class token.
    """

    name: str
    png: bytes
    patch_cosine: float | None = None
    class_cosine: float | None = None


def render_page(title: str, about: Sequence[str], entries: Iterable[PageEntry]) -> str:
    """Render the page.

    Args:
        title: Its title.
        about: Paragraphs below the title.
        entries: Its pictures.

    Returns:
        HTML.
    """
    entries = list(entries)
    sections = "\n".join(_section(number, entry) for number, entry in enumerate(entries, start=1))
    paragraphs = "\n".join(f"<p>{escape(text)}</p>" for text in about)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{paragraphs}\n"
        f"{_contents(entries)}\n{sections}\n</body>\n</html>\n"
    )


def _contents(entries: Sequence[PageEntry]) -> str:
    compared = any(entry.patch_cosine is not None for entry in entries)
    head = "<th>image</th>" + ("<th>patch cosine</th><th>class cosine</th>" if compared else "")
    rows = "\n".join(
        f'<tr><td><a href="#image-{number}">{escape(entry.name)}</a></td>'
        + (f"<td>{_number(entry.patch_cosine)}</td><td>{_number(entry.class_cosine)}</td>" if compared else "")
        + "</tr>"
        for number, entry in enumerate(entries, start=1)
    )
    return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"


def _section(number: int, entry: PageEntry) -> str:
    data = base64.b64encode(entry.png).decode("ascii")
    name = escape(entry.name)
    return f'<h2 id="image-{number}">{name}</h2>\n<img src="data:image/png;base64,{data}" alt="Selection in {name}">'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
