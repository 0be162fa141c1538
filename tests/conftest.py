"""What every test relies on: one thread, quick copies, no word from the network, and Ctrl-C as in a terminal."""

import copy
import gc
import signal
from collections import OrderedDict
from typing import Any

import pytest
import torch
from huggingface_hub import constants

torch.set_num_threads(1)


def copy_ordered(original: OrderedDict[Any, Any], memo: dict[int, Any]) -> OrderedDict[Any, Any]:
    """A deep copy of an ordered dictionary, entry by entry."""
    copied: OrderedDict[Any, Any] = OrderedDict()
    memo[id(original)] = copied
    for key, value in original.items():
        copied[copy.deepcopy(key, memo)] = copy.deepcopy(value, memo)
    for name, value in vars(original).items():
        setattr(copied, name, copy.deepcopy(value, memo))
    return copied


# Every module of PyTorch has ten, most of them empty, and Python's own way with them takes a third of a model's copy.
copy._deepcopy_dispatch[OrderedDict] = copy_ordered  # type: ignore[attr-defined]

# What a shell starts in the background ignores Ctrl-C, and what nohup starts a lost terminal; so would the tests.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again, nor often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def stay_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the real Hub; the fixture `stub_hub` comes after this one and switches its own Hub on."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
