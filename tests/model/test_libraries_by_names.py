"""Libraries that go by the names of parameters: layer decay, several processes, shards, distributed checkpoints."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from .added_parts import ADDED, MATCHED, PROBE
from .families import MECHANISMS, make_family
from .tiny_models import make_images, make_tosa, make_vit


@pytest.fixture
def one_process() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", MECHANISMS)
def test_layer_decay_scales_each_weight_as_in_the_source(family: str) -> None:
    def scales(model: nn.Module) -> dict[str, float]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=0.5).param_groups
        return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

    source = make_family(family)
    dense, tosa = scales(source), scales(make_tosa(source, layers=(1, 3), selector="probe", bypass="linear"))
    assert {name: scale for name, scale in tosa.items() if not name.startswith(ADDED)} == dense
    added = {name: scale for name, scale in tosa.items() if name.startswith(ADDED)}
    assert added and all(
        scale == dense[next(d for d in dense if d.startswith(f"blocks.{int(name.split('.')[1]) - 1}."))]
        for name, scale in added.items()
    )


@pytest.mark.parametrize("settings", [{}, MATCHED, PROBE, {"selector": "previous", "bypass": "linear"}], ids=str)
def test_it_trains_in_several_processes(settings: dict[str, Any], one_process: None) -> None:
    model = make_tosa(**settings).train()
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        parallel(make_images()).square().mean().backward()
    assert all(parameter.grad is None for parameter in model.selector_parameters())
    assert all(parameter.grad is not None for parameter in model.backbone_parameters())


@pytest.mark.parametrize(("settings", "by_layer"), [({}, True), ({}, False), (MATCHED, False), (PROBE, False)], ids=str)
def test_it_trains_sharded(settings: dict[str, Any], by_layer: bool, one_process: None) -> None:
    # What is read of a layer before it runs cannot be, where the layer's weights are together only while it runs.
    plain, sharded, images = make_tosa(**settings).train(), make_tosa(**settings).train(), make_images()
    mesh = init_device_mesh("cpu", (1,))
    for module in (*sharded.blocks, sharded) if by_layer else (sharded,):
        fully_shard(module, mesh=mesh)
    for model in (plain, sharded):
        optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
        for _ in range(2):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.full_tensor(), plain.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_a_distributed_checkpoint_goes_by_the_same_names(one_process: None) -> None:
    model, other = make_tosa(), make_tosa(make_vit(seed=5))
    state = get_model_state_dict(model)
    assert list(state) == list(model.state_dict())
    set_model_state_dict(other, state)
    assert torch.equal(other(make_images()), model(make_images()))
