"""Training settings are strict, and forgiving where YAML is not."""

from typing import Any

import pytest
import yaml

from tosa_cli.errors import ConfigError
from tosa_cli.recipe import list_recipes, load_recipe
from tosa_cli.train.config import DistillConfig, FinetuneConfig, TrainConfig
from tosa_cli.train.dense_config import DenseConfig


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    values = yaml.safe_load("lr: 1e-3\nepochs: '5'\nweight_decay: 5e-2\nclip_grad: null\nwarmup_epochs: 1")
    assert isinstance(values["lr"], str)
    config = FinetuneConfig.from_dict(values)
    assert (config.lr, config.epochs, config.weight_decay, config.clip_grad) == (1e-3, 5, 0.05, None)
    assert isinstance(config.warmup_epochs, float) and isinstance(config.epochs, int)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": "five"}, "epochs must be a whole number, not 'five'."),
        ({"epochs": 1.5}, "epochs must be a whole number, not 1.5."),
        ({"epochs": True}, "epochs must be a whole number, not True."),
        ({"epochs": None}, "epochs must be a whole number, not None."),
        ({"epochs": 0}, "epochs must be a whole number from 1 up, not 0."),
        ({"lr": "fast"}, "lr must be a number, not 'fast'."),
        ({"lr": [1]}, r"lr must be a number, not \[1\]."),
        ({"lr": "nan"}, "lr must be a number, not 'nan'."),
        ({"lr": 0}, "lr must be above 0, not 0.0."),
        ({"strict": "yes please"}, "strict must be true or false, not 'yes please'."),
        ({"opt": 3}, "opt must be a text, not 3."),
        ({"amp": "fp8"}, "amp must be one of no, bf16, fp16; not 'fp8'."),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda; not 'tpu'."),
        ({"batch_size": -1}, "batch_size must be a whole number from 1 up, not -1."),
        ({"workers": -1}, "workers must be 0 or more, not -1."),
        ({"max_samples": 0}, "max_samples must be 1 or more, not 0."),
        ({"warmup_epochs": 31}, r"warmup_epochs \(31.0\) cannot be more than epochs \(30\)."),
        ({"learning_rate": 1}, "Unknown setting 'learning_rate'."),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        FinetuneConfig.from_dict(values)


@pytest.mark.parametrize("kind", [TrainConfig, DistillConfig, FinetuneConfig, DenseConfig])
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
    kind = DenseConfig if "task" in sections["finetune"] else FinetuneConfig
    assert kind.from_dict(sections["finetune"]).lr > 0
