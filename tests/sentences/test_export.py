"""What is said where a model cannot be exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.export.test_check import MATCHING, Change, replace_kept, swap_last_kept
from tests.export.test_check import check as compare
from tests.export.tiny import tiny_tosa
from tosa_cli.export.check import check_export
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.export import export_model
from tosa_cli.export.program import Exportable

from .folders import written
from .rows import Row, check, table


def changed(layer: str, place: int, value: int) -> Change:
    """A choice of the first image that is another one."""

    def change(choices: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen = choices[layer][0]
        (chosen if chosen.ndim == 1 else chosen[0])[place] = value
        return choices

    return change


def twice(choices: dict[str, Tensor]) -> dict[str, Tensor]:
    choices["keep_indices_2"][0, -1] = choices["keep_indices_2"][0, -2]
    return choices


def skip_what_stays() -> None:
    compare(
        tiny_tosa(selector="similarity", keep_rate=0.8),
        lambda choices: replace_kept(choices, gone=2),
    )


def compare_two_files() -> None:
    model = tiny_tosa()
    told = Exportable(model, ["logits"], with_choices=True)
    check_export(model, lambda images: {"logits": model(images) + 1}, told, ["logits"], batch_sizes=(2,), atol=1e-4)


def export_into_a_folder() -> None:
    Path("folder.onnx").mkdir()
    export_model(tiny_tosa(), Path("folder.onnx"))


def export_beside_old_weights() -> None:
    written("model.onnx.data")
    export_model(tiny_tosa(), Path("model.onnx"))


def export_without(package: str) -> Callable[[pytest.MonkeyPatch], None]:
    def fails(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
        export_model(tiny_tosa(), Path("model.onnx"))

    return fails


EXPORT: list[Row] = [
    (
        "another choice without a tie",
        lambda: compare(tiny_tosa(), swap_last_kept),
        "For 2 of 5 images the exported model selects other tokens than the original, though the original's "
        "scores differ there by … of a usual score, and a tie is below 0.001. Nothing was written. Please "
        "report the model's name.",
    ),
    (
        "no choice at all",
        lambda: compare(tiny_tosa(), twice),
        "For 2 of 5 images the exported model selects other tokens than the original, though the original's "
        "scores differ there by inf of a usual score, and a tie is below 0.001. Nothing was written. Please "
        "report the model's name.",
    ),
    (
        "no choice at all where tokens are matched",
        lambda: compare(tiny_tosa(**MATCHING), twice),
        "For 2 of 5 images the exported model selects other tokens than the original, though the original's "
        "scores differ there by inf of a usual score, and a tie is below 0.001. Nothing was written. Please "
        "report the model's name.",
    ),
    (
        "a partner that is not the nearest",
        lambda: compare(tiny_tosa(**MATCHING), changed("partners_2", 0, 0)),
        "For 2 of 5 images the exported model selects other tokens than the original, though the original's "
        "scores differ there by … of a usual score, and a tie is below 0.001. Nothing was written. Please "
        "report the model's name.",
    ),
    (
        "a partner that is not there",
        lambda: compare(tiny_tosa(**MATCHING), changed("partners_2", 0, -1)),
        "For 2 of 5 images the exported model selects other tokens than the original, though the original's "
        "scores differ there by … of a usual score, and a tie is below 0.001. Nothing was written. Please "
        "report the model's name.",
    ),
    (
        "a token skipped that always stays",
        skip_what_stays,
        "For 2 of 5 images the exported model selects other tokens than the original, though the original's "
        "scores differ there by inf of a usual score, and a tie is below 0.001. Nothing was written. Please "
        "report the model's name.",
    ),
    (
        "other numbers",
        lambda: compare(tiny_tosa(), lambda choices: choices, 1e-2),
        "With the same tokens selected, the exported model's outputs should equal the original's to within "
        "0.0001, but differ by …. Nothing was written: pass a greater --atol if that is accurate enough for "
        "you.",
    ),
    (
        "no numbers",
        lambda: compare(tiny_tosa(), lambda choices: choices, float("nan")),
        "The exported model and the same model with its choices as outputs should agree, but differ by inf. "
        "Nothing was written. Please report the model's name.",
    ),
    (
        "two files that differ",
        compare_two_files,
        "The exported model and the same model with its choices as outputs should agree, but differ by …. "
        "Nothing was written. Please report the model's name.",
    ),
    (
        "logits of a model without a head",
        lambda: export_model(tiny_tosa(num_classes=0), Path("model.onnx"), ExportConfig(outputs=("logits",))),
        "The model has no head, so it has no logits: leave --outputs out, or choose among last_hidden_state "
        "and pooler_output.",
    ),
    (
        "a file that is there",
        lambda: export_model(tiny_tosa(), Path(written("old.onnx"))),
        "old.onnx already exists. Choose another name with -o, or pass --overwrite.",
    ),
    (
        "weights of an old file",
        export_beside_old_weights,
        "model.onnx.data already exists. Choose another name with -o, or pass --overwrite.",
    ),
    (
        "a file of another format",
        lambda: export_model(tiny_tosa(), Path("model.pt2")),
        "The format onnx is written to a .onnx file, but model.pt2 is none: name another.",
    ),
    ("a folder", export_into_a_folder, "folder.onnx is a folder, but a file is written: choose another name with -o."),
    (
        "a folder that is not there",
        lambda: export_model(tiny_tosa(), Path("nowhere/model.onnx")),
        "nowhere/model.onnx cannot be written: …/nowhere is no folder that you can write to.",
    ),
    (
        "no onnx",
        export_without("onnx"),
        "ONNX needs onnx, which is not installed: run `pip install 'tosa-cli[export]'`, or pass --format pt2.",
    ),
    (
        "no onnxscript",
        export_without("onnxscript"),
        "ONNX needs onnxscript, which is not installed: run `pip install 'tosa-cli[export]'`, or pass --format pt2.",
    ),
    (
        "no onnxruntime",
        export_without("onnxruntime"),
        "ONNX needs onnxruntime, which is not installed: run `pip install 'tosa-cli[export]'`, or pass --format pt2.",
    ),
    (
        "a model in half precision",
        lambda: export_model(tiny_tosa().to(torch.bfloat16), Path("model.onnx")),
        "The model is in bfloat16 on cpu, but is exported in float32 on the CPU: call model.float().cpu() first.",
    ),
]
"""What the export refuses."""


@table(EXPORT)
def test_what_is_said(request: pytest.FixtureRequest, fails: Callable[..., Any], sentence: str) -> None:
    check(request, fails, sentence)
