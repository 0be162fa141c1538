"""Pushing to the Hub, with the real client against a stub on loopback."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sentences import fragments
from tosa_cli.errors import CheckpointError, InputError
from tosa_cli.hub.push import plan_push, push_folder

from .pushed import (
    CARD,
    FILES,
    download,
    push,
    write_files,  # noqa: F401 (the fixture `folder`)
)
from .stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)

FOREIGN_CARD = b"---\nlibrary_name: timm\n---\n# Written with care\n"


# ---------------------------------------------------------------------- what goes up


def test_a_plan_lists_the_files_of_a_model_and_nothing_of_its_training(folder: Path) -> None:
    for name in ("optimizer.pt", "checkpoint.safetensors", "log.txt", ".tosa.json"):
        (folder / name).write_bytes(b"x")
    (folder / "runs").mkdir()
    (folder / "runs" / "curve.png").write_bytes(b"x")
    plan = plan_push(folder)
    assert [file.name for file in plan.files] == list(FILES)
    assert {file.name: file.size_bytes for file in plan.files} == {name: len(data) for name, data in FILES.items()}
    assert plan.total_bytes == sum(map(len, FILES.values()))


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "README.md"])
def test_a_folder_that_is_not_a_converted_model_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing}.*`tosa convert`"):
        plan_push(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=fragments.NOWHERE_TOSA_CONVERT):
        plan_push(tmp_path / "nowhere")


def test_a_push_creates_the_repository_and_makes_exactly_one_commit(stub_hub: StubHub, folder: Path) -> None:
    report = push(folder)
    assert stub_hub.commits("me/model") == ["Upload ToSA model"]
    assert stub_hub.files("me/model") == FILES
    assert report.repo_url == f"{stub_hub.endpoint}/me/model"
    assert report.commit_url == f"{report.repo_url}/commit/{report.oid}"
    assert report.pr_url is None and report.changed


def test_what_was_pushed_reads_back_byte_for_byte(stub_hub: StubHub, folder: Path) -> None:
    report = push(folder)
    for revision in (None, report.oid):
        assert {name: download("me/model", name, revision) for name in FILES} == FILES


def test_a_name_alone_goes_to_the_namespace_of_the_user(stub_hub: StubHub, folder: Path) -> None:
    assert push(folder, "model").repo_url == f"{stub_hub.endpoint}/me/model"
    assert stub_hub.files("me/model") == FILES


def test_a_commit_message_is_kept(stub_hub: StubHub, folder: Path) -> None:
    push_folder(plan_push(folder), "me/model", commit_message="Finetuned")
    assert stub_hub.commits("me/model") == ["Finetuned"]


@pytest.mark.parametrize("private", [True, False, None])
def test_a_repository_is_private_when_asked_for(stub_hub: StubHub, folder: Path, private: bool | None) -> None:
    push_folder(plan_push(folder), "me/model", private=private)
    assert stub_hub.repos["me/model"].private is bool(private)


def test_a_private_push_to_a_public_repository_is_refused(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.put("me/model", {})
    with pytest.raises(InputError, match=fragments.ME_MODEL_PRIVATE):
        push_folder(plan_push(folder), "me/model", private=True)
    assert stub_hub.files("me/model") == {}


def test_a_second_push_updates_the_files(stub_hub: StubHub, folder: Path) -> None:
    push(folder)
    (folder / "model.safetensors").write_bytes(b"better")
    report = push(folder)
    assert report.changed and len(stub_hub.commits("me/model")) == 2
    assert download("me/model", "model.safetensors") == b"better"


def test_a_push_of_the_same_files_makes_no_commit(stub_hub: StubHub, folder: Path) -> None:
    first, second = push(folder), push(folder)
    assert not second.changed and second.oid == first.oid
    assert len(stub_hub.commits("me/model")) == 1


def test_other_files_in_the_repository_stay(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.put("me/model", {"notes.md": b"mine"})
    push(folder)
    assert stub_hub.files("me/model") == {"notes.md": b"mine", **FILES}


def test_a_new_revision_becomes_a_branch_and_leaves_main_alone(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.put("me/model", {"notes.md": b"mine"})
    push(folder, revision="half/rate")
    push(folder, revision="half/rate")
    assert stub_hub.files("me/model") == {"notes.md": b"mine"}
    assert stub_hub.files("me/model", "half/rate") == {"notes.md": b"mine", **FILES}
    assert download("me/model", "README.md", "half/rate") == CARD


def test_a_pull_request_leaves_main_alone(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.put("org/model", {"notes.md": b"theirs"})
    report = push(folder, "org/model", create_pr=True)
    assert report.pr_url == f"{stub_hub.endpoint}/org/model/discussions/1"
    assert stub_hub.files("org/model") == {"notes.md": b"theirs"}
    assert download("org/model", "model.safetensors", "refs/pr/1") == FILES["model.safetensors"]


def test_a_pull_request_on_another_branch_is_refused(stub_hub: StubHub, folder: Path) -> None:
    with pytest.raises(InputError, match=fragments.HALF_REVISION_CREATE_PR):
        push(folder, revision="half", create_pr=True)
    assert stub_hub.requests == []


@pytest.mark.parametrize("card", [FOREIGN_CARD, b"# No metadata\n", b"---\n: [broken\n---\n", b"---\n- a list\n---\n"])
@pytest.mark.parametrize("revision", [None, "new-branch"])
def test_a_model_card_of_another_hand_is_not_overwritten(
    stub_hub: StubHub, folder: Path, card: bytes, revision: str | None
) -> None:
    stub_hub.put("me/model", {"README.md": card})
    report = push(folder, revision=revision)
    assert report.card_kept and report.changed
    assert stub_hub.files("me/model", revision or "main") == {**FILES, "README.md": card}


def test_a_card_that_tosa_wrote_and_somebody_edited_is_kept_too(stub_hub: StubHub, folder: Path) -> None:
    stub_hub.put("me/model", {"README.md": CARD + b"By hand.\n"})
    assert push(folder).card_kept
    assert stub_hub.files("me/model")["README.md"] == CARD + b"By hand.\n"


@pytest.mark.parametrize("card", [FOREIGN_CARD, CARD + b"By hand.\n"])
def test_another_model_card_is_overwritten_when_asked_for(stub_hub: StubHub, folder: Path, card: bytes) -> None:
    stub_hub.put("me/model", {"README.md": card})
    assert not push_folder(plan_push(folder), "me/model", overwrite_card=True).card_kept
    assert stub_hub.files("me/model") == FILES


@pytest.mark.parametrize("answer", [True, False])
def test_whether_to_overwrite_a_card_is_asked_only_if_there_is_another(
    stub_hub: StubHub, folder: Path, answer: bool
) -> None:
    asked: list[str] = []

    def ask(repo_id: str) -> bool:
        asked.append(repo_id)
        return answer

    for _ in range(2):
        assert not push_folder(plan_push(folder), "me/model", overwrite_card=ask).card_kept
    assert asked == []
    stub_hub.put("me/model", {"README.md": FOREIGN_CARD})
    report = push_folder(plan_push(folder), "model", overwrite_card=ask)
    assert asked == ["me/model"] and report.card_kept is not answer
    assert stub_hub.files("me/model")["README.md"] == (CARD if answer else FOREIGN_CARD)


# ---------------------------------------------------------------------- by others


def test_timm_loads_a_dense_model_from_the_hub_with_equal_weights(stub_hub: StubHub, tmp_path: Path) -> None:
    import timm
    import torch
    from timm.models import save_for_hf

    dense = timm.create_model("test_vit", num_classes=5)
    save_for_hf(dense, str(tmp_path / "dense"), safe_serialization=True)
    stub_hub.put("me/dense", {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()})
    loaded = timm.create_model("hf-hub:me/dense", pretrained=True).state_dict()
    assert loaded.keys() == dense.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in dense.state_dict().items())
    assert "HEAD /me/dense/resolve/main/model.safetensors" in stub_hub.requests


def test_a_process_of_its_own_pushes_through_its_environment_and_without_torch(
    stub_hub: StubHub, folder: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from tosa_cli.hub.push import plan_push, push_folder; "
        "push_folder(plan_push(Path(sys.argv[1])), 'me/model'); "
        "sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )
    environment = stub_hub.environment(tmp_path / "home")
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout) == (0, ""), process.stderr
    assert stub_hub.files("me/model") == FILES


# ---------------------------------------------------------------------- files


def test_what_goes_up_is_what_was_planned_whatever_becomes_of_the_folder(folder: Path) -> None:
    plan = plan_push(folder)
    (folder / "model.safetensors").write_bytes(b"of another model")
    assert {file.name: file.content for file in plan.files}["model.safetensors"] == FILES["model.safetensors"]


def test_a_folder_that_is_replaced_while_it_is_read_is_not_pushed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def replace(path: Path) -> bytes:
        content = read(path)
        if path.name == "README.md":
            folder.rename(folder.with_name("old"))
            shutil.copytree(folder.with_name("old"), folder)
        return content

    monkeypatch.setattr(Path, "read_bytes", replace)
    with pytest.raises(CheckpointError, match=fragments.WAS_REPLACED_WHILE_IT_WAS):
        plan_push(folder)


@pytest.mark.parametrize("name", ["selection.png", "recipe.yaml", "model.safetensors"])
def test_no_link_out_of_the_folder_is_followed(folder: Path, name: str) -> None:
    (folder.parent / "private").write_text("private")
    (folder / name).unlink()
    (folder / name).symlink_to("../private")
    with pytest.raises(CheckpointError, match=rf"model/{name} is a link to \S+private, out of the folder"):
        plan_push(folder)


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "other.png").symlink_to("selection.png")
    assert {file.name: file.content for file in plan_push(folder).files}["other.png"] == FILES["selection.png"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("README.md", b"\xff\xfe", "README.md cannot be read as text"),
        ("recipe.yaml", b"a: [1", "recipe.yaml cannot be read as YAML"),
        ("recipe.yaml", b"name: caf\xe9\n", "recipe.yaml cannot be read as YAML"),
        ("recipe.yaml", b"a: !!python/object/apply:os.getcwd []", "recipe.yaml cannot be read as YAML"),
        ("recipe.yaml", b"[" * 5000, "recipe.yaml cannot be read as YAML"),
        ("config.json", b'{"tosa": []}', "config.json should hold an object under 'tosa'"),
        ("config.json", b'{"model_args": 5}', "config.json should hold an object under 'model_args'"),
        ("config.json", b"[" * 100_000, "config.json cannot be read as JSON"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, content: bytes, told: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        plan_push(folder)
