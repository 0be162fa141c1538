"""Random numbers that depend on what is computed, and not on what was computed before."""

import random

import numpy as np
import torch
from accelerate.utils import set_seed


class seeded:
    """Draws random numbers that depend on the given numbers alone, and puts the old state back."""

    def __init__(self, *numbers: int) -> None:
        self.seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])

    def __enter__(self) -> None:
        self.states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed)
        # Images are changed on the CPU alone; torch.manual_seed would seed every device, a millisecond an image.
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self.states[0])
        np.random.set_state(self.states[1])
        torch.set_rng_state(self.states[2])


def seed_step(seed: int, epoch: int, batch: int, process: int) -> None:
    """Set all random numbers of a step, so that none depends on the steps before."""
    set_seed((seed * 1_000_003 + epoch * 10_007 + batch * 101 + process) % 2**31)
