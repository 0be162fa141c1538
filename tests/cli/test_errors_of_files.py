"""Files of a model that are cut short, foreign or of another shape are told in a sentence; no code in them runs."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Tosa

from .mistakes import check_refused, contents


def change_config(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: c["tosa"].update(format_version=99),
            "format_version 99",
        ),
        (lambda c: c.pop("tosa"), "'tosa'"),
        (lambda c: c["model_args"].pop("layers"), "'layers'"),
        (lambda c: c["model_args"].update(layers=[1]), "Layer 1 "),
        (lambda c: c["model_args"].update(num_classes=3), " 3 "),
        (lambda c: c.update(architecture="test_vit"), "`tosa convert"),
    ],
)
@pytest.mark.parametrize("command", ["eval --data-dir digits", "distill --data-dir photos", "bench"])
def test_a_config_of_the_wrong_shape_is_refused(
    converted: Path, tosa: Tosa, change: Any, sentence: str, command: str
) -> None:
    change_config(converted, change)
    before = contents(converted)
    check_refused(tosa(command), sentence)
    assert contents(converted) == before


@pytest.mark.parametrize("text", ["", "[]", "{", "not json"])
def test_a_config_that_is_no_json_object_is_refused(converted: Path, tosa: Tosa, text: str) -> None:
    (converted / "config.json").write_text(text)
    check_refused(tosa("bench"), "config.json")


@pytest.mark.parametrize("share", [0.5, 0.01, 0])
def test_truncated_weights_are_refused(converted: Path, tosa: Tosa, share: float) -> None:
    for weights in (converted / "model.safetensors", Path("dense/model.safetensors")):
        content = weights.read_bytes()
        weights.write_bytes(content[: int(len(content) * share)])
    check_refused(tosa("eval --data-dir digits"), "dense-tosa")
    check_refused(tosa("convert dense --layers 2 -o other"), "dense")


def test_foreign_weights_are_refused(converted: Path, tosa: Tosa) -> None:
    state = load_file(converted / "model.safetensors")
    for changed, sentence in (
        ({key: value for key, value in state.items() if key != "norm.weight"}, "'norm.weight'"),
        ({**state, "extra": torch.zeros(1)}, "'extra'"),
        ({**state, "head.weight": torch.zeros(3, 64)}, "[3, 64], expected [10, 64]"),
    ):
        save_file(changed, converted / "model.safetensors", metadata={"format": "pt"})
        check_refused(tosa("eval --data-dir digits"), sentence)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (os.system, ("touch executed",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(work: Path, tosa: Tosa) -> None:
    torch.save({"head.weight": Evil()}, "test_vit.pth")
    check_refused(tosa("convert test_vit.pth --layers 2"), ".safetensors")
    Path("test_vit.pt").write_bytes(pickle.dumps(Evil()))
    check_refused(tosa("convert test_vit.pt --layers 2"), "test_vit.pt")
    assert not Path("executed").exists()
