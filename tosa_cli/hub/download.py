"""Files from the Hub, through the client's cache; that there is no network is told at once. Imports no torch.

The client's own download asks the Hub six times with growing pauses before it gives up on a file that is not in its
cache, and timm downloads so under each name that the weights may have: almost a minute. Asking for a file's metadata is
tried once, so that is done first.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

from tosa_cli import __version__
from tosa_cli.hub.errors import explain_hub_error

_LIBRARY = "tosa"


def fetch_file(
    repo_id: str,
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    shown: str | None = None,
) -> Path:
    """Fetch a file of a repository; where the Hub cannot be reached or refuses, the file in the cache is taken.

    Args:
        repo_id: `org/name`.
        name: The file.
        revision: Branch, tag or commit; None is the main branch.
        cache_dir: The client's cache; None takes its own, see `HF_HOME`.
        token: Access token; None takes `HF_TOKEN` or the login.
        shown: What to call the repository in an error; None takes its id.

    Returns:
        The file in the cache, in the folder that has the commit's name.

    Raises:
        TosaError: If it can neither be fetched nor found in the cache; see `explain_hub_error`.
    """
    try:
        return _fetch(repo_id, name, revision, cache_dir, token)
    except Exception as error:
        raise explain_hub_error(error, shown or repo_id) from error


def find_file(repo_id: str, name: str, *, revision: str, shown: str | None = None) -> Path | None:
    """Fetch a file that a repository may lack, as `fetch_file` does.

    Args:
        repo_id: `org/name`.
        name: The file.
        revision: The commit, so that all files of a model are of the same one.
        shown: What to call the repository in an error; None takes its id.

    Returns:
        The file in the cache; None if the repository has no such file at that commit.

    Raises:
        TosaError: If that cannot be told; see `explain_hub_error`.
    """
    if try_to_load_from_cache(repo_id, name, revision=revision) is _CACHED_NO_EXIST:
        return None
    try:
        return _fetch(repo_id, name, revision, None, None)
    except RemoteEntryNotFoundError:
        # The client keeps a note of it where it downloads, which answers later even without a network.
        with contextlib.suppress(RemoteEntryNotFoundError):
            hf_hub_download(repo_id, name, revision=revision)
        return None
    except Exception as error:
        raise explain_hub_error(error, shown or repo_id) from error


def check_available(repo_id: str, names: Sequence[str], shown: str) -> None:
    """Check that one of some files is in the cache, or that the Hub can be asked for it.

    Args:
        repo_id: `org/name`, or `org/name@revision`.
        names: The files, the likeliest first. That the repository lacks it is left to whoever fetches the others.
        shown: What to call the repository in an error.

    Raises:
        TosaError: If the Hub cannot be reached or refuses; see `explain_hub_error`.
    """
    repo_id, _, revision = repo_id.partition("@")
    try:
        if any(_is_cached(repo_id, name, revision or None, None) for name in names):
            return
        _ask_once(repo_id, names[0], revision or None, None)
    except EntryNotFoundError:
        return
    except Exception as error:
        raise explain_hub_error(error, shown) from error


def cached_commit(repo_id: str, names: Sequence[str]) -> str | None:
    """The commit that the main branch of a repository was at when one of some files was downloaded last.

    Args:
        repo_id: `org/name`.
        names: The files, the likeliest first.

    Returns:
        The commit; None if the cache has none of the files.
    """
    for name in names:
        path = try_to_load_from_cache(repo_id, name)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def _fetch(
    repo_id: str, name: str, revision: str | None, cache_dir: str | Path | None, token: str | bool | None
) -> Path:
    if not _is_cached(repo_id, name, revision, cache_dir):
        _ask_once(repo_id, name, revision, token)
    about: Any = {"cache_dir": cache_dir, "token": token, "library_name": _LIBRARY, "library_version": __version__}
    return Path(hf_hub_download(repo_id, name, revision=revision, **about))


def _ask_once(repo_id: str, name: str, revision: str | None, token: str | bool | None) -> None:
    url = hf_hub_url(repo_id, name, revision=revision)
    get_hf_file_metadata(url, token=token, library_name=_LIBRARY, library_version=__version__)


def _is_cached(repo_id: str, name: str, revision: str | None, cache_dir: str | Path | None) -> bool:
    return isinstance(try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision), str)
