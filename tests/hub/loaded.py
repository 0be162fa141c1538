"""Models on the stub Hub."""

import pytest
import torch
from torch import nn

import tosa_cli
from tosa_cli.errors import TosaError

from ..model.tiny_models import make_images


def is_same(loaded: nn.Module, model: nn.Module) -> bool:
    images = make_images(size=64)
    return torch.equal(loaded.eval()(images), model(images))


def load_error(name: str, kind: type[TosaError], **options: str) -> str:
    with pytest.raises(TosaError) as failure:
        tosa_cli.load(name, **options)  # type: ignore[arg-type]
    message = str(failure.value)
    assert type(failure.value) is kind, message
    assert message.startswith(name) and "\n" not in message and message.endswith(".")
    return message
