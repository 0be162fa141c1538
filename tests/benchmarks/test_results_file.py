"""Results on disk are whole, whatever happens while they are written."""

from pathlib import Path

import pytest

from benchmarks.writer import whole_file, write_json


def test_an_interrupted_write_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "results" / "mine.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == '{\n "a": 1\n}\n' and list(path.parent.iterdir()) == [path]
