"""A whole model is finetuned to be its dense self again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.cli.conftest import Tosa
from tests.sentences import fragments

from .whole_commands import (
    GROUPS,
    write_source,  # noqa: F401 (the fixture `source`)
    write_three_photos,  # noqa: F401 (the fixture `photos`)
)


def test_a_finetuning_that_was_killed_once_its_model_stood_is_known_to_have_ended(
    tosa: Tosa, source: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "whole"
    tosa("convert", str(source), "--layers", "2,3", *GROUPS, "-o", str(folder))
    how = ["--objective", "features", "--epochs", "1", "-b", "2", "-j", "0", "--device", "cpu"]
    command = ["finetune", str(folder), "--data-dir", str(photos), *how]
    with monkeypatch.context() as killed:
        killed.setattr("tosa_cli.workflow.job.remove_checkpoint", lambda _: None)
        assert tosa(*command).code == 0
    weights, left = (folder / "model.safetensors").read_bytes(), tmp_path / "whole.finetune-checkpoint.safetensors"
    assert left.exists()
    done = tosa(*command, "--resume")
    assert done.code == 0 and fragments.NOTHING_IS_LEFT_TO_DO in done.err
    assert (folder / "model.safetensors").read_bytes() == weights and not left.exists()


def test_a_model_learns_to_be_its_dense_self_again_without_labels(tosa: Tosa, source: Path, tmp_path: Path) -> None:
    folder, photos, numbers = tmp_path / "whole", tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(20):
        Image.fromarray(numbers.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    model = transformers.AutoModelForDepthEstimation.from_pretrained(source)
    torch.manual_seed(0)
    for parameter in model.backbone.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(source)
    tosa("convert", str(source), "--layers", "2,3", "--keep-rate", "0.4", *GROUPS, "-o", str(folder))
    before = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    how = ["--objective", "features", "--epochs", "30", "--lr", "1e-3", "-b", "4", "-j", "0", "--device", "cpu"]
    more = ["--feature-layers", "1", "--no-model-ema", "--grad-checkpointing", "--crop-scale", "0.9"]
    done = tosa("finetune", str(folder), "--data-dir", str(photos), *how, *more, "--json")
    found = json.loads(done.out)["held_out"]
    assert found["patch_cosine_after"] > found["patch_cosine_before"]
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    weights, others = model.state_dict(), before.state_dict()
    changed = {name for name in weights if not torch.equal(weights[name], others[name])}
    assert changed and all(".layer.1." in name or ".layer.2." in name or ".layer.3." in name for name in changed)
    assert "finetune" in (folder / "README.md").read_text()
    assert fragments.WAS_FINETUNED_ALREADY in tosa("finetune", str(folder), "--data-dir", str(photos), *how).err
    told = tosa("eval", str(folder), "--data-dir", str(photos), "--max-samples", "2")
    assert str(source) in told.err
