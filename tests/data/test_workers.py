"""A process that loads data and is killed is told as what it is."""

import os
import signal

import pytest
from torch.utils.data import DataLoader, Dataset

from tests.sentences import fragments
from tosa_cli.data.workers import lost_workers_told
from tosa_cli.errors import DataProcessError


class Killed(Dataset[int]):
    """Kills the process that reads it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_process_is_told_with_what_helps() -> None:
    with pytest.raises(DataProcessError) as failure, lost_workers_told(lambda: "Then go on."):
        list(DataLoader(Killed(), num_workers=1))
    assert str(failure.value) == (
        "A process that loads data was killed, most likely for want of memory. Pass a smaller --workers, 0 loads in "
        "the main process, or a smaller --batch-size. Then go on."
    )
    assert failure.value.exit_code == 1


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=fragments.OUT_OF_PAPER), lost_workers_told():
        raise RuntimeError("out of paper")
