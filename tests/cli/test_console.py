"""What is printed is what was said: names with brackets and colons are neither styles nor emoji; or it is told."""

import contextlib
import io
import os
import sys
from pathlib import Path
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


@pytest.mark.parametrize("command", ["recipes", "recipes --json", "list", "--help", "--version"])
def test_a_full_stdout_is_told(command: str) -> None:
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full), pytest.raises(SystemExit) as end:
        with contextlib.redirect_stderr(io.StringIO()) as told, patch.object(sys, "argv", ["tosa", *command.split()]):
            main()
    assert end.value.code == 2 and "No space left on device" in told.getvalue().splitlines()[-1]


def test_a_closed_stdout_is_told() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as end:
        with patch.object(sys, "stdout", None), patch.object(sys, "argv", ["tosa", "recipes"]):
            main()
    assert end.value.code == 2 and told.getvalue().startswith("Error: stdout is closed")


def test_a_pipe_that_nobody_reads_is_told() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, contextlib.redirect_stdout(pipe), pytest.raises(SystemExit) as end:
        with contextlib.redirect_stderr(io.StringIO()) as told, patch.object(sys, "argv", ["tosa", "recipes"]):
            main()
    assert end.value.code == 2 and "stdout could not be written (Broken pipe)" in told.getvalue()


def test_a_directory_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as end:
        with patch.object(sys, "argv", ["tosa", "flops"]):
            main()
    monkeypatch.chdir(tmp_path)
    assert end.value.code == 2 and told.getvalue().startswith("Error: The current directory was deleted")


def test_a_name_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as end:
        with patch.object(sys, "argv", ["tosa", "flops", "x" * 300]):
            main()
    assert end.value.code == 2 and "File name too long" in told.getvalue()
