"""Models on the stub Hub."""

import pytest
import torch
from torch import nn

import tosa_cli
from tosa_cli.errors import TosaError
from tosa_cli.model.tosa_vit import TosaViT

from ..model.tiny_models import make_images, make_tosa, make_vit


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


@pytest.fixture(name="models", scope="module")
def make_models() -> list[TosaViT]:
    """Two states of a model, of five classes and images of 64 pixels."""
    size = {"img_size": 64, "dynamic_img_size": False}
    return [make_tosa(make_vit(num_classes=5, seed=seed, **size)) for seed in (0, 1)]


@pytest.fixture(name="files", scope="module")
def read_files(models: list[TosaViT], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    folders = [tosa_cli.save(model, tmp_path_factory.mktemp("models") / str(i)) for i, model in enumerate(models)]
    return [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
