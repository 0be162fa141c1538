"""Training settings are strict, and forgiving where YAML is not."""

import dataclasses
from typing import Any

import pytest
import yaml

from tosa_cli.errors import ConfigError
from tosa_cli.recipe import list_recipes, load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig, TrainConfig
from tosa_cli.train.predictor_config import PredictorConfig


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    values = yaml.safe_load("lr: 1e-3\nepochs: '5'\nweight_decay: 5e-2\nclip_grad: null\nwarmup_epochs: 1")
    assert isinstance(values["lr"], str)
    config = FinetuneConfig.from_dict(values)
    assert (config.lr, config.epochs, config.weight_decay, config.clip_grad) == (1e-3, 5, 0.05, None)
    assert isinstance(config.warmup_epochs, float) and isinstance(config.epochs, int)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": "five"}, "--epochs must be a whole number, not 'five'."),
        ({"epochs": 1.5}, "--epochs must be a whole number, not 1.5."),
        ({"epochs": True}, "--epochs must be a whole number, not True."),
        ({"epochs": None}, "--epochs must be a whole number, not None."),
        ({"epochs": 0}, "--epochs must be 1 or more, not 0."),
        ({"lr": "fast"}, "--lr must be a number, not 'fast'."),
        ({"lr": [1]}, r"--lr must be a number, not \[1\]."),
        ({"lr": "nan"}, "--lr must be a number, not 'nan'."),
        ({"lr": 0}, "--lr must be above 0, not 0."),
        ({"strict": "yes please"}, "--strict must be true or false, not 'yes please'."),
        ({"opt": 3}, "--opt must be a text, not 3."),
        ({"amp": "fp8"}, "--amp must be one of: no, bf16, fp16; not 'fp8'."),
        ({"device": "tpu"}, "--device must be one of: auto, cpu, cuda; not 'tpu'."),
        ({"batch_size": -1}, "--batch-size must be 1 or more, not -1."),
        ({"workers": -1}, "--workers must be 0 or more, not -1."),
        ({"max_samples": 0}, "--max-samples must be 1 or more, not 0."),
        ({"warmup_epochs": 31}, r"--warmup-epochs \(31.0\) cannot be more than --epochs \(30\)."),
        ({"learning_rate": 1}, "Unknown setting 'learning_rate'."),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        FinetuneConfig.from_dict(values)


KINDS = (TrainConfig, DistillConfig, FinetuneConfig, PredictorConfig)
OUT_OF_RANGE = (
    ("must be 1 or more", (0, -1), "epochs batch_size grad_accum_steps max_samples max_watched"),
    ("must be above 0,", (0, -1), "lr max_minutes"),
    ("must be 0 or more,", (-1,), "min_lr encoder_lr_scale warmup_epochs weight_decay clip_grad workers eval_every"),
    ("must be 0 or more,", (-1,), "checkpoint_every feature_layers mixup cutmix color_jitter rotation depth_scale"),
    ("must be from 0 to 4294967295", (-1, 2**32), "seed"),
    ("must be from 0 to 1", (-0.1, 2), "reprob hflip"),
    ("must be above 0 and at most 1", (0, 1.1), "crop_scale layer_decay"),
    ("must be 0 or more and below 1", (-0.1, 1, 2), "smoothing drop_path model_ema_decay"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_a_range_that_is_told(kind: type[TrainConfig]) -> None:
    wrong = {name: (sentence, values) for sentence, values, names in OUT_OF_RANGE for name in names.split()}
    checked_by_the_task = {"decoder_dim", "min_depth", "max_depth", "num_labels"}
    for field in dataclasses.fields(kind):
        if field.type in (int, float, int | None, float | None) and field.name not in checked_by_the_task:
            sentence, values = wrong[field.name]
            for value in values:
                with pytest.raises(ConfigError) as refused:
                    kind.from_dict({field.name: value})
                assert str(refused.value).startswith(f"--{field.name.replace('_', '-')} {sentence}")
                assert str(refused.value).endswith((f"not {value}.", f"not {float(value)}."))


@pytest.mark.parametrize(
    "ends",
    [
        {"epochs": 1, "batch_size": 1, "seed": 2**32 - 1, "clip_grad": 0, "min_lr": 0, "workers": 0},
        {"smoothing": 0, "reprob": 1, "hflip": 1, "crop_scale": 1, "layer_decay": 1, "drop_path": 0, "mixup": 0},
    ],
)
def test_the_ends_of_a_range_may_be_in_it(ends: dict[str, Any]) -> None:
    config = FinetuneConfig.from_dict(ends)
    assert {name: getattr(config, name) for name in ends} == ends


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_being_written(kind: type[TrainConfig]) -> None:
    config = kind(data_dir="photos", lr=0.5, clip_grad=None)
    assert kind.from_dict(config.to_dict()) == config
    assert kind.from_dict(config.recorded()) == config


def test_what_is_recorded_is_short() -> None:
    recorded = DistillConfig(data_dir="photos", max_samples=10).recorded()
    assert set(recorded) == {"data_dir", "max_samples", "epochs", "batch_size", "lr", "seed"}
    assert recorded["max_samples"] == 10


@pytest.mark.parametrize("name", [recipe.name for recipe in list_recipes()])
def test_the_settings_of_every_recipe_are_valid(name: str) -> None:
    sections = load_recipe(name).sections
    assert DistillConfig.from_dict(sections["distill"]).lr > 0
    kind = PredictorConfig if "task" in sections["finetune"] else FinetuneConfig
    assert kind.from_dict(sections["finetune"]).lr > 0
