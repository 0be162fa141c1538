"""transformers loads, places, trains and pushes a converted whole model as it does any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForDepthEstimation, Trainer, TrainingArguments, ViTForImageClassification

import tosa_cli
from tests.hub.stub_hub import (
    StubHub,
    start_stub_hub,  # noqa: F401 (the fixture `stub_hub`)
)
from tests.model.test_whole_models import GROUPED, NEAREST, build, output
from tosa_cli.model.runs import converted_runs


@pytest.fixture
def depth() -> Any:
    return tosa_cli.convert(build("depth_anything"), GROUPED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_is_loaded_in_half_precision(depth: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    expected = output(depth, "depth_anything")
    depth.save_pretrained(tmp_path)
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path, dtype=dtype)
    assert next(model.parameters()).dtype == dtype
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = model(images.to(dtype)).predicted_depth
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("places", ["auto", {"backbone": "cpu", "neck": "cpu", "head": "cpu"}], ids=["auto", "parts"])
def test_a_model_is_placed_by_a_device_map(depth: Any, tmp_path: Path, places: Any) -> None:
    depth.save_pretrained(tmp_path)
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path, device_map=places)
    device = next(model.parameters()).device.type
    assert converted_runs(model)[0].run.config == GROUPED
    torch.testing.assert_close(output(model.cpu(), "depth_anything"), output(depth, "depth_anything"))
    assert device == ("cuda" if places == "auto" and torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("config", [GROUPED, NEAREST], ids=["grouped", "nearest"])
def test_a_trainer_takes_a_step_and_saves_what_loads(config: Any, tmp_path: Path) -> None:
    model = tosa_cli.convert(build("vit"), config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = [{"pixel_values": torch.randn(3, 56, 56), "labels": number % 2} for number in range(4)]
    how = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, gradient_checkpointing=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=how, train_dataset=images)
    trainer.train()
    assert not torch.equal(model.vit.layers[1].mlp.fc1.weight, before["vit.layers.1.mlp.fc1.weight"])
    trainer.save_model(str(tmp_path / "saved"))
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert converted_runs(loaded)[0].run.config == config
    torch.testing.assert_close(output(loaded, "vit"), output(model.eval(), "vit"))


def test_a_model_is_pushed_by_transformers_and_loaded_from_there(stub_hub: StubHub, depth: Any) -> None:
    depth.push_to_hub("me/depth")
    assert {"config.json", "model.safetensors"} <= set(stub_hub.files("me/depth"))
    loaded = AutoModelForDepthEstimation.from_pretrained("me/depth")
    assert converted_runs(loaded)[0].run.config == GROUPED
    torch.testing.assert_close(output(loaded.eval(), "depth_anything"), output(depth, "depth_anything"))
