"""Training settings are strict, and forgiving where YAML is not."""

from typing import Any

import pytest
import yaml

from tosa_cli.errors import ConfigError
from tosa_cli.recipe import list_recipes, load_recipe
from tosa_cli.settings import option_name
from tosa_cli.train.config import DistillConfig, FinetuneConfig, TrainConfig
from tosa_cli.train.predictor_config import PredictorConfig


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    values = yaml.safe_load("lr: 1e-3\nepochs: '5'\nweight_decay: 5e-2\nclip_grad: null\nwarmup_epochs: 1")
    assert isinstance(values["lr"], str)
    config = FinetuneConfig.from_dict(values)
    assert (config.lr, config.epochs, config.weight_decay, config.clip_grad) == (1e-3, 5, 0.05, None)
    assert isinstance(config.warmup_epochs, float) and isinstance(config.epochs, int)


KINDS = (TrainConfig, DistillConfig, FinetuneConfig, PredictorConfig)
BY_EACH_OTHER = {"min_depth", "max_depth"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_a_range(kind: type[TrainConfig]) -> None:
    numbers = [declared for declared in kind.declarations().values() if declared.is_number]
    assert len(numbers) > 10
    for declared in numbers:
        if declared.name in BY_EACH_OTHER:
            continue
        setting, wrong = declared.setting, []
        wrong += [setting.ge - 1] if setting.ge is not None else [setting.gt]
        wrong += [setting.le + 1] if setting.le is not None else []
        wrong += [setting.lt] if setting.lt is not None else []
        for value in wrong:
            with pytest.raises(ConfigError, match=f"^{option_name(declared.name)} .*{value}"):
                kind.from_dict({declared.name: value})


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
