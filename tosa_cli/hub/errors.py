"""What the Hugging Face Hub client raises, each as one sentence, for uploads and downloads alike. Imports no torch."""

from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    # Taken from the client, because the HTTP library below it is httpx or httpx2, by the client's version.
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tosa_cli.errors import HubError, InputError, SourceError, TosaError

# Subclasses stand before their base: a gated repository is also "not found".
_REASONS: tuple[tuple[type[Exception], type[TosaError], str], ...] = (
    (
        HFValidationError,
        InputError,
        "the repository id is not valid; give namespace/name of letters, digits, '-', '_' and '.', "
        "as in me/deit_tiny-tosa",
    ),
    (
        LocalTokenNotFoundError,
        HubError,
        "there is no access token; log in with `hf auth login` or set HF_TOKEN to a token with write access",
    ),
    (OfflineModeIsEnabled, HubError, "offline mode is on; unset HF_HUB_OFFLINE and try again"),
    (
        GatedRepoError,
        HubError,
        "access to the repository is restricted; ask for it on the repository's page, "
        "then log in with `hf auth login` or set HF_TOKEN",
    ),
    (DisabledRepoError, HubError, "the repository has been disabled; use another one"),
    (
        RepositoryNotFoundError,
        SourceError,
        "there is no such repository, or it is private; check the name, "
        "and log in with `hf auth login` or set HF_TOKEN if it is private",
    ),
    (
        RevisionNotFoundError,
        SourceError,
        "the repository has no such branch, tag or commit; check the revision",
    ),
)


def explain_hub_error(error: BaseException, what: str) -> TosaError:
    """Say in one sentence why the Hub client failed, and what to do next.

    The causes of `error` are looked at as well, as the client wraps some failures: a download that finds no network
    ends in `LocalEntryNotFoundError`, a broken upload in `RuntimeError`.

    Args:
        error: What the client raised.
        what: Beginning of the sentence, before a colon: "me/model could not be pushed", or "me/model" alone.

    Returns:
        For the caller to raise: an `InputError` if the repository id is not valid, a `SourceError` if the repository,
        the revision or a file does not exist, a `HubError` for all else.
    """
    kind, reason = _find_reason(error)
    return kind(f"{what}: {reason}.")


def _find_reason(error: BaseException) -> tuple[type[TosaError], str]:
    for cause in _chain(error):
        for raised, kind, reason in _REASONS:
            if isinstance(cause, raised):
                return kind, reason
        if isinstance(cause, RemoteEntryNotFoundError):
            return SourceError, f"the repository has no file {cause.response.url.path.rpartition('/')[2]}"
        if isinstance(cause, HfHubHTTPError):
            return HubError, _refusal(cause)
        if isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
            return HubError, (
                f"{constants.ENDPOINT} cannot be reached ({_one_line(str(cause)) or type(cause).__name__}); "
                "check the network, the proxy settings and HF_ENDPOINT, and try again"
            )
    return HubError, _one_line(str(error)) or type(error).__name__


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    message = _one_line(error.server_message or error.response.reason_phrase)
    if status == 401:
        return (
            "the access token was refused; log in again with `hf auth login` or set HF_TOKEN to a valid token "
            "(HF_TOKEN wins over the login)"
        )
    if status == 403:
        return (
            f"the Hub does not allow it ({message}); check the namespace, "
            f"or use a token that has the right, from {constants.ENDPOINT}/settings/tokens"
        )
    if status == 429 or status >= 500:
        return f"the Hub answered {status} ({message}); wait a while and try again"
    return f"the Hub answered {status}: {message}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
