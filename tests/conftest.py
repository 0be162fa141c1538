"""What every test relies on: one thread, and no word from the network."""

import pytest
import torch
from huggingface_hub import constants

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def stay_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the real Hub; the fixture `stub_hub` comes after this one and switches its own Hub on."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
