"""Adapters of PEFT beside weights or among them: what they change is in no weight until they are merged."""

import re
from collections.abc import Iterable

from tosa_cli.errors import CheckpointError, TosaError
from tosa_cli.hub.files import Files

ADAPTER_CONFIG = "adapter_config.json"

_OF_ADAPTERS = re.compile(r"\.(lora_|hada_w|lokr_w|ia3_l|oft_[rR]|boft_|vera_lambda|adaption_)")
"""What PEFT's methods call the tensors that they put beside a layer's own."""


def check_no_adapter_beside(files: Files) -> None:
    """Check that no adapter lies beside a model's weights.

    Raises:
        CheckpointError: If one does.
    """
    try:
        found = files.find(ADAPTER_CONFIG)
    except TosaError:
        return  # the Hub cannot be reached, and its cache does not know
    if found is not None:
        raise _unmerged(files.shown, ADAPTER_CONFIG)


def check_no_adapter_among(names: Iterable[str], shown: str) -> None:
    """Check that no tensor is an adapter's.

    Args:
        names: Names of the tensors.
        shown: What to call what holds them.

    Raises:
        CheckpointError: If one is.
    """
    found = next((name for name in names if _OF_ADAPTERS.search(name)), None)
    if found is not None:
        raise _unmerged(shown, repr(found))


def _unmerged(shown: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{shown} holds an adapter that is not merged into the weights, as {what}: load it with peft, call "
        f"merge_and_unload(), and save that model."
    )
