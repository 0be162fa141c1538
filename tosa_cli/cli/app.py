"""The command `tosa`. Each command's module imports torch only when it runs."""

import os
import sys
from typing import Annotated

import typer

from tosa_cli import __version__
from tosa_cli.cli import (
    bench,
    console,
    convert,
    demo,
    distill,
    evaluate,
    export,
    finetune,
    flops,
    inspect,
    listing,
    push,
    recipes,
    viz,
)
from tosa_cli.errors import InputError, OutputError, TosaError
from tosa_cli.interrupts import raising_interrupt

app = typer.Typer(
    name="tosa",
    help="Turns pretrained Vision Transformers into ToSA models: only the tokens that matter are computed, and every "
    "token is still there at the end.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

app.command("convert")(convert.convert)
app.command("distill")(distill.distill)
app.command("finetune")(finetune.finetune)
app.command("eval")(evaluate.evaluate)
app.command("flops")(flops.flops)
app.command("bench")(bench.bench)
app.command("inspect")(inspect.inspect)
app.command("list")(listing.list_architectures)
app.command("export")(export.export)
app.command("viz")(viz.viz)
app.command("push")(push.push)
app.command("recipes")(recipes.recipes)
app.command("demo")(demo.demo)


def _version(asked: bool) -> None:
    if asked:
        console.print_line(f"tosa {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: exit 0 if all went well, 1 if the work failed, 2 if the input was bad."""
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("TOSA_DEBUG"))
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _check_surroundings()
        _check_text(arguments)
        with raising_interrupt():
            _run(arguments)
    except TosaError as error:
        _report(str(error), debug)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.fail("Interrupted.")
        sys.exit(130)
    except OSError as error:
        # Names that are too long, disks that are full, files that one may not read: the surroundings, not a fault.
        what = f"{error.filename}: " if error.filename else ""
        _report(f"{what}{error.strerror or ' '.join(str(error).split())}.", debug)
        console.discard_stdout()
        sys.exit(2)
    except Exception as error:
        if _is_for_memory(error):
            _report(f"There is not enough memory ({_first_words(error)}): pass a smaller size or number.", debug)
            sys.exit(1)
        console.speak_up()
        _report(
            f"{type(error).__name__}: {_first_words(error)} This is a fault of tosa: please report it with the output "
            f"of the same command with --debug.",
            debug,
        )
        sys.exit(1)


def _is_for_memory(error: Exception) -> bool:
    """Whether PyTorch, NumPy or Python could not get the memory that was asked for, by their words."""
    words = ("can't allocate memory", "out of memory", "size calculation overflowed", "multiplication overflow")
    return isinstance(error, MemoryError) or any(part in str(error).lower() for part in map(str.lower, words))


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _check_surroundings() -> None:
    """Check what every command needs.

    Raises:
        OutputError: If stdout is closed: the next file to be opened would take its place.
        InputError: If the current directory is gone.
    """
    if sys.stdout is None:
        raise OutputError("stdout is closed: leave it open, or write it to /dev/null.")
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("The current directory was deleted: go to one that is there, as with `cd`.") from error


def _check_text(arguments: list[str]) -> None:
    """Check that arguments are text: names of other bytes go into no model folder, recipe or card.

    Raises:
        InputError: If one is not.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(argument).decode(errors="replace")
            raise InputError(f"The name {shown} is no text in UTF-8: rename what it stands for.") from error


def _run(arguments: list[str]) -> None:
    try:
        app(arguments)
    except SystemExit as exit:
        console.flush()
        # typer makes an exit without a word of Ctrl-C.
        if exit.code == 130:
            raise KeyboardInterrupt from exit
        raise


def _report(message: str, debug: bool) -> None:
    if debug:
        console.show_traceback()
    console.fail(message)


if __name__ == "__main__":
    main()
