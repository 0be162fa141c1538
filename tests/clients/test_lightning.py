"""lightning: a converted model in a LightningModule is trained, saved and loaded again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tosa_cli

lightning: Any = pytest.importorskip("lightning")


def make_module(folder: str) -> Any:
    class Classifier(lightning.LightningModule):
        def __init__(self, folder: str) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = tosa_cli.load(folder)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    return Classifier, Classifier(folder)


def test_it_is_trained_saved_and_loaded(folder: Path, images: Tensor, tmp_path: Path) -> None:
    kind, module = make_module(str(folder))
    before = module.net(images)
    batches = DataLoader(TensorDataset(images, torch.tensor([1, 2])), 2)
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, batches)
    after = module.eval().net(images)
    assert not torch.allclose(after, before, atol=1e-3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False).eval()
    assert torch.equal(again.net(images), after)
