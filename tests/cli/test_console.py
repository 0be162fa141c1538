"""What is printed is what was said: names with brackets and colons are neither styles nor emoji."""

import contextlib
import io

from tosa_cli.cli import console


def printed(title: str, cell: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        console.print_table(title, ["image", "share"], [[cell, "50 %"]], footer=["[sum]", ":x:"])
    return out.getvalue()


def test_a_table_shows_names_with_brackets_as_they_are() -> None:
    shown = printed("3 images of photos [raw]", "cat [blue].jpg")
    assert "3 images of photos [raw]" in shown and "cat [blue].jpg" in shown and "[sum]" in shown and ":x:" in shown
    assert "x[/b]y.jpg" in printed("pictures", "x[/b]y.jpg")


def test_a_line_shows_colons_as_they_are() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        console.print_line("s3:x:bucket [red]")
        console.say("Wrote s3:x:bucket [red].")
        console.warn("s3:x:bucket [/red]")
        console.next_command("tosa", "flops", "a:x:b[1]")
        console.fail("There is no s3:x:bucket [/red].")
    assert out.getvalue() == "s3:x:bucket [red]\n"
    assert err.getvalue() == (
        "Wrote s3:x:bucket [red].\nWarning: s3:x:bucket [/red]\nNext: tosa flops 'a:x:b[1]'\n"
        "Error: There is no s3:x:bucket [/red].\n"
    )
