"""A converted model drops in as an encoder: what a decoder written for the dense timm model asks, it answers alike."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.workflow.save import save

from .encoder_runs import KINDS, PER_HEAD, SETTINGS, assert_equal, assert_same_form, make_pair, make_predictor, settings
from .tiny_models import make_images, make_tosa, make_vit, randomize_

kinds = pytest.mark.parametrize("kind", KINDS)


def sizes_of(kind: str) -> list[tuple[int, int]]:
    """Sizes that a model's patches divide: its own, wide, tall, and the least that there is."""
    patch = make_predictor(kind).patch_embed.patch_size[0]
    return [(4 * patch, 4 * patch), (3 * patch, 5 * patch), (7 * patch, 2 * patch), (patch, 2 * patch), (patch, patch)]


# ---------------------------------------------------------------------- any size


@kinds
@settings
@torch.no_grad()
def test_maps_have_the_dense_models_form_at_any_size(kind: str, setting: str) -> None:
    dense, model = make_pair(kind, setting, dynamic_img_size=True)
    _, whole = make_pair(kind, setting, keep_rate=1.0, dynamic_img_size=True)
    for size in sizes_of(kind):
        images = make_images(size=size)
        expected = dense.forward_intermediates(images, indices=[1, 3, 5], return_prefix_tokens=True)
        assert_same_form(model.forward_intermediates(images, indices=[1, 3, 5], return_prefix_tokens=True), expected)
        found = whole.forward_intermediates(images, indices=[1, 3, 5], return_prefix_tokens=True)
        assert_same_form(found, expected)
        assert_equal(found, expected)


@kinds
@torch.no_grad()
def test_a_model_that_is_set_to_another_size_has_the_maps_of_that_size(kind: str) -> None:
    for height, width in sizes_of(kind):
        dense, model = make_pair(kind, "matched")
        for one in (dense, model):
            one.set_input_size((height, width))
        images = make_images(size=(height, width))
        assert_same_form(model.forward_intermediates(images), dense.forward_intermediates(images))


@torch.no_grad()
def test_padding_to_whole_patches_is_timms() -> None:
    dense, model = make_pair("test_vit", "matched", dynamic_img_size=True, dynamic_img_pad=True)
    images = make_images(size=(70, 45))
    maps = model.forward_intermediates(images, indices=2, intermediates_only=True)
    assert_same_form(maps, dense.forward_intermediates(images, indices=2, intermediates_only=True))
    assert maps[0].shape[-2:] == (5, 3)


@torch.no_grad()
def test_one_size_leaves_nothing_behind_for_the_next() -> None:
    _, model = make_pair("test_vit2", "matched", dynamic_img_size=True)
    first, second = make_images(size=(64, 96)), make_images(size=(128, 32))
    expected = model.forward_intermediates(second, intermediates_only=True)
    model.forward_intermediates(first)
    found = model.forward_intermediates(second, intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("setting", [*SETTINGS, "per-head"])
@torch.no_grad()
def test_the_type_of_the_weights_is_that_of_the_maps(setting: str) -> None:
    dense = make_vit("test_vit", img_size=64).to(torch.bfloat16)
    model = make_tosa(dense, **{**SETTINGS, "per-head": PER_HEAD}[setting]).to(torch.bfloat16)
    images = make_images(size=64).to(torch.bfloat16)
    assert_same_form(model.forward_intermediates(images), dense.forward_intermediates(images))


# ---------------------------------------------------------------------- features_only


def extractor_of(dense: Any, model: Any, kind: str, out_indices: Any, **args: Any) -> tuple[Any, Any]:
    """timm's feature extractors of the dense and of the converted architecture, with the weights of two models."""
    args = {**KINDS[kind], **args}
    theirs = timm.create_model(kind, features_only=True, out_indices=out_indices, **args).eval()
    built = {**model.config.to_dict(), "base_architecture": kind, **args}
    ours = timm.create_model("tosa_vit", features_only=True, out_indices=out_indices, **built).eval()
    theirs.model.load_state_dict(dense.state_dict(), strict=False)
    missing, _ = ours.model.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return theirs, ours


@kinds
@pytest.mark.parametrize("out_indices", [[1, 3], (0, 2, 4, 5), 2, [-2]], ids=str)
@torch.no_grad()
def test_features_only_is_that_of_the_dense_architecture(kind: str, out_indices: Any) -> None:
    for setting in ("paper", "matched"):
        dense, model = make_pair(kind, setting)
        theirs, ours = extractor_of(dense, model, kind, out_indices)
        for trait in ("channels", "reduction", "module_name"):
            assert getattr(ours.feature_info, trait)() == getattr(theirs.feature_info, trait)()
        assert ours.feature_info.out_indices == theirs.feature_info.out_indices
        images = make_images(size=dense.patch_embed.img_size)
        maps = ours(images)
        assert_same_form(maps, theirs(images))
        indices = out_indices if isinstance(out_indices, int) else list(out_indices)
        expected = model.forward_intermediates(images, indices=indices, intermediates_only=True)
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(maps, expected, strict=True))


@torch.no_grad()
def test_a_saved_model_is_an_encoder_at_another_size(tmp_path: Any) -> None:
    dense, model = make_pair("test_vit2", "matched")
    save(model, tmp_path / "model")
    options: dict[str, Any] = {"pretrained": True, "features_only": True, "out_indices": [1, 4]}
    for args in ({"img_size": (96, 64)}, {"dynamic_img_size": True}):
        extractor = timm.create_model(f"local-dir:{tmp_path / 'model'}", **options, **args).eval()
        images = make_images(size=(96, 64))
        assert [tuple(maps.shape) for maps in extractor(images)] == [(2, dense.embed_dim, 6, 4)] * 2


# ---------------------------------------------------------------------- a decoder


class Decoder(nn.Module):
    """A dense decoder that knows of its encoder what timm's `feature_info` tells, as those of segmentation toolkits."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        info = encoder.feature_info
        self.encoder, self.reductions = encoder, info.reduction()
        self.project = nn.ModuleList(nn.Conv2d(channels, 8, 1) for channels in info.channels())
        self.fuse = nn.Conv2d(8 * len(self.project), 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder(images)
        height, width = images.shape[-2:]
        for item, reduction in zip(maps, self.reductions, strict=True):
            assert item.shape[-2:] == (height // reduction, width // reduction)
        parts = [project(item) for project, item in zip(self.project, maps, strict=True)]
        return F.interpolate(self.fuse(torch.cat(parts, dim=1)), (height, width), mode="bilinear")


@kinds
@pytest.mark.parametrize("setting", ["paper", "matched"])
def test_a_decoder_written_for_the_dense_encoder_takes_the_converted_one(kind: str, setting: str) -> None:
    outputs = {}
    for keep_rate in (1.0, 0.5):
        dense, model = make_pair(kind, setting, keep_rate=keep_rate, dynamic_img_size=True)
        theirs, ours = extractor_of(dense, model, kind, [2, 5], dynamic_img_size=True)
        decoder = Decoder(theirs).eval()
        randomize_(decoder.project, seed=3)
        randomize_(decoder.fuse, seed=4)
        images = make_images(size=sizes_of(kind)[1])
        expected = decoder(images)
        decoder.encoder = ours
        outputs[keep_rate] = decoder(images)
        assert_same_form(outputs[keep_rate], expected)
    assert torch.allclose(outputs[1.0], expected, atol=1e-3)
    assert not torch.allclose(outputs[0.5], expected, atol=1e-3)


@kinds
def test_gradients_of_a_decoder_reach_every_weight_of_the_encoder(kind: str) -> None:
    for setting in ("paper", "matched"):
        dense, model = make_pair(kind, setting)
        _, ours = extractor_of(dense, model, kind, [2, 5])
        Decoder(ours)(make_images(size=dense.patch_embed.img_size)).square().mean().backward()
        backbone = ours.model.backbone
        reached = {name for name, weight in backbone.named_parameters() if weight.grad is not None}
        unread = {name for name, _ in backbone.named_parameters()} - reached
        assert not [name for name in unread if name.startswith("blocks")]
        positions = {"pos_embed"} if dense.pos_embed is not None else set()
        assert {"patch_embed.proj.weight", *positions} <= reached
        for layer in model.config.layers:
            assert all(weight.grad.abs().sum() > 0 for weight in backbone.blocks[layer - 1].parameters())


def test_recomputing_layers_in_the_backward_pass_gives_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        _, model = make_pair("test_vit2", "matched")
        model.set_grad_checkpointing(recompute)
        model.train()
        maps = model.forward_intermediates(make_images(size=64), indices=[1, 4], intermediates_only=True)
        sum(item.square().mean() for item in maps).backward()
        gradients.append(model.backbone.patch_embed.proj.weight.grad)
    assert torch.allclose(*gradients, atol=1e-5)
