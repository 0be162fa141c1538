"""Repositories on the stub Hub, and folders to push."""

from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from tosa_cli.hub.push import PushReport, plan_push, push_folder

CARD = b"---\nlibrary_name: tosa\n---\n# A model\n"

FILES = {
    "model.safetensors": bytes(range(256)) * 64,
    "config.json": b'{"architecture": "tosa_vit"}',
    "README.md": CARD,
    "recipe.yaml": b"name: mine\n",
    "selection.png": b"\x89PNG\r\n",
}


def push(folder: Path, repo_id: str = "me/model", revision: str | None = None, create_pr: bool = False) -> PushReport:
    return push_folder(plan_push(folder), repo_id, revision=revision, create_pr=create_pr)


def download(repo_id: str, name: str, revision: str | None = None) -> bytes:
    return Path(hf_hub_download(repo_id, name, revision=revision)).read_bytes()


@pytest.fixture(name="folder")
def write_files(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder
