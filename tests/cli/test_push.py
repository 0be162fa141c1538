"""`tosa push` against a stub of the Hub on loopback."""

from pathlib import Path

import pytest

from tests.cli.conftest import Tosa
from tests.hub.stub_hub import StubHub, start_stub_hub  # noqa: F401 (the fixture `stub_hub`)
from tosa_cli import load


def test_a_dry_run_lists_what_would_go_up_and_sends_nothing(converted: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    done = tosa("push me/model --dry-run --json")
    names = [file["name"] for file in done.json["files"]]
    assert names == ["model.safetensors", "config.json", "README.md", "recipe.yaml"]
    assert done.json["total_bytes"] == sum((converted / name).stat().st_size for name in names)
    assert "Working on dense-tosa" in done.err and not stub_hub.repos
    assert "Dry run: nothing was pushed" in tosa("push dense-tosa me/model --dry-run").err


def test_what_is_pushed_loads_from_the_hub(converted: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    done = tosa("push dense-tosa me/model --json")
    assert done.code == 0, done.err
    assert done.json["changed"] and done.json["commit_url"]
    state, pushed = load(converted).state_dict(), load("me/model").state_dict()
    assert all(value.equal(pushed[name]) for name, value in state.items())
    assert tosa("flops me/model --json").code == 0
    again = tosa("push dense-tosa me/model")
    assert "already holds these files: nothing was pushed." in again.err
    assert "tosa_cli.load('me/model')" in again.err


def test_too_many_names_are_refused(converted: Path, tosa: Tosa) -> None:
    done = tosa("push a b c")
    assert done.code == 2 and "Too many names: pass a model folder and a repository, not a b c." in done.err


@pytest.mark.parametrize("folder", ["photos", "nowhere"])
def test_what_is_no_model_is_not_pushed(work: Path, tosa: Tosa, folder: str) -> None:
    done = tosa(f"push {folder} me/model")
    assert done.code == 2 and "that `tosa convert` wrote." in done.err
