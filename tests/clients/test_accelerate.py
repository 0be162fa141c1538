"""accelerate: weights by path, on devices and on disk."""

import copy
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import infer_auto_device_map
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT


@torch.no_grad()
def test_an_empty_model_is_filled_from_the_folder(folder: Path, model: TosaViT, images: Tensor) -> None:
    with init_empty_weights():
        empty: Any = timm.create_model(f"local-dir:{folder}")
    filled = load_checkpoint_and_dispatch(empty, str(folder / "model.safetensors"), device_map={"": "cpu"}).eval()
    assert torch.equal(filled(images), model(images))


@torch.no_grad()
def test_a_dispatched_model_and_its_dense_model_compute_the_same(model: TosaViT, images: Tensor) -> None:
    expected, dense = model(images), model.backbone(images)
    kinds = [type(block).__name__ for block in model.blocks]
    places = infer_auto_device_map(model, max_memory={"cpu": "1GB"}, no_split_module_classes=list({*kinds}))
    assert set(places.values()) == {"cpu"}
    moved: Any = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert torch.equal(moved(images), expected) and torch.equal(moved.backbone(images), dense)


@torch.no_grad()
def test_weights_in_main_memory_or_on_disk_are_fetched_when_they_are_needed(
    model: TosaViT, images: Tensor, tmp_path: Path
) -> None:
    expected = model(images)
    # The selector reads the weights of its convolutions itself.
    whole, device = ["AttentionSelector"], torch.device("cpu")
    on_disk = disk_offload(copy.deepcopy(model), str(tmp_path / "weights"), device, preload_module_classes=whole)
    in_memory = cpu_offload(model, device, preload_module_classes=whole)
    for offloaded in (on_disk, in_memory):
        assert all(weight.is_meta for weight in offloaded.parameters())
        assert torch.equal(offloaded(images), expected)
