"""`tosa export`: what is written and told, and what is refused."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from timm.models import save_for_hf

from tests.cli.conftest import Tosa, run_tosa
from tests.export.conftest import look_up_once  # noqa: F401
from tests.model.tiny_models import make_images, make_vit
from tests.sentences import fragments
from tosa_cli import load
from tosa_cli.measure import speed


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder `dense-tosa`, of two layers: exporters take their time for each."""
    folder = tmp_path_factory.mktemp("short")
    dense = make_vit("test_vit", img_size=32, patch_size=8, num_classes=10, depth=2)
    save_for_hf(dense, str(folder / "dense"), safe_serialization=True)
    with contextlib.chdir(folder):
        assert run_tosa("convert dense --layers 2 --keep-rate 0.5").code == 0
    return folder


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: Path) -> Path:
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "dense-tosa"


def test_a_model_is_exported_under_its_name_and_the_check_is_told(converted: Path, tosa: Tosa) -> None:
    done = tosa("export")
    assert done.code == 0, done.err
    assert "dense-tosa.onnx: " in done.out and fragments.TAKES_ANY_NUMBER_OF_IMAGES in done.out
    assert fragments.ON_8_PIECES_OF_PHOTOS in done.out
    assert "8 of 8 images: the same tokens in every ToSA layer" in done.out
    assert fragments.NEXT_TOSA_BENCH in done.err and "[torch.onnx]" not in done.err + done.out
    again = tosa("export dense-tosa")
    assert again.code == 2 and "dense-tosa.onnx " in again.err


def test_the_ending_names_the_format_and_tokens_can_be_asked_for(converted: Path, tosa: Tosa) -> None:
    done = tosa("export dense-tosa -o model.pt2 --outputs last_hidden_state --img-size 40 -b 2 --json")
    assert done.code == 0, done.err
    report = done.json
    assert report["format"] == "pt2" and report["inputs"] == {"pixel_values": [2, 3, 40, 40]}
    assert report["check"]["same_choices"] == 8 and report["check"]["batch_sizes"] == [2] * 4
    images = make_images(2, size=40)
    model = load("dense-tosa", img_size=40)
    with torch.no_grad():
        tokens = torch.export.load("model.pt2").module()(images)["last_hidden_state"]
        assert torch.allclose(tokens, model.forward_features(images), atol=1e-4)


def test_a_difference_beyond_atol_fails_and_nothing_is_written(converted: Path, tosa: Tosa) -> None:
    before = sorted(converted.parent.iterdir())
    done = tosa("export dense-tosa --atol 1e-30")
    assert done.code == 1 and fragments.DIFFER_BY in done.err and "Traceback" not in done.err
    assert sorted(converted.parent.iterdir()) == before and done.out == ""


def test_int8_is_told_in_sentences(converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    done = tosa("export dense-tosa --quantize int8")
    assert done.code == 0, done.err
    assert "dense-tosa.int8.onnx: " in done.out and fragments.BEFORE_QUANTISATION_IT_WAS_RUN in done.out
    assert fragments.INT8_ON_32_PIECES_OF in done.out and fragments.THE_SPEED_OF_FLOAT32 in done.out


def test_speed_in_onnx_runtime_is_measured_against_the_dense_export(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    done = tosa("bench -b 2 --rounds 1 --runtime onnxruntime --json")
    assert done.code == 0, done.err
    report = done.json
    assert report["runtime"].startswith("onnxruntime ") and report["device"].startswith("cpu")
    assert report["dense"]["peak_memory_mb"] is None and report["batch_size"] == 2 and report["ideal_speedup"] > 1
    refused = tosa("bench --runtime onnxruntime --compile")
    assert refused.code == 2 and "--compile" in refused.err
    refused = tosa("bench --runtime onnxruntime --dtype bfloat16")
    assert refused.code == 2 and "--dtype" in refused.err
