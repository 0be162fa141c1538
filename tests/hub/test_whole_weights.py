"""Weights of whole models are read out of what training put around them, and are those of the file to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.whole_models import BACKBONE, depth_anything, llava
from tests.sentences import fragments
from tosa_cli.errors import CheckpointError
from tosa_cli.hub.whole import load_whole
from tosa_cli.hub.whole_names import own_names

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return depth_anything().eval()


def prefixed(front: str, state: State) -> State:
    return {front + key: value for key, value in state.items()}


def inside(name: str, wrapper: str, state: State) -> State:
    return {key.replace(name, f"{name}{wrapper}"): value for key, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "DDP": lambda state: prefixed("module.", state),
    "torch.compile": lambda state: prefixed("_orig_mod.", state),
    "DDP of torch.compile": lambda state: prefixed("module._orig_mod.", state),
    "compiled blocks": lambda state: inside("layer.0.", "_orig_mod.", state),
    "FSDP": lambda state: prefixed("_fsdp_wrapped_module.", inside("layer.1.", "_fsdp_wrapped_module.", state)),
    "checkpointed activations": lambda state: inside("layer.1.", "_checkpoint_wrapped_module.", state),
    "PEFT, merged": lambda state: prefixed("base_model.model.", inside("q_proj.", "base_layer.", state)),
    "PEFT, a trained copy": lambda state: {
        **inside("conv1.", "modules_to_save.default.", state),
        "head.conv1.original_module.weight": torch.zeros(1),
    },
    "Lightning": lambda state: {
        "state_dict": {**prefixed("model.", state), "loss.scale": torch.ones(1)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "epoch": 3,
    },
    "DeepSpeed": lambda state: {"module": state, "optimizer": {"m": torch.ones(2)}, "ds_version": "0.14"},
    "net.": lambda state: prefixed("net.", state),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=list(WRAPPED))
def test_what_training_put_around_weights_is_taken_off(
    model: Any, tmp_path: Path, wrap: Callable[[State], Any]
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    torch.save(wrap(state), tmp_path / "pytorch_model.bin")
    whole = load_whole(str(tmp_path))
    found = whole.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert whole.unused in ((), ("state_dict.loss.scale",))


def test_how_a_model_writes_text_is_kept(tmp_path: Path) -> None:
    model: Any = llava()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({f"module.{key}": value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    found = load_whole(str(tmp_path)).model
    assert found.generation_config.max_new_tokens == 7
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())


def test_parts_of_a_model_are_no_prefix() -> None:
    state = {f"model.{name}.weight": torch.ones(1) for name in "ab"}
    assert own_names(state, ["model", "lm_head"], "file").keys() == state.keys()
    assert own_names(state, ["a", "b"], "file").keys() == {"a.weight", "b.weight"}


def test_of_several_sets_of_weights_none_is_guessed() -> None:
    state = {"a.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=fragments.SEVERAL_MODEL_AND_MODEL_EMA):
        own_names({"model": state, "model_ema": state}, ["a"], "file")


@pytest.mark.parametrize("peft", ["lora_A.default.weight", "hada_w1_a.default", "ia3_l.default", "vera_lambda_b.x"])
def test_an_adapter_beside_the_weights_is_refused(model: Any, tmp_path: Path, peft: str) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    query = "backbone.encoder.layer.0.attention.attention.query"
    state = load_file(file)
    assert f"{query}.weight" in state
    save_file({**state, f"{query}.{peft}": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=fragments.NOT_MERGED):
        load_whole(str(tmp_path))


def test_biases_that_a_config_leaves_out_are_told(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**BACKBONE)
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"qkv_bias": true', '"qkv_bias": false'))
    with pytest.raises(CheckpointError, match=fragments.BIAS_BUT_ITS_CONFIG_JSON):
        load_whole(str(tmp_path))


def test_whole_numbers_are_no_weights_whatever_they_are_called(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith("lambda1"))
    save_file({**state, key: state[key].to(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=fragments.LAMBDA1_IS_OF_TYPE_INT8):
        load_whole(str(tmp_path))
