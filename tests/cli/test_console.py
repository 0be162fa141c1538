"""What is printed is what was said: names with brackets and colons are neither styles nor emoji; or it is told."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tosa_cli.cli import console
from tosa_cli.cli.app import main


def printed(title: str, cell: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        console.print_table(title, ["image", "share"], [[cell, "50 %"]], footer=["[sum]", ":x:"])
    return out.getvalue()


def test_a_table_shows_names_with_brackets_as_they_are() -> None:
    shown = printed("3 images of photos [raw]", "cat [blue].jpg")
    assert "3 images of photos [raw]" in shown and "cat [blue].jpg" in shown and "[sum]" in shown and ":x:" in shown
    assert "x[/b]y.jpg" in printed("pictures", "x[/b]y.jpg")


def test_the_title_of_a_narrow_table_is_one_line() -> None:
    title = "Keep rates of a model in whose layers next to nothing is merged"
    assert printed(title, "1").splitlines()[0] == title


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


def failed(*words: str, stdout: Any) -> str:
    """What is said on stderr by a command that ends with exit code 2."""
    told = io.StringIO()
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(told),
        patch.object(sys, "argv", ["tosa", *words]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert end.value.code == 2, told.getvalue()
    return told.getvalue().splitlines()[-1]


@pytest.mark.parametrize("command", ["recipes", "recipes --json", "list test_vit?", "--help", "--version"])
def test_a_full_stdout_is_told(command: str) -> None:
    with open("/dev/full", "w") as full:
        assert "No space left on device" in failed(*command.split(), stdout=full)


def test_a_closed_stdout_is_told() -> None:
    assert failed("recipes", stdout=None).startswith("Error: stdout is closed")


def test_a_pipe_that_nobody_reads_is_told() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        assert "stdout could not be written (Broken pipe)" in failed("recipes", stdout=pipe)


def test_a_directory_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    told = failed("flops", stdout=io.StringIO())
    monkeypatch.chdir(tmp_path)
    assert told.startswith("Error: The current directory was deleted")


def test_a_name_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "File name too long" in failed("flops", "x" * 300, stdout=io.StringIO())
