"""A dense model: a decoder on an encoder, converted or not, for images of any size."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch.nn import functional as F

import tosa_cli
from tests.model.tiny_models import MODELS, make_images, make_tosa, make_vit
from tests.sentences import fragments
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.predictor import is_predictor, load_predictor, make_predictor
from tosa_cli.model.decoders import DECODERS
from tosa_cli.model.decoders.newcrfs import WINDOW, CrfStep
from tosa_cli.model.flops import count_flops
from tosa_cli.model.predictor import Predictor
from tosa_cli.model.predictor_flops import count_predictor_flops
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.task import TaskConfig
from tosa_cli.workflow.save import save


def config(decoder: str = "dpt", **settings: Any) -> TaskConfig:
    return TaskConfig(decoder=decoder, decoder_dim=16, **settings)  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A dense source and the model converted from it."""
    source = make_vit("test_vit", img_size=32, patch_size=8, num_classes=10)
    save_for_hf(source, str(tmp_path / "dense"), safe_serialization=True)
    save(make_tosa(source, selector="similarity", bypass="nearest"), tmp_path / "tosa")
    return tmp_path


@pytest.mark.parametrize("source", ["dense", "tosa"])
def test_its_keys_are_paths_of_modules_and_in_a_file_the_encoder_has_its_own(folders: Path, source: str) -> None:
    model = make_predictor(str(folders / source), config("linear"))
    paths = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert set(model.state_dict()) <= paths
    saved = load_file(save(model, folders / "saved") / "model.safetensors")
    encoder = {name for name in saved if not name.startswith("decoder.")}
    assert encoder == set(model.encoder.state_dict()) and len(encoder) < len(saved)
    images = make_images(size=32)
    called = torch.func.functional_call(model, model.state_dict(), (images,))
    built: Any = timm.create_model(f"local-dir:{folders / 'saved'}", pretrained=True).eval()
    assert torch.equal(called, model(images)) and torch.equal(built(images), model(images))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_decoder_takes_every_encoder_dense_or_converted_at_any_size(name: str, decoder: str) -> None:
    source = make_vit(name, dynamic_img_size=True)
    for encoder in (source, make_tosa(source, keep_rate=0.6)):
        model = Predictor(encoder, config(decoder)).eval()
        for size in ((64, 96), (70, 50)):
            images = make_images(size=size)
            depth = model(images)
            assert depth.shape == (2, 1, *size)
            assert depth.min() > 1e-3 and depth.max() < 10 and depth.std() > 0
            if decoder == "newcrfs":  # nothing depends on what else is in a batch
                assert torch.allclose(model(images[:1]), depth[:1], atol=1e-3)


def test_with_every_token_kept_the_converted_encoder_gives_the_dense_ones_map() -> None:
    source, images = make_vit(dynamic_img_size=True), make_images(size=(64, 96))
    model = Predictor(make_tosa(source, keep_rate=0.5), config()).eval()
    every = model.with_dense_encoder()(images)
    assert not torch.allclose(model(images), every, atol=1e-3)
    model.encoder.keep_rates = dict.fromkeys(model.encoder.keep_rates, 1.0)
    assert torch.allclose(model(images), every, atol=1e-3)


def test_segmentation_gives_a_logit_for_each_class() -> None:
    model = Predictor(make_vit(dynamic_img_size=True), config("linear", task="segmentation", num_labels=3))
    assert model(make_images(size=(64, 96))).shape == (2, 3, 64, 96)


def test_a_linear_decoder_is_one_map_of_patch_and_class_token() -> None:
    model = Predictor(make_vit(dynamic_img_size=True), config("linear")).eval()
    images = make_images(size=(64, 64))
    tokens = model.encoder.forward_features(images)
    beside = torch.cat([tokens[:, 1:], tokens[:, :1].expand_as(tokens[:, 1:])], dim=-1)
    weights = F.linear(beside, model.decoder.proj.weight.flatten(1), model.decoder.proj.bias)
    expected = weights.transpose(1, 2).unflatten(2, (4, 4))
    found = model.decoder(model.forward_features(images))
    assert torch.allclose(F.interpolate(expected, scale_factor=4, mode="bilinear"), found, atol=1e-4)


def test_dpt_reads_four_evenly_spread_layers() -> None:
    assert DECODERS["dpt"].indices(12) == [2, 5, 8, 11] and DECODERS["dpt"].indices(24) == [5, 11, 17, 23]
    assert DECODERS["dpt"].indices(6) == [0, 2, 3, 5] and DECODERS["newcrfs"].indices(12) == [11]


@pytest.mark.parametrize("shift", [0, WINDOW // 2])
@torch.no_grad()
def test_a_pixel_of_the_crfs_is_told_by_its_own_window_alone(shift: int) -> None:
    step = CrfStep(16, shift).eval()
    features, maps = torch.randn(1, 16, 10, 16), torch.randn(1, 16, 10, 16)
    row, column = 9, 8
    changed = maps.clone()
    changed[0, row, column, 0] += 3.0
    told = (step(features, changed) - step(features, maps))[0].abs().amax(dim=-1) > 1e-6

    def window(position: int) -> int:
        return (position + WINDOW - shift) // WINDOW if shift else position // WINDOW

    expected = torch.tensor(
        [[window(r) == window(row) and window(c) == window(column) for c in range(10)] for r in range(16)]
    )
    assert torch.equal(told, expected)


def test_the_crfs_weigh_by_the_affinity_of_the_features() -> None:
    step = CrfStep(16, 0).eval()
    maps = torch.randn(1, WINDOW, WINDOW, 16)
    assert not torch.allclose(step(torch.randn(1, WINDOW, WINDOW, 16), maps), step(torch.zeros_like(maps), maps))


@pytest.mark.parametrize("source", ["dense", "tosa"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_dense_model_is_one_folder_that_loads_strictly(folders: Path, source: str, decoder: str) -> None:
    model = make_predictor(str(folders / source), config(decoder, max_depth=7.0), (40, 56))
    assert isinstance(model.encoder, TosaViT) == (source == "tosa") and model.img_size == (40, 56)
    save(model, folders / "depth")
    assert is_predictor(str(folders / "depth")) and not is_predictor(str(folders / source))
    images = make_images(size=(48, 64))
    for again in (
        load_predictor(folders / "depth"),
        tosa_cli.load(folders / "depth"),
        timm.create_model(f"local-dir:{folders / 'depth'}", pretrained=True).eval(),
    ):
        assert isinstance(again, Predictor) and again.config == model.config
        assert torch.equal(again(images), model(images))
    names = set(load_file(folders / "depth/model.safetensors"))
    encoder = {name for name in names if not name.startswith("decoder.")}
    assert encoder == {name for name in load_file(folders / source / "model.safetensors") if "head." not in name}


def test_a_dense_model_keeps_the_weights_of_its_encoder(folders: Path) -> None:
    model = make_predictor(str(folders / "tosa"), config())
    images = make_images(size=32)
    expected = tosa_cli.load(folders / "tosa").forward_features(images)
    assert torch.allclose(model.encoder.forward_features(images), expected, atol=1e-5)


def test_the_decoders_first_weights_come_from_the_seed_alone(folders: Path) -> None:
    decoders = [make_predictor(str(folders / "dense"), config(), seed=seed).decoder.state_dict() for seed in (0, 0, 1)]
    assert all(value.equal(decoders[1][name]) for name, value in decoders[0].items())
    assert not decoders[0]["head.0.weight"].equal(decoders[2]["head.0.weight"])


def test_broken_folders_are_refused(folders: Path) -> None:
    model = make_predictor(str(folders / "dense"), config())
    save(model, folders / "depth")
    text = (folders / "depth/config.json").read_text()
    (folders / "depth/config.json").write_text(text.replace('"decoder": "dpt"', '"decoder": "pdt"'))
    with pytest.raises(CheckpointError, match=fragments.DECODER_PDT):
        load_predictor(folders / "depth")
    (folders / "depth/config.json").write_text(text.replace('"decoder": "dpt"', '"decoder": "linear"'))
    with pytest.raises(CheckpointError, match=r"'decoder\.proj\.weight'"):
        load_predictor(folders / "depth")
    with pytest.raises(CheckpointError, match=fragments.TOSA_FINETUNE_TASK):
        load_predictor(folders / "tosa")
    with pytest.raises(CheckpointError, match=fragments.TOSA_EVAL):
        tosa_cli.hub.checkpoint.load(folders / "depth")


def test_macs_are_those_of_encoder_and_decoder(folders: Path) -> None:
    model = make_predictor(str(folders / "tosa"), config("linear"), (32, 32))
    flops = count_predictor_flops(model)
    expected = count_flops(model.encoder)
    assert flops.encoder_gmacs == expected.gmacs and flops.dense_encoder_gmacs == expected.dense_gmacs
    assert flops.decoder_gmacs * 1e9 == 16 * 2 * 64 * 256
    figures = flops.figures
    assert figures["gmacs"] == pytest.approx(flops.encoder_gmacs + flops.decoder_gmacs)
    assert 0 < figures["reduction"] < figures["encoder_reduction"] < 1
    larger = count_predictor_flops(model, (64, 97))
    assert larger.img_size == (64, 96) and larger.decoder_gmacs == pytest.approx(6 * flops.decoder_gmacs)
