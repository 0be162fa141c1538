"""What every test relies on: one thread, quick copies, no word from the network, and Ctrl-C as in a terminal."""

import copy
import functools
import gc
import logging
import signal
from collections import OrderedDict
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn

torch.set_num_threads(1)

# pytest listens to every logger that hands nothing on. To this one PyTorch tells all of each compilation, and works it
# out if anyone listens.
logging.getLogger("torch.__trace").propagate = True


def copy_ordered(original: OrderedDict[Any, Any], memo: dict[int, Any]) -> OrderedDict[Any, Any]:
    """A deep copy of an ordered dictionary, entry by entry."""
    copied: OrderedDict[Any, Any] = OrderedDict()
    memo[id(original)] = copied
    for key, value in original.items():
        copied[copy.deepcopy(key, memo)] = copy.deepcopy(value, memo)
    for name, value in vars(original).items():
        setattr(copied, name, copy.deepcopy(value, memo))
    return copied


def copy_module(original: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of a module, as Python makes it of one that does not say how, attribute by attribute."""
    copied = type(original).__new__(type(original))
    memo[id(original)] = copied
    attributes = copied.__dict__
    for name, value in original.__dict__.items():
        kind = type(value)
        if kind in UNCHANGING:
            attributes[name] = value
        elif kind in EMPTIED and not value and id(value) not in memo:
            attributes[name] = memo[id(value)] = kind()
        else:
            attributes[name] = copy.deepcopy(value, memo)
    return copied


@functools.cache
def copies_by_attributes(kind: type[nn.Module]) -> bool:
    """Whether Python copies modules of a type attribute by attribute: whether none of its classes says otherwise."""
    said = {name for base in kind.__mro__ if base not in (nn.Module, object) for name in vars(base)}
    return said.isdisjoint({"__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__slots__", "__new__"})


def copy_by_type(original: nn.Module, memo: dict[int, Any]) -> Any:
    """A deep copy of a module, by the quick way where it is the same."""
    if copies_by_attributes(type(original)):
        return copy_module(original, memo)
    return copy._reconstruct(original, memo, *original.__reduce_ex__(4))  # type: ignore[attr-defined]


UNCHANGING, EMPTIED = {bool, int, float, str, type(None)}, {OrderedDict, dict, set}

# Every module of PyTorch has ten ordered dictionaries, most of them empty: Python's own way with them and with the
# module around them takes three quarters of a model's copy.
copy._deepcopy_dispatch[OrderedDict] = copy_ordered  # type: ignore[attr-defined]
nn.Module.__deepcopy__ = copy_by_type  # type: ignore[attr-defined]

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
