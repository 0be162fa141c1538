"""Where half precision has to wait."""

import contextlib
from contextlib import AbstractContextManager

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context in which autocast does not bring what is computed on a device to half precision."""
    # Only where autocast is on: programs are exported and compiled without it, and need no word of it.
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
