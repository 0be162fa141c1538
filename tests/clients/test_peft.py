"""peft: adapters by the names of modules, saved, loaded and merged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT

peft: Any = pytest.importorskip("peft")

CONFIGS = {
    "LoRA on qkv": lambda: peft.LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False),
    "LoRA on all, new head": lambda: peft.LoraConfig(
        r=4, target_modules=["qkv", "proj", "fc1", "fc2"], modules_to_save=["head"], init_lora_weights=False
    ),
    "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=["fc1"], init_weights=False),
}


@pytest.mark.parametrize("make", CONFIGS.values(), ids=list(CONFIGS))
def test_an_adapter_is_saved_loaded_and_merged(model: TosaViT, images: Tensor, tmp_path: Path, make: Any) -> None:
    base, plain = copy.deepcopy(model), model(images)
    adapted = peft.get_peft_model(model, make()).eval()
    expected = adapted(images)
    assert not torch.allclose(expected, plain, atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved and all(name.startswith("base_model.model.") for name in saved)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(loaded(images), expected)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, TosaViT) and torch.allclose(merged(images), expected, atol=1e-3)


def test_an_adapter_trains_and_nothing_else_does(model: TosaViT, images: Tensor) -> None:
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["qkv"])).train()
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.1)
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    for _ in range(2):
        adapted(images).square().mean().backward()
        optimizer.step()
    changed = {name for name, value in adapted.named_parameters() if not value.equal(before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert {name.split(".")[3] for name in changed} == {str(index) for index in range(6)}
