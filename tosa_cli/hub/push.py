"""Puts a converted folder on the Hugging Face Hub, in one commit. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants, metadata_load
from huggingface_hub.errors import RevisionNotFoundError

from tosa_cli import __version__
from tosa_cli.errors import CheckpointError, HubError, InputError, TosaError
from tosa_cli.hub.errors import explain_hub_error

_CARD = "README.md"
_LIBRARY = "tosa"
_NEEDED_FILES = ("model.safetensors", "config.json", _CARD)

# A list of what goes up, and not of what stays: a training checkpoint or a log must never slip through.
PUSHED_FILES = (*_NEEDED_FILES, "recipe.yaml", "*.png")


@dataclass(frozen=True)
class PushedFile:
    """A file that goes to the Hub.

    Attributes:
        name: Its name, in the folder and in the repository.
        size_bytes: Its size in bytes.
    """

    name: str
    size_bytes: int


@dataclass(frozen=True)
class PushPlan:
    """What of a converted folder goes to the Hub.

    Attributes:
        folder: The converted folder.
        files: Its files that go up.
    """

    folder: Path
    files: tuple[PushedFile, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Attributes:
        repo_url: Page of the repository.
        commit_url: Page of the commit.
        pr_url: Page of the pull request; None if there is none.
        oid: The commit, as a revision to load from.
        changed: False if the repository already held these very files, so that there was nothing to commit.
    """

    repo_url: str
    commit_url: str
    pr_url: str | None
    oid: str
    changed: bool


def plan_push(folder: Path) -> PushPlan:
    """List what of a converted folder goes to the Hub: `PUSHED_FILES`, as far as they exist.

    Raises:
        CheckpointError: If the folder does not exist or is not a converted model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}: give one that `tosa convert` wrote.")
    missing = [name for name in _NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a converted model, as it has no {' and no '.join(missing)}: "
            "give a folder that `tosa convert` wrote."
        )
    paths = [path for pattern in PUSHED_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    return PushPlan(folder, tuple(PushedFile(path.name, path.stat().st_size) for path in paths))


def push_folder(
    plan: PushPlan,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite_card: bool = False,
) -> PushReport:
    """Put the files of `plan` into a repository, as one commit; the repository is made if it does not exist.

    Args:
        plan: What to push, from `plan_push`.
        repo_id: `namespace/name`; without a namespace, the user's own.
        private: Whether the repository is to be private; None leaves it to the Hub's default, or as it is.
        revision: Branch to commit to, made from the main branch if it does not exist; None is the main branch.
        create_pr: Open a pull request on the main branch instead of committing to it.
        commit_message: First line of the commit.
        overwrite_card: Replace a model card that is not from `tosa`.

    Raises:
        InputError: If the repository id is not valid, the repository exists with another visibility than `private`,
            or a pull request was asked for on another branch than the main one.
        HubError: If the repository has a model card that is not from `tosa`, no or no sufficient access token was
            found, the Hub cannot be reached, or the Hub refuses.
    """
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise InputError(
            f"A pull request can only be opened on the main branch, but the revision {revision} was given: "
            "leave out --revision or --create-pr."
        )
    # `token=True` raises for want of a token here, before the Hub answers with a message about wrong passwords.
    api = HfApi(token=True, library_name=_LIBRARY, library_version=__version__)
    try:
        repo_url = api.create_repo(repo_id, private=private, exist_ok=True)
        full_id = repo_url.repo_id  # with its namespace, which the user may leave out
        head, is_new_branch = _find_head(api, full_id, revision)
        _check_visibility(head, private, repo_url)
        if not overwrite_card:
            _check_card(api, head)
        if revision is not None and is_new_branch:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        # Not `upload_folder`: since 2.x that splits an upload into as many commits as it sees fit.
        commit = api.create_commit(
            full_id,
            [CommitOperationAdd(file.name, plan.folder / file.name) for file in plan.files],
            commit_message=commit_message or "Upload ToSA model",
            revision=revision,
            create_pr=create_pr,
        )
    except TosaError:
        raise
    except Exception as error:
        # The client's errors have no common base: bare RuntimeError, ValueError and Exception are among them.
        raise explain_hub_error(error, f"{repo_id!r} could not be pushed") from error
    return PushReport(str(repo_url), commit.commit_url, commit.pr_url, commit.oid, changed=commit.oid != head.sha)


def _find_head(api: HfApi, repo_id: str, revision: str | None) -> tuple[ModelInfo, bool]:
    """What a commit to `revision` would start from, and whether it is a branch yet to be made."""
    try:
        return api.model_info(repo_id, revision=revision), False
    except RevisionNotFoundError:
        return api.model_info(repo_id), True


def _check_visibility(head: ModelInfo, private: bool | None, repo_url: str) -> None:
    # The client ignores `private` for a repository that exists: what was meant to be private would become public.
    if private is not None and head.private is not None and head.private != private:
        actual, flag = ("private", "--public") if head.private else ("public", "--private")
        raise InputError(
            f"{head.id} already exists and is {actual}, but {flag} was given: "
            f"change it on {repo_url}/settings, or leave out {flag}."
        )


def _check_card(api: HfApi, head: ModelInfo) -> None:
    if all(file.rfilename != _CARD for file in head.siblings or ()):
        return
    card = api.hf_hub_download(head.id, _CARD, revision=head.sha)
    try:
        metadata = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError):
        metadata = {}
    if metadata.get("library_name") != _LIBRARY:
        raise HubError(
            f"{head.id} already has a model card that is not from tosa: pass --overwrite-card to replace its {_CARD}."
        )
