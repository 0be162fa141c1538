"""Models on the meta device are those that timm builds there, but nothing is filled."""

import pytest
import timm
import torch

from tosa_cli.model.meta import create_on_meta

ARCHITECTURES = [
    ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32}),
    ("eva02_tiny_patch14_224", {"depth": 2}),
    ("beit_base_patch16_224", {"depth": 2}),
    ("vit_tiny_r_s16_p8_224", {"depth": 2}),
    ("test_vit3", {}),
]


@pytest.mark.parametrize(("name", "args"), ARCHITECTURES)
def test_a_model_has_the_tensors_that_timm_gives_it(name: str, args: dict[str, int]) -> None:
    found, expected = create_on_meta(name, args), timm.create_model(name, device="meta", **args)
    assert repr(found) == repr(expected) and found.pretrained_cfg == expected.pretrained_cfg
    tensors = {key: (value.shape, value.dtype, value.is_meta) for key, value in expected.state_dict().items()}
    assert {key: (value.shape, value.dtype, value.is_meta) for key, value in found.state_dict().items()} == tensors
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in expected.parameters()]


def test_models_that_are_built_afterwards_are_filled() -> None:
    create_on_meta("test_vit", {})
    torch.manual_seed(0)
    first = timm.create_model("test_vit")
    torch.manual_seed(0)
    assert first.blocks[0].attn.qkv.weight.equal(timm.create_model("test_vit").blocks[0].attn.qkv.weight)
    assert first.blocks[0].attn.qkv.weight.std() > 0.01
