"""Where to compute."""

from typing import Literal

import torch

from tosa_cli.errors import ConfigError


def pick_device(device: Literal["auto", "cpu", "cuda"] = "auto") -> torch.device:
    """The device that a setting names; `auto` is the accelerator of this machine, or the CPU without one.

    Raises:
        ConfigError: If it is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device here: pass --device cpu, or leave --device out.")
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    return torch.device(device)
