"""Puts a converted folder on the Hugging Face Hub, in one commit. Imports no torch."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from tosa_cli import __version__
from tosa_cli.errors import CheckpointError, InputError, TosaError
from tosa_cli.hub.errors import explain_hub_error
from tosa_cli.hub.folder import CARD, CONFIG, RECIPE, WEIGHTS, read_json
from tosa_cli.hub.public import add_pictures, address_card, public_card, public_config, public_recipe

_LIBRARY = "tosa"
_NEEDED_FILES = (WEIGHTS, CONFIG, CARD)

# A list of what goes up, and not of what stays: a training checkpoint or a log must never slip through.
PUSHED_FILES = (*_NEEDED_FILES, RECIPE, "*.png")


@dataclass(frozen=True)
class PushedFile:
    """A file that goes to the Hub.

    Attributes:
        name: Its name in the repository.
        size_bytes: Its size in bytes.
        content: What goes up: a file as it is, or bytes.
    """

    name: str
    size_bytes: int
    content: Path | bytes = dataclasses.field(repr=False)


@dataclass(frozen=True)
class PushPlan:
    """What of a converted folder goes to the Hub.

    Attributes:
        folder: The converted folder.
        files: Its files that go up.
        repo_id: Where the card says that the model is; None if it names the folder.
    """

    folder: Path
    files: tuple[PushedFile, ...]
    repo_id: str | None = None

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
        card_kept: Whether the repository has another model card, which was left as it is.
    """

    repo_url: str
    commit_url: str
    pr_url: str | None
    oid: str
    changed: bool
    card_kept: bool = False


def plan_push(folder: Path, repo_id: str | None = None, pictures: Mapping[str, bytes] | None = None) -> PushPlan:
    """List what of a converted folder goes to the Hub: `PUSHED_FILES`, as far as they exist.

    Local paths in them become names of folders, and the card says how to load the model from the repository.

    Args:
        folder: The converted folder.
        repo_id: Where it goes, so that sizes are right; the push itself knows it anyway.
        pictures: PNG by name, to go beside the card and to be shown by it.

    Raises:
        CheckpointError: If the folder does not exist or is not a converted model.
        InputError: If the repository id is not valid.
    """
    pictures = pictures or {}
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise explain_hub_error(error, f"{repo_id!r} could not be pushed") from error
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}: give one that `tosa convert` wrote.")
    missing = [name for name in _NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a converted model, as it has no {' and no '.join(missing)}: "
            "give a folder that `tosa convert` wrote."
        )
    config = read_json(folder / CONFIG)
    contents: dict[str, Path | bytes] = {
        path.name: path for pattern in PUSHED_FILES for path in sorted(folder.glob(pattern)) if path.is_file()
    }
    contents |= pictures
    contents[CONFIG] = public_config((folder / CONFIG).read_bytes())
    if RECIPE in contents:
        contents[RECIPE] = public_recipe((folder / RECIPE).read_bytes(), config.get("tosa", {}).get("base_hub_id"))
    card = add_pictures(public_card((folder / CARD).read_text(encoding="utf-8"), config), tuple(pictures), config)
    contents[CARD] = (address_card(card, repo_id) if repo_id else card).encode()
    files = tuple(PushedFile(name, _size(content), content) for name, content in contents.items())
    return PushPlan(folder, files, repo_id)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def push_folder(
    plan: PushPlan,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite_card: bool | Callable[[str], bool] = False,
) -> PushReport:
    """Put the files of `plan` into a repository, as one commit; the repository is made if it does not exist.

    Args:
        plan: What to push, from `plan_push`.
        repo_id: `namespace/name`; without a namespace, the user's own.
        private: Whether the repository is to be private; None leaves it to the Hub's default, or as it is.
        revision: Branch to commit to, made from the main branch if it does not exist; None is the main branch.
        create_pr: Open a pull request on the main branch instead of committing to it.
        commit_message: First line of the commit.
        overwrite_card: Whether to replace another model card that the repository already has; or what decides it, which
            is called with the repository's id if there is such a card.

    Raises:
        InputError: If the repository id is not valid, the repository exists with another visibility than `private`,
            or a pull request was asked for on another branch than the main one.
        HubError: If no or no sufficient access token was found, the Hub cannot be reached, or the Hub refuses.
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
        files = plan.files if plan.repo_id == full_id else _addressed(plan, full_id)
        has_other_card = _has_other_card(api, head, files)
        card_kept = has_other_card and not (overwrite_card(full_id) if callable(overwrite_card) else overwrite_card)
        if revision is not None and is_new_branch:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        # Not `upload_folder`: since 2.x that splits an upload into as many commits as it sees fit.
        commit = api.create_commit(
            full_id,
            [CommitOperationAdd(f.name, f.content) for f in files if not (card_kept and f.name == CARD)],
            commit_message=commit_message or "Upload ToSA model",
            revision=revision,
            create_pr=create_pr,
        )
    except TosaError:
        raise
    except Exception as error:
        # The client's errors have no common base: bare RuntimeError, ValueError and Exception are among them.
        raise explain_hub_error(error, f"{repo_id!r} could not be pushed") from error
    changed = commit.oid != head.sha
    return PushReport(str(repo_url), commit.commit_url, commit.pr_url, commit.oid, changed, card_kept)


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


def _addressed(plan: PushPlan, repo_id: str) -> tuple[PushedFile, ...]:
    """The files of a plan, with a card that says how to load the model from this repository."""
    files = []
    for file in plan.files:
        if file.name == CARD and isinstance(file.content, bytes):
            content = address_card(file.content.decode(), repo_id, before=plan.repo_id).encode()
            file = PushedFile(file.name, len(content), content)
        files.append(file)
    return tuple(files)


def _has_other_card(api: HfApi, head: ModelInfo, files: tuple[PushedFile, ...]) -> bool:
    if all(file.rfilename != CARD for file in head.siblings or ()):
        return False
    there = Path(api.hf_hub_download(head.id, CARD, revision=head.sha)).read_bytes()
    return all(there != file.content for file in files if file.name == CARD)
