"""Finetuning of a whole model without labels, as far as the training goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.test_whole_distill import FITTED, write
from tests.train.tiny_runs import write_photos
from tosa_cli.hub.whole import load_whole
from tosa_cli.model.runs import converted_runs
from tosa_cli.model.runs.block import TosaBlock
from tosa_cli.progress import Nobody
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.workflow import whole_finetune


def test_layers_are_computed_again_where_asked_and_learn_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, counts, weights = write_photos(tmp_path / "photos", 9), [], []
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "workers": 0, "device": "cpu", "lr": 1e-3}

    def counted(name: str) -> Any:
        whole = load_whole(name)
        block: Any = converted_runs(whole.model)[0].layers[3]
        assert isinstance(block, TosaBlock)
        block.mlp.register_forward_pre_hook(lambda *_: counts.append(torch.is_grad_enabled()))
        return whole

    monkeypatch.setattr(whole_finetune, "load_converted", counted)
    for recomputed in (False, True):
        name = write(tmp_path / f"whole-{recomputed}", FITTED)
        config = FinetuneConfig(
            data_dir=str(photos), objective="features", grad_checkpointing=recomputed, model_ema=False, **settings
        )
        whole_finetune.finetune(name, config, listener=Nobody())
        counts.append(None)
        weights.append(load_whole(name).model.state_dict())
    plain, again = (part.count(True) for part in (counts[: counts.index(None)], counts[counts.index(None) :]))
    assert again == 2 * plain
    values: list[dict[str, Tensor]] = weights
    for key, value in values[0].items():
        torch.testing.assert_close(values[1][key], value)
