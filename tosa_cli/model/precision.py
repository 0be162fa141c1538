"""What does not hold while tokens are chosen: gradients, and half precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

AS_IT_IS = nullcontext()


def no_gradient() -> AbstractContextManager[None]:
    """A context in which nothing is differentiated."""
    # In a pass for one image entering and leaving it costs as much as an operation on a tensor.
    return torch.no_grad() if torch.is_grad_enabled() else AS_IT_IS


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context in which autocast does not bring what is computed on a device to half precision."""
    # Only where autocast is on: programs are exported and compiled without it, and need no word of it.
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return AS_IT_IS
    return torch.autocast(device.type, enabled=False)
