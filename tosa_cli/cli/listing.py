"""`tosa list`."""

from typing import Annotated

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import JsonOption
from tosa_cli.errors import InputError


def list_architectures(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name, or a pattern as 'vit_*dinov3'; none is all.", show_default=False)
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Without PATTERN too, show those that cannot be converted, and why.")
    ] = False,
    unsupported: Annotated[
        bool, typer.Option("--unsupported", help="Show only those that cannot be converted, and why.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List which of timm's architectures can be converted; those that match PATTERN with the reason if they cannot."""
    from tosa_cli.model.catalog import find_architectures, look_up

    names = find_architectures(pattern)
    if not names:
        raise InputError(f"timm has no architecture that matches {pattern!r}. Type `tosa list` to see them.")
    found = []
    with console.progress("Looking up", unit="architectures") as progress:
        progress.start(len(names), 0)
        for name in names:
            found.append(look_up(name))
            progress.advance(1)
    convertible = [one for one in found if one.reason is None]
    shown = found if pattern or everything else convertible
    if unsupported:
        shown = [one for one in found if one.reason is not None]
    if json:
        console.print_json([one.to_dict() for one in shown])
        return
    width = max((len(one.name) for one in shown), default=0)
    for one in shown:
        answer = "yes" if one.reason is None else f"no: {one.reason}"
        console.print_line(f"{one.name:<{width}}  {answer}")
    console.say(f"{len(convertible)} of {len(found)} architectures can be converted.")
    if convertible:
        console.next_command("tosa", "inspect", convertible[0].name)
