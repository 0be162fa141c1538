"""What tests of mistakes share: models that are written, and what a folder holds."""

from pathlib import Path

from tests.cli.conftest import Done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_refused(done: Done, *sentence: str, code: int = 2) -> None:
    assert done.code == code, done.err
    assert done.out == "" and "Traceback" not in done.err
    message = done.err.splitlines()[-1]
    assert message.startswith("Error: ") and message.endswith("."), message
    for part in sentence:
        assert part in message, message
