"""`tosa recipes`."""

import dataclasses
from typing import Annotated

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import JsonOption
from tosa_cli.recipe import find_recipe, list_recipes, load_recipe


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe: a name, or a .yaml file.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the recipes that come with tosa, or print one."""
    if name is not None:
        recipe = load_recipe(name)
        if json:
            console.print_json(dataclasses.asdict(recipe))
        else:
            console.print_line(find_recipe(name).read_text(encoding="utf-8").rstrip())
        return
    found = list_recipes()
    if json:
        console.print_json([{"name": r.name, "description": r.description, "command": r.command} for r in found])
        return
    for recipe in found:
        console.print_line(recipe.name)
        console.print_line(f"  {recipe.description}")
    console.next_command("tosa", "recipes", found[0].name)
