"""The code lies as docs/architecture.md draws it: imports point down the picture, and settings import no torch."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = {"cli": 5, "workflow": 4, "tasks": 3, "data": 1, "model": 0}
"""Rooms by the floor of the picture that they are on; all others are on that above the data, the second."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "tosa_cli").rglob("*.py"))
}
LIGHT = [name for name, path in MODULES.items() if "no torch" in (ast.get_docstring(ast.parse(path.read_text())) or "")]


def imports(name: str, when_run: bool = True) -> Iterator[str]:
    """Modules that one imports; with those that its functions import as they run, or without."""
    tree = ast.parse(MODULES[name].read_text())
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            for imported in node.names:
                inside = f"{node.module}.{imported.name}"
                yield inside if inside in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (imported.name for imported in node.names)
        is_type = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_type and (when_run or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            waiting += ast.iter_child_nodes(node)


def room_of(name: str) -> str | None:
    """The room of a module; None at the top of the package."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else None


def floor_of(name: str) -> int:
    """The floor of a module; what is at the top of the package is below all rooms, or above them as their face."""
    room = room_of(name)
    return -1 if room is None else FLOORS.get(room, 2)


def test_imports_point_down() -> None:
    up = [
        (name, imported)
        for name in MODULES
        for imported in imports(name)
        if room_of(name) and imported in MODULES and floor_of(imported) > floor_of(name) and imported not in LIGHT
    ]
    assert not up


def test_what_says_that_it_imports_no_torch_does_not() -> None:
    seen, waiting, heavy = set(), list(LIGHT), []
    while waiting:
        module = waiting.pop()
        seen.add(module)
        found = set(imports(module, when_run=False))
        heavy += [(module, imported) for imported in found if imported.partition(".")[0] in ("torch", "timm")]
        waiting += [imported for imported in found if imported in MODULES and imported not in seen]
    assert LIGHT and not heavy


def test_the_rooms_are_those_of_the_picture() -> None:
    drawn = (ROOT / "docs" / "architecture.md").read_text()
    assert all(f"**`{room}/`**" in drawn for room in {room_of(name) for name in MODULES} - {None})
