"""What an exported file does in OpenVINO is told, in float32 and in the precision that OpenVINO picks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny_models import make_images
from tests.sentences import fragments
from tosa_cli.cli.export import describe_openvino
from tosa_cli.errors import InputError
from tosa_cli.export import openvino_file
from tosa_cli.export.export import export_model
from tosa_cli.export.openvino_file import OpenVinoModule, OpenVinoReport, check_openvino_installed

from .tiny import tiny_tosa

SETTINGS: list[dict[str, Any]] = [
    {"selector": "ward", "bypass": "mean", "layers": (1, 2, 3), "keep_rate": (0.9, 0.6, 0.3)},
    {"selector": "similarity", "bypass": "nearest+affine", "neighbors": 4, "layers": (1, 2), "span": 2},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_file_computes_the_same_in_openvino_and_nearly_in_half_precision(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    pytest.importorskip("openvino")
    model, path = tiny_tosa(**settings), tmp_path / "model.onnx"
    report = export_model(model, path).openvino
    assert report is not None and report.problem is None and report.not_finite == 0
    assert report.check is not None and report.check.same_choices + report.check.tied_choices == 8
    assert report.cosine["logits"] > 0.98
    images = make_images(5, size=32)
    tight = OpenVinoModule(path, "float32")(images)["logits"]
    assert torch.allclose(tight, model(images), atol=1e-4)
    # Equal patches are at distance 0 from each other, from which half precision once made NaN.
    equal = torch.full((2, 3, 32, 32), 0.4)
    for precision in ("float32", "bfloat16"):
        assert OpenVinoModule(path, precision)(equal)["logits"].isfinite().all()


def test_what_it_does_there_is_told_in_sentences() -> None:
    report = OpenVinoReport("openvino 1", None, "bfloat16", {"logits": 0.99951}, 0, None)
    told = " ".join(describe_openvino(report))
    assert "bfloat16" in told and "logits 0.9995" in told and fragments.DO_NOT not in told
    broken = dataclasses.replace(report, not_finite=3, problem="In bfloat16, 3 of 8 images are not finite.")
    told = " ".join(describe_openvino(broken))
    assert fragments.DO_NOT_USE_IT_IN in told and "3 of 8" in told and "0.9995" not in told


@pytest.mark.usefixtures("translates_once")
def test_without_openvino_nothing_is_told_and_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_file, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tosa-cli\[export,openvino\]"):
        check_openvino_installed()
    assert export_model(tiny_tosa(), tmp_path / "model.onnx").openvino is None
