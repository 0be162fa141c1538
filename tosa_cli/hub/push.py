"""Puts a converted folder on the Hugging Face Hub, in one commit. Imports no torch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from tosa_cli import __version__
from tosa_cli.errors import CheckpointError, InputError, TosaError
from tosa_cli.hub.errors import explain_hub_error
from tosa_cli.hub.folder import CARD, CONFIG, RECIPE, WEIGHTS, read_json
from tosa_cli.hub.public import add_pictures, address_card, public_card, public_config, public_recipe

_LIBRARY = "tosa"
_NEEDED_FILES = (WEIGHTS, CONFIG, CARD)

_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""What transformers writes beside a whole model."""

# A list of what goes up, and not of what stays: a training checkpoint or a log must never slip through.
PUSHED_FILES = (*_NEEDED_FILES, RECIPE, "*.png", *_PROCESSOR_FILES)


@dataclass(frozen=True)
class PushedFile:
    """A file that goes to the Hub.

    Attributes:
        name: Its name in the repository.
        size_bytes: Its size in bytes.
        content: What goes up, as it was when it was planned.
    """

    name: str
    content: bytes = dataclasses.field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Its size in bytes."""
        return len(self.content)


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
    for key in ("model_args", "tosa"):
        if not isinstance(config.get(key, {}), dict):
            raise CheckpointError(f"{folder / CONFIG} should hold an object under {key!r}, not {config[key]!r}.")
    contents = {**_read(folder), **pictures}
    contents[CONFIG] = public_config(contents[CONFIG])
    try:
        if RECIPE in contents:
            contents[RECIPE] = public_recipe(contents[RECIPE], config.get("tosa", {}).get("base_hub_id"))
    except (ValueError, RecursionError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / RECIPE} cannot be read as YAML ({reason}): correct it, or remove it."
        ) from error
    try:
        card = add_pictures(public_card(contents[CARD].decode(), config), tuple(pictures), config)
    except ValueError as error:
        raise CheckpointError(f"{folder / CARD} cannot be read as text ({error}): save it in UTF-8.") from error
    contents[CARD] = (address_card(card, repo_id) if repo_id else card).encode()
    return PushPlan(folder, tuple(PushedFile(name, content) for name, content in contents.items()), repo_id)


def _read(folder: Path) -> dict[str, bytes]:
    """The files that go up, all of one moment.

    Raises:
        CheckpointError: If one is a link out of the folder, cannot be read, or was replaced while they were read.
    """
    paths = [path for pattern in PUSHED_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{path} is a link to {path.resolve()}, out of the folder, and links are not followed: put the file "
                f"itself there, or remove the link."
            )
    before = _stamps(folder, paths)
    try:
        contents = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error}).") from error
    if _stamps(folder, paths) != before:
        raise CheckpointError(
            f"{folder} was replaced while it was read: push it once the run that writes it has ended."
        )
    return contents


def _stamps(folder: Path, paths: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What tells a folder and its files from those that take their place; None for one that is gone."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in (folder, *paths):
        try:
            found = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return stamps


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
        if file.name == CARD:
            file = PushedFile(CARD, address_card(file.content.decode(), repo_id, before=plan.repo_id).encode())
        files.append(file)
    return tuple(files)


def _has_other_card(api: HfApi, head: ModelInfo, files: tuple[PushedFile, ...]) -> bool:
    if all(file.rfilename != CARD for file in head.siblings or ()):
        return False
    there = Path(api.hf_hub_download(head.id, CARD, revision=head.sha)).read_bytes()
    return all(there != file.content for file in files if file.name == CARD)
