"""Exported files: weights beside them, a full disk, what fails; what is not checked is never written."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.sentences import fragments
from tosa_cli.errors import ConfigError, ExportError, InputError, OutputError
from tosa_cli.export import export as export_module
from tosa_cli.export import onnx_file
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.export import export_model

from .exported import images_of, run_onnx, trace_once
from .tiny import shortest_tosa, tiny_tosa


@pytest.mark.usefixtures("translates_once")
def test_weights_too_large_for_one_file_stand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_tosa(), tmp_path / "model.onnx"
    with monkeypatch.context() as patched:
        patched.setattr(onnx_file, "SINGLE_FILE_BYTES", 1000)
        report = export_model(model, path)
    assert report.data_file == str(tmp_path / "model.onnx.data")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    with torch.no_grad():
        assert torch.allclose(run_onnx(path, images_of(2))["logits"], model(images_of(2)), atol=1e-4)
    path.unlink()
    with pytest.raises(OutputError, match=fragments.MODEL_ONNX_DATA_OVERWRITE):
        export_model(model, path)
    assert export_model(model, path, overwrite=True).data_file is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("translates_once")
def test_an_old_file_never_stands_beside_the_weights_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "model.onnx", os.replace
    monkeypatch.setattr(onnx_file, "SINGLE_FILE_BYTES", 1000)
    export_model(tiny_tosa(), path)

    def stop(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_tosa(), path, overwrite=True)
    assert not path.exists()


def test_a_full_disk_does_not_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's own writer of files would; so the export is in a child.
    path = tmp_path / "model.pt2"
    model = shortest_tosa(selector="probe")
    trace_once(monkeypatch, model)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            export_model(model, path, ExportConfig(format="pt2"))
        except OutputError:
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert not list(tmp_path.iterdir())


def test_a_failed_check_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise ExportError("It differs.")

    monkeypatch.setattr(export_module, "check_export", fail)
    traced = torch.export.export(nn.Identity(), (torch.zeros(2),))
    monkeypatch.setattr(export_module, "trace", lambda *_, **__: traced)
    with pytest.raises(ExportError):
        export_model(tiny_tosa(), path, ExportConfig(format="pt2"), overwrite=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("old.onnx", "old.onnx .*--overwrite"),
        ("model.pt2", r" \.onnx .*model\.pt2"),
        ("folder.onnx", "folder.onnx "),
        ("nowhere/model.onnx", "nowhere "),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, named: str
) -> None:
    monkeypatch.setattr(export_module, "write_onnx", None)
    (tmp_path / "old.onnx").write_bytes(b"old")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=named):
        export_model(tiny_tosa(), tmp_path / name)
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError, match=rf" {missing},.*tosa-cli\[export\]"):
        export_model(tiny_tosa(), tmp_path / "model.onnx")


def test_a_model_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fragments.BFLOAT16_ON_CPU):
        export_model(tiny_tosa().to(torch.bfloat16), tmp_path / "model.onnx")
