"""A weights file is taken as it is: nothing in it is bent, dropped or assumed without a word."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from tests.sentences import fragments
from tosa_cli.errors import CheckpointError, ConfigError
from tosa_cli.hub.source import Source, load_source
from tosa_cli.model.class_names import class_names
from tosa_cli.source_config import ImageSettings

from ..model.tiny_models import make_images, make_vit

IMAGES_TOLD = "does not say what its images are put through"


def written(tmp_path: Path, state: dict[str, Tensor], name: str = "test_vit.pth") -> str:
    torch.save(state, tmp_path / name)
    return str(tmp_path / name)


def told(source: Source) -> list[str]:
    """Notes but for that about image settings, which every file has."""
    return [note for note in source.notes if IMAGES_TOLD not in note]


def assert_equal(source: Source, model: nn.Module, size: int | tuple[int, int] = 160) -> None:
    images = make_images(1, size=size)
    assert torch.equal(source.model(images), model(images))


# ---------------------------------------------------------------------- positions and patches


def test_a_file_is_taken_at_the_size_that_its_positions_are_for(tmp_path: Path) -> None:
    model = make_vit(img_size=32, num_classes=5)
    source = load_source(written(tmp_path, model.state_dict()))
    assert_equal(source, model, 32)
    assert told(source) == [
        f"{tmp_path}/test_vit.pth has positions of 2x2 patches, so the model is for 32x32 pixels, and not for the "
        f"160x160 that its architecture has: --img-size gives another size."
    ]
    assert not told(load_source(written(tmp_path, make_vit(num_classes=5).state_dict())))


@pytest.mark.parametrize("size", [(80, 320), (256, 128)], ids=str)
def test_positions_of_a_rectangle_stay_as_they_are_at_its_size(tmp_path: Path, size: tuple[int, int]) -> None:
    model = make_vit(img_size=size, num_classes=5)
    source = load_source(written(tmp_path, model.state_dict()), img_size=size)
    assert_equal(source, model, size)
    # A hundred positions may be a square's too, which is said; 128 are of no square.
    assert any("as they are" in note for note in told(source)) == (size == (80, 320))


def test_positions_of_no_square_are_refused_without_their_size(tmp_path: Path) -> None:
    path = written(tmp_path, make_vit(img_size=(256, 128)).state_dict())
    for size in (None, 160, (128, 128)):
        with pytest.raises(CheckpointError, match=r"128 positions .* no square .*--img-size HEIGHT,WIDTH"):
            load_source(path, img_size=size)


def test_another_size_than_the_files_is_resampled_from_the_files_grid(tmp_path: Path) -> None:
    model = make_vit(img_size=32, num_classes=5)
    source = load_source(written(tmp_path, model.state_dict()), img_size=64)
    model.set_input_size(img_size=(64, 64))
    assert_equal(source, model, 64)
    assert any("2x2 patches, are resampled" in note for note in told(source))


def test_tables_of_relative_positions_tell_the_size_too(tmp_path: Path) -> None:
    name = "beit_base_patch16_224"
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, img_size=(64, 32), **small).eval()
    state = timm.create_model(name, img_size=64, **small).state_dict()
    from tosa_cli.hub.positions import own_size

    assert own_size(state, model, None, "file")[0] == (64, 64)
    assert own_size(model.state_dict(), model, (64, 32), "file") == ((64, 32), "")


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, make_vit(patch_size=8, img_size=80).state_dict())
    with pytest.raises(CheckpointError, match=fragments.PATCHES_OF_8X8_PIXELS_BUT):
        load_source(path)


# ---------------------------------------------------------------------- what a file holds is what is used


def dinov3(bias: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small DINOv3 with biases of queries and values, and its weights by the authors' names."""
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, depth=1).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(std=0.1) if not key.endswith(("q_bias", "v_bias")) else value.fill_(bias)
    state, file = model.state_dict(), {}
    for key, value in state.items():
        if key.endswith("q_bias"):
            front = key.removesuffix("q_bias")
            file[f"{front}qkv.bias"] = torch.cat([value, torch.zeros_like(value), state[f"{front}v_bias"]])
            file[f"{front}qkv.bias_mask"] = torch.ones(3 * len(value))
        elif not key.endswith("v_bias"):
            names = (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens"))
            for old, new in names:
                key = key.replace(old, new)
            file[key] = value
    return model, {**file, "mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}


def fill(model: nn.Module, state: dict[str, Tensor], shown: str = "file.pth") -> None:
    from tosa_cli.hub.weight_sets import WeightSet
    from tosa_cli.hub.weights import load_weights

    load_weights(model, WeightSet(state), shown, None)  # type: ignore[arg-type]


def test_biases_that_an_architecture_lacks_are_refused_and_the_one_that_has_them_is_named(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, state = dinov3(bias=0.5)
    without = timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=1).eval()
    with pytest.raises(CheckpointError) as failure:
        fill(without, state)
    assert str(failure.value) == (
        "The weights of file.pth do not fit: they have biases such as 'blocks.0.attn.qkv.bias', up to 0.5, which "
        "vit_small_patch16_dinov3 does without: name --architecture vit_small_patch16_dinov3_qkvb."
    )
    other = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, depth=1).eval()
    fill(other, state)
    images = make_images(1, size=32)
    assert torch.equal(other(images), model(images))
    assert not capfd.readouterr().out


def test_biases_of_zeros_are_nothing_to_lose() -> None:
    model, state = dinov3(bias=0.0)
    without = timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=1).eval()
    fill(without, state)
    images = make_images(1, size=32)
    assert torch.equal(without(images), model(images))


def test_a_layer_that_timm_has_no_more_is_not_dropped_in_silence(tmp_path: Path) -> None:
    path = written(tmp_path, {**make_vit(num_classes=5).state_dict(), "pre_logits.fc.weight": torch.ones(4, 4)})
    with pytest.raises(CheckpointError, match=fragments.UNKNOWN_KEY_PRE_LOGITS_FC):
        load_source(path)
    assert load_source(path, num_classes=0).model.num_classes == 0  # it belongs to the head


def test_keys_are_named_as_the_file_has_them(tmp_path: Path) -> None:
    state = {f"net.{key}": value for key, value in make_vit(num_classes=5).state_dict().items()}
    path = written(tmp_path, {**state, "net.surplus": torch.ones(1)})
    with pytest.raises(CheckpointError, match=fragments.THE_UNKNOWN_KEY_NET_SURPLUS):
        load_source(path)
    del state["net.norm.weight"]
    with pytest.raises(CheckpointError, match=fragments.LACK_THE_KEY_NET_NORM):
        load_source(written(tmp_path, state))


def test_what_all_keys_begin_with_is_said_where_it_is_all_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=fragments.EACH_OF_THEIR_KEYS_BEGINS):
        load_source(written(tmp_path, {"bert.layer.weight": torch.ones(1), "bert.norm.weight": torch.ones(1)}))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.complex64], ids=str)
def test_weights_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = make_vit(num_classes=5).state_dict()
    state["blocks.2.mlp.fc1.weight"] = state["blocks.2.mlp.fc1.weight"].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"not floating-point: 'blocks\.2\.mlp\.fc1\.weight' is of type {kind}"):
        load_source(written(tmp_path, state))


def open_clip_file(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model by the names of open_clip's own ViT, with a part of its text tower."""
    swaps = (
        *(("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")),
        *(("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj")),
        *(("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
    )
    file = {"logit_scale": torch.tensor(4.6), "positional_embedding": torch.zeros(77, 32)}
    for key, value in model.state_dict().items():
        if key == "head.weight":
            file["visual.proj"] = value.T.contiguous()
        elif key == "cls_token":
            file["visual.class_embedding"] = value.flatten()
        elif key == "pos_embed":
            file["visual.positional_embedding"] = value[0]
        elif key != "head.bias":
            new = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
            for old, other in swaps:
                new = new.replace(old, other)
            file[f"visual.{new}"] = value
    return file


@pytest.mark.parametrize("front", ["", "module."])
def test_the_projection_of_open_clips_own_models_is_their_head(tmp_path: Path, front: str) -> None:
    name = "vit_xsmall_patch16_clip_224"
    model = make_vit(name, num_classes=7, img_size=64)
    with torch.no_grad():
        model.head.bias.zero_()  # type: ignore[union-attr]
    file = {front + key: value for key, value in open_clip_file(model).items()}
    source = load_source(written(tmp_path, file, "open_clip_pytorch_model.bin"), architecture=name)
    assert source.model.num_classes == 7
    assert_equal(source, model, 64)
    assert load_source(str(tmp_path / "open_clip_pytorch_model.bin"), architecture=name, num_classes=0)
    del file[f"{front}visual.ln_post.bias"]
    with pytest.raises(CheckpointError, match=fragments.LACK_THE_KEY):
        load_source(written(tmp_path, file, "open_clip_pytorch_model.bin"), architecture=name)


# ---------------------------------------------------------------------- what a file cannot say


def test_image_settings_that_a_file_cannot_say_are_told_with_the_options_that_change_them(tmp_path: Path) -> None:
    path = written(tmp_path, make_vit(num_classes=5).state_dict())
    assert load_source(path).notes == (
        f"{path} {IMAGES_TOLD}, so that of test_vit.r160_in1k is taken: mean 0.5,0.5,0.5, std 0.5,0.5,0.5, crop_pct "
        f"0.95, interpolation bicubic. Change it with --mean, --std, --crop-pct, --interpolation.",
    )
    images = ImageSettings(mean="0.485,0.456,0.406", std=0.25)  # type: ignore[arg-type]
    (note,) = load_source(path, images=images).notes
    assert "mean" not in note and note.endswith("Change it with --crop-pct, --interpolation.")


def test_image_settings_that_are_named_are_those_of_the_model(tmp_path: Path) -> None:
    path = written(tmp_path, make_vit(num_classes=5).state_dict())
    images = ImageSettings(mean=(0.1, 0.2, 0.3), std=(0.25,), crop_pct=1.0, interpolation="bilinear")
    source = load_source(path, images=images)
    cfg: Any = source.model.pretrained_cfg
    assert (cfg["mean"], cfg["std"]) == ((0.1, 0.2, 0.3), (0.25, 0.25, 0.25))
    assert (cfg["crop_pct"], cfg["interpolation"]) == (1.0, "bilinear")
    assert not source.notes
    with pytest.raises(ConfigError, match=fragments.MEAN_HAS_2_NUMBERS_BUT):
        load_source(path, images=ImageSettings(mean=(0.5, 0.5)))


def test_a_tag_in_the_name_of_a_file_tells_its_image_settings(tmp_path: Path) -> None:
    model = make_vit("vit_tiny_patch16_224", num_classes=5, depth=12)
    tagged = "vit_tiny_patch16_224.augreg_in21k"
    source = load_source(written(tmp_path, model.state_dict(), f"{tagged}.pth"))
    assert source.name == tagged and tagged in source.notes[0]
    assert load_source(written(tmp_path, model.state_dict(), "vit_tiny_patch16_224.mine.pth")).name == (
        "vit_tiny_patch16_224"
    )


def test_a_new_head_has_no_names_of_another(tmp_path: Path) -> None:
    save_for_hf(
        make_vit(num_classes=3),
        str(tmp_path / "own"),
        model_config={"label_names": ["cat", "dog", "fox"]},
        safe_serialization=True,
    )
    assert class_names(load_source(str(tmp_path / "own")).model) == ["cat", "dog", "fox"]
    assert class_names(load_source(str(tmp_path / "own"), num_classes=3).model) == ["cat", "dog", "fox"]
    for num_classes in (0, 5):
        model = load_source(str(tmp_path / "own"), num_classes=num_classes).model
        assert model.pretrained_cfg["label_names"] is None


def test_a_file_has_no_license_that_is_known(tmp_path: Path) -> None:
    assert load_source(written(tmp_path, make_vit(num_classes=5).state_dict())).provenance("x").license is None
