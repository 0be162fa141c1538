"""`tosa push` against a stub of the Hub on loopback."""

from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Tosa
from tests.hub.stub_hub import StubHub, start_stub_hub  # noqa: F401 (the fixture `stub_hub`)
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.cli import console


def test_a_dry_run_lists_what_would_go_up_and_sends_nothing(converted: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    done = tosa("push me/model --dry-run --json")
    names = [file["name"] for file in done.json["files"]]
    assert names == ["model.safetensors", "config.json", "README.md", "recipe.yaml"]
    assert done.json["total_bytes"] == sum(file["size_bytes"] for file in done.json["files"])
    weights = done.json["files"][0]
    assert weights["size_bytes"] == (converted / "model.safetensors").stat().st_size
    assert fragments.WORKING_ON_DENSE_TOSA in done.err and not stub_hub.repos
    assert tosa("push dense-tosa me/model --dry-run").code == 0 and not stub_hub.repos


def test_what_is_pushed_loads_from_the_hub(converted: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    done = tosa("push dense-tosa me/model --json")
    assert done.code == 0, done.err
    assert done.json["changed"] and done.json["commit_url"]
    state, pushed = load(converted).state_dict(), load("me/model").state_dict()
    assert all(value.equal(pushed[name]) for name, value in state.items())
    assert tosa("flops me/model --json").code == 0
    again = tosa("push dense-tosa me/model")
    assert fragments.ALREADY_HOLDS_THESE_FILES_NOTHING in again.err
    assert fragments.NEXT_PYTHON_C_IMPORT_TOSA in again.err


def test_a_dry_run_refuses_what_the_push_would(converted: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    for options in ((), ("--dry-run",), ("--dry-run", "--image", "photos/none.jpg")):
        done = tosa("push dense-tosa", "bad name/x y", *options)
        assert done.code == 2 and not done.out and fragments.REPOSITORY_ID in done.err


def test_too_many_names_are_refused(converted: Path, tosa: Tosa) -> None:
    done = tosa("push a b c")
    assert done.code == 2 and " a b c" in done.err


@pytest.mark.parametrize("folder", ["photos", "nowhere"])
def test_what_is_no_model_is_not_pushed(work: Path, tosa: Tosa, folder: str) -> None:
    done = tosa(f"push {folder} me/model")
    assert done.code == 2 and fragments.TOSA_CONVERT in done.err


def test_the_card_says_how_to_load_the_model_from_the_repository(
    converted: Path, tosa: Tosa, stub_hub: StubHub
) -> None:
    local = (converted / "README.md").read_text()
    assert 'tosa_cli.load("dense-tosa")' in local
    assert tosa("push dense-tosa model").code == 0
    card = stub_hub.files("me/model")["README.md"].decode()
    assert 'tosa_cli.load("me/model")' in card and fragments.TIMM_CREATE_MODEL_HF_HUB in card
    assert "local-dir:" not in card and (converted / "README.md").read_text() == local
    planned = tosa("push dense-tosa me/model --dry-run --json").json["files"]
    sizes = {file["name"]: file["size_bytes"] for file in planned}
    assert sizes == {name: len(content) for name, content in stub_hub.files("me/model").items()}


def test_pictures_go_up_beside_the_card_and_stand_in_it(converted: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    before = sorted(converted.iterdir())
    options = "--image photos/000.jpg --image photos/001.jpg"
    planned = tosa(f"push dense-tosa me/model --dry-run --json {options}").json["files"]
    assert [file["name"] for file in planned][-2:] == ["selection.png", "selection-2.png"] and not stub_hub.repos
    assert tosa(f"push dense-tosa me/model {options}").code == 0
    files = stub_hub.files("me/model")
    assert files["selection.png"].startswith(b"\x89PNG") and files["selection-2.png"] != files["selection.png"]
    card = files["README.md"].decode()
    assert card.index("(selection.png)") < card.index("(selection-2.png)") < card.index("## Settings")
    assert sorted(converted.iterdir()) == before
    assert tosa("push dense-tosa me/model --image photos/none.jpg").code == 2


def test_no_path_of_this_machine_goes_up(work: Path, tosa: Tosa, stub_hub: StubHub) -> None:
    assert tosa(f"convert {work / 'dense'} --layers 2,4 --keep-rate 0.5 -o mine").code == 0
    data = f"--data-dir {work / 'photos'} --val-dir {work / 'digits' / 'validation'} --max-samples 8 -b 4 -j 0"
    assert tosa(f"distill mine {data}").code == 0
    assert str(work) in Path("mine/config.json").read_text()
    assert tosa("push mine me/model").code == 0
    files = stub_hub.files("me/model")
    assert not any(str(work).encode() in content for content in files.values())
    convert, distill = (yaml.safe_load(files["recipe.yaml"])[command] for command in ("convert", "distill"))
    assert (convert["source"], distill["data_dir"], distill["val_dir"]) == ("dense", "photos", "validation")
    card = files["README.md"].decode()
    assert fragments.TOSA_CONVERT_DENSE_LAYERS_2 in card
    assert fragments.VAL_DIR_VALIDATION in card
    state, pushed = load("mine").state_dict(), load("me/model").state_dict()
    assert all(value.equal(pushed[name]) for name, value in state.items())


def test_another_card_is_kept_without_a_terminal_and_that_is_said(
    converted: Path, tosa: Tosa, stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_hub.put("me/model", {"README.md": b"# By hand\n"})
    done = tosa("push dense-tosa me/model --json")
    assert done.code == 0 and done.json["card_kept"] and fragments.ME_MODEL_KEEPS_THE_MODEL in done.err
    assert stub_hub.files("me/model")["README.md"] == b"# By hand\n"
    monkeypatch.setattr(console, "can_ask", lambda: True)
    for answer in (False, True):
        monkeypatch.setattr(console, "ask", lambda question, answer=answer: answer and "me/model already" in question)
        assert tosa("push dense-tosa me/model --json").json["card_kept"] is not answer
    assert b"library_name: tosa" in stub_hub.files("me/model")["README.md"]


@pytest.mark.parametrize("option", ["--overwrite-card", "--yes", "-y"])
def test_a_script_may_say_yes_or_no_beforehand(
    converted: Path, tosa: Tosa, stub_hub: StubHub, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(console, "can_ask", lambda: True)
    monkeypatch.setattr(console, "ask", lambda question: pytest.fail("asked"))
    stub_hub.put("me/model", {"README.md": b"# By hand\n"})
    assert tosa("push dense-tosa me/model --keep-card --json").json["card_kept"]
    assert not tosa(f"push dense-tosa me/model {option} --json").json["card_kept"]
