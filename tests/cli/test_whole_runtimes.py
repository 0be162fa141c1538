"""A whole model is exported, quantised, timed and drawn beside the dense one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

import tosa_cli
from tests.cli.conftest import Tosa, write_whole
from tests.export.conftest import look_up_once  # noqa: F401
from tests.model.whole_models import (
    CONVERTED,
    clipseg,
    depth_anything,
    dinov2,
    hf,
    upernet,
    vitpose,
    yolos,
)
from tests.sentences import fragments
from tosa_cli import TosaConfig
from tosa_cli.measure import speed
from tosa_cli.model.runs import converted_runs

from .whole_commands import (
    GROUPS,
    write_depth,
    write_three_photos,  # noqa: F401 (the fixture `photos`)
)

deit = CONVERTED["deit"][0]


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """As `source`, of three layers, of which its head reads two: exporters take their time for each."""
    torch.manual_seed(0)
    backbone = dinov2(num_hidden_layers=3, out_indices=[2, 3])
    model = depth_anything(backbone_config=backbone, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 16])
    return write_depth(model, tmp_path / "depth")


def test_a_whole_model_becomes_one_checked_file(tosa: Tosa, short: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "whole", tmp_path / "whole.onnx"
    tosa("convert", str(short), "--layers", "2,3", *GROUPS, "-o", str(folder))
    report = json.loads(tosa("export", str(folder), "-o", str(file), "--json").out)
    assert report["outputs"] == ["predicted_depth"]
    assert report["difference"] < 1e-4
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    images = torch.randn(1, 3, 56, 56)
    (depth,) = onnxruntime.InferenceSession(file).run(None, {"pixel_values": images.numpy()})
    assert report["input"] == ["batch", 3, 56, 56]
    with torch.no_grad():
        np.testing.assert_allclose(depth, model(images).predicted_depth.numpy(), atol=1e-4)


def test_a_quantised_file_is_compared_by_its_outputs(
    tosa: Tosa, short: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    folder, file = tmp_path / "whole", tmp_path / "small.onnx"
    tosa("convert", str(short), "--layers", "3", *GROUPS, "-o", str(folder))
    how = ["--quantize", "static", "-b", "1", "--data-dir", str(photos), "--max-samples", "2"]
    report = json.loads(tosa("export", str(folder), "-o", str(file), *how, "--json").out)
    assert set(report["quantized"]["outputs"]["predicted_depth"]) == {"abs_rel", "delta1", "correlation"}
    assert report["quantized"]["size_mb"] < report["size_mb"]
    (depth,) = onnxruntime.InferenceSession(file).run(None, {"pixel_values": np.zeros((1, 3, 56, 56), np.float32)})
    assert np.isfinite(depth).all()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_whole_model_is_timed_beside_the_dense_one(
    tosa: Tosa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    monkeypatch.chdir(tmp_path)
    write_whole()
    report = tosa(f"bench whole-tosa -b 1 --rounds 1 --device cpu --runtime {runtime} --json").json
    assert report["img_size"] == [56, 56]
    assert report["speedup"] > 0 and report["ideal_speedup"] > 1
    assert (report["tosa"]["peak_memory_mb"] is None) == (runtime == "onnxruntime")
    for options in ("--img-size=70", "--sweep --img-sizes 70", "--peers --img-size 70"):
        assert fragments.LEAVE_OUT_IMG_SIZE in tosa(f"bench whole-tosa {options}").err


@pytest.mark.parametrize("make", [depth_anything, vitpose, yolos, upernet, clipseg, deit])
def test_outputs_are_drawn_beside_those_with_every_token(tosa: Tosa, photos: Path, tmp_path: Path, make: Any) -> None:
    folder, picture = tmp_path / "whole", tmp_path / "picture.png"
    torch.manual_seed(0)
    model = tosa_cli.convert(make().eval(), TosaConfig(layers=(2, 3), keep_rate=0.5, selector="ward", bypass="mean"))
    height, width = converted_runs(model)[0].run.patch_embed.img_size
    model.save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
    found = json.loads(tosa("viz", str(folder), str(photos / "0.png"), "-o", str(picture), "--json").out)
    assert Image.open(picture).width > 300
    assert [layer["layer"] for layer in found["images"][0]["layers"]] == [2, 3]
    assert all(0 < layer["kept_share"] < 1 for layer in found["images"][0]["layers"])
    assert found["images"][0]["outputs"]
    assert "Wrote" in tosa("viz", str(folder), str(photos), "-o", str(tmp_path / "page"), "--layers", "3").err
