"""What is slow about an export is done once, or not where it comes to nothing: it is most of what these tests take."""

import functools
import typing
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._export.serde import schema, serialize
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tosa_cli.export import onnx_file
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.export import export_model

from .tiny import tiny_tosa


@pytest.fixture(scope="session", autouse=True)
def look_up_once() -> Iterator[None]:
    """PyTorch's exporter looks up how each operation is said in ONNX anew for every file."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session", autouse=True)
def read_types_once() -> Iterator[None]:
    """PyTorch reads the types of a class anew for every object of it in a file."""

    @functools.cache
    def read(kind: type) -> dict[str, Any]:
        return typing.get_type_hints(kind, globalns=vars(schema))

    seen = SimpleNamespace(**{**vars(typing), "get_type_hints": lambda kind, globalns: read(kind)})
    with patch.object(serialize, "typing", seen):
        yield


@pytest.fixture(scope="session", autouse=True)
def remember_no_shapes() -> Iterator[None]:
    """What PyTorch remembers of an operation's shapes, to trace it again, takes longer than to work them out once."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A model, its ONNX file for any number of images with all outputs, the report, and what PyTorch made of it."""
    export, found = torch.onnx.export, []

    def keep(*args: Any, **settings: Any) -> Any:
        found.append(export(*args, **settings))
        return found[-1]

    model = tiny_tosa()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": [f"class {i}" for i in range(10)]}
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    config = ExportConfig(outputs=("logits", "last_hidden_state", "pooler_output"))
    with patch.object(torch.onnx, "export", keep):
        report = export_model(model, path, config, name="tiny")
    return model, path, report, found[0]


@pytest.fixture
def plain(exported: tuple[Any, ...]) -> tuple[Any, ...]:
    """A model, its ONNX file for any number of images with all outputs, and the report."""
    return exported[:3]


@pytest.fixture
def translates_once(exported: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `tiny_tosa()` exported without translating it again: for tests of what is done with what comes out."""
    monkeypatch.setattr(onnx_file, "trace", lambda *_: None)
    monkeypatch.setattr(onnx_file, "decompose", lambda _: None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: exported[3])
