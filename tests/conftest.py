"""What every test relies on: one thread, no word from the network, and Ctrl-C as in a terminal."""

import gc
import signal

import pytest
import torch
from huggingface_hub import constants

torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and what nohup starts a lost terminal; so would the tests.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def stay_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the real Hub; the fixture `stub_hub` comes after this one and switches its own Hub on."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
