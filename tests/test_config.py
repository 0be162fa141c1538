"""Settings are strict: whatever cannot work is refused with a sentence, before any model is touched."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, InputError
from tosa_cli.settings import check_keys


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": ()}, "No ToSA layer was given: name at least one, as in --layers 2,4,6."),
        ({"layers": (0,)}, "Layer 0 was given, but layers are whole numbers from 1 up."),
        ({"layers": (-2,)}, "Layer -2 was given, but layers are whole numbers from 1 up."),
        ({"layers": (2.0,)}, "Layer 2.0 was given, but layers are whole numbers from 1 up."),
        ({"layers": (True,)}, "Layer True was given, but layers are whole numbers from 1 up."),
        ({"layers": ("2",)}, "Layer '2' was given, but layers are whole numbers from 1 up."),
        ({"layers": (1, 3)}, "Layer 1 cannot be a ToSA layer: its selector needs a standard layer before it."),
        ({"layers": (2, 3)}, "Layers 2 and 3 are adjacent, but a ToSA layer needs a standard layer before it."),
        ({"layers": (2, 4, 5, 8)}, "Layers 4 and 5 are adjacent"),
        ({"layers": (2, 4, 4)}, "Layer 4 was given twice: name each ToSA layer once."),
        ({"layers": (4, 2)}, "Layers must be in rising order, not 4,2."),
        ({"keep_rate": 0}, "The keep rate of layer 2 is 0, but must be above 0 and at most 1."),
        ({"keep_rate": -0.5}, "The keep rate of layer 2 is -0.5, but must be above 0"),
        ({"keep_rate": 1.01}, "The keep rate of layer 2 is 1.01, but must be above 0 and at most 1."),
        ({"keep_rate": 80}, "The keep rate of layer 2 is 80, but must be above 0 and at most 1."),
        ({"keep_rate": math.nan}, "The keep rate of layer 2 is nan, but must be above 0 and at most 1."),
        ({"keep_rate": math.inf}, "The keep rate of layer 2 is inf, but must be above 0 and at most 1."),
        ({"keep_rate": True}, "The keep rate of layer 2 is True, but must be above 0 and at most 1."),
        ({"keep_rate": (0.5, 1.5)}, "The keep rate of layer 4 is 1.5, but must be above 0 and at most 1."),
        ({"keep_rate": (0.5, "0.5")}, "The keep rate of layer 4 is '0.5', but must be above 0 and at most 1."),
        (
            {"keep_rate": (0.5, 0.5, 0.5)},
            "3 keep rates were given for 2 ToSA layers: give one for all, or one a layer.",
        ),
        ({"keep_rate": (0.5,)}, "1 keep rates were given for 2 ToSA layers"),
        ({"keep_rate": ()}, "0 keep rates were given for 2 ToSA layers"),
        ({"query_rows": 0}, "query_rows must be 'all' or a number from 1 up, not 0."),
        ({"query_rows": -1}, "query_rows must be 'all' or a number from 1 up, not -1."),
        ({"query_rows": 1.5}, "query_rows must be 'all' or a number from 1 up, not 1.5."),
        ({"query_rows": True}, "query_rows must be 'all' or a number from 1 up, not True."),
        ({"query_rows": "some"}, "query_rows must be 'all' or a number from 1 up, not 'some'."),
        ({"query_rows": None}, "query_rows must be 'all' or a number from 1 up, not None."),
        ({"neighbors": 0}, "neighbors must be 1 or more, not 0."),
        ({"neighbors": -3}, "neighbors must be 1 or more, not -3."),
        ({"neighbors": 1.5}, "neighbors must be a whole number, not 1.5."),
        ({"neighbors": True}, "neighbors must be a whole number, not True."),
        ({"neighbors": None}, "neighbors must be a whole number, not None."),
        ({"span": 0}, "span must be 1 or more, not 0."),
        ({"span": 2.0}, "span must be a whole number, not 2.0."),
        ({"span": 2}, "The selector 'attention' chooses anew in each ToSA layer, so no layers share a choice"),
        (
            {"layers": (1, 2), "selector": "similarity", "span": 2, "keep_rate": (0.9, 0.8)},
            "Layers 1 and 2 share one choice of tokens (span 2), so they need one keep rate, not 0.9 and 0.8.",
        ),
        ({"selector_kernel": 2}, "selector_kernel must be odd and positive (1, 3, 5, ...), not 2."),
        ({"selector_kernel": 0}, "selector_kernel must be odd and positive (1, 3, 5, ...), not 0."),
        ({"selector_kernel": -1}, "selector_kernel must be odd and positive (1, 3, 5, ...), not -1."),
        ({"selector_kernel": 3.0}, "selector_kernel must be odd and positive (1, 3, 5, ...), not 3.0."),
        (
            {"selector": "atention"},
            "selector must be one of: attention, similarity, probe, previous, random; not 'atention'.",
        ),
        ({"selection": "per_head"}, "selection must be one of: shared, per-head; not 'per_head'."),
        (
            {"bypass": "zero"},
            "bypass must be one of: identity, linear, nearest, nearest+affine, nearest+linear; not 'zero'.",
        ),
        (
            {"selector": None},
            "selector must be one of: attention, similarity, probe, previous, random; not None.",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        TosaConfig(**{"layers": (2, 4), **settings})
    assert sentence in str(failure.value)


@pytest.mark.parametrize("settings", [{"layers": 5}, {"layers": None}, {"layers": (2, 4), "keep_rate": None}], ids=str)
def test_a_setting_of_the_wrong_kind_is_refused_with_a_sentence_too(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TosaConfig(**settings)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layers": [2], "keep_rat": 0.5}, "Unknown setting 'keep_rat'. Did you mean 'keep_rate'?"),
        (
            {"layers": [2], "colour": "red"},
            "Unknown setting 'colour'. Valid: bypass, keep_rate, layers, neighbors, query_rows,",
        ),
        ({"keep_rate": 0.5}, "The setting 'layers' is missing: it must be a list of layer numbers such as [2, 4, 6]."),
        ({"layers": "2,4"}, "layers must be a list of layer numbers such as [2, 4, 6], not '2,4'."),
        ({"layers": 2}, "layers must be a list of layer numbers such as [2, 4, 6], not 2."),
        ({"layers": None}, "layers must be a list of layer numbers such as [2, 4, 6], not None."),
        ({"layers": ["2", "4"]}, "Layer '2' was given, but layers are whole numbers from 1 up."),
        ({"layers": [[2]]}, "Layer [2] was given, but layers are whole numbers from 1 up."),
        ({"layers": [2], "keep_rate": "0.5"}, "keep_rate must be a number or a list of numbers, not '0.5'."),
        ({"layers": [2], "keep_rate": None}, "keep_rate must be a number or a list of numbers, not None."),
        ({"layers": [2], "keep_rate": True}, "The keep rate of layer 2 is True"),
        ({"layers": [2], "keep_rate": [True]}, "The keep rate of layer 2 is True"),
        ({"layers": [2], "query_rows": "16"}, "query_rows must be 'all' or a number from 1 up, not '16'."),
        (
            {"layers": [2], "selector": ["random"]},
            "selector must be one of: attention, similarity, probe, previous, random; not ['random'].",
        ),
    ],
)
def test_settings_from_a_file_are_read_strictly(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        TosaConfig.from_dict(values)
    assert sentence in str(failure.value)


def test_a_config_error_counts_as_bad_input() -> None:
    assert issubclass(ConfigError, InputError) and ConfigError.exit_code == 2


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    config = TosaConfig(layers=(2, 13))
    with pytest.raises(ConfigError, match=r"Layer 13 was asked for, but the model has 12 layers \(1 to 12\)\."):
        config.check_depth(12)
    config.check_depth(13)


@pytest.mark.parametrize("selector", ["attention", "previous"])
def test_a_selector_that_reads_maps_needs_a_standard_layer_before_each_tosa_layer(selector: Any) -> None:
    assert TosaConfig(layers=(2, 4, 7), selector=selector).feeding_layers == {1, 3, 6}
    for layers in [(1, 3), (2, 3)]:
        with pytest.raises(ConfigError):
            TosaConfig(layers=layers, selector=selector)


@pytest.mark.parametrize("selector", ["similarity", "probe", "random"])
def test_a_selector_that_reads_no_maps_may_start_at_layer_one_and_use_adjacent_layers(selector: Any) -> None:
    config = TosaConfig(layers=(1, 2, 3), selector=selector)
    assert config.feeding_layers == frozenset() and not config.reads_maps


@pytest.mark.parametrize("selector", ["attention", "previous", "random"])
def test_selection_by_head_has_no_bypass_but_the_papers(selector: Any) -> None:
    assert TosaConfig(layers=(2,), selector=selector, selection="per-head").bypass == "identity"
    for bypass in ("linear", "nearest", "nearest+affine", "nearest+linear"):
        with pytest.raises(ConfigError, match=r"in some heads only, so it has no bypass '.*': leave out --bypass, or"):
            TosaConfig(layers=(2,), selector=selector, selection="per-head", bypass=bypass)


@pytest.mark.parametrize("selector", ["similarity", "probe"])
def test_a_selector_with_one_score_a_token_cannot_select_by_head(selector: Any) -> None:
    with pytest.raises(ConfigError) as failure:
        TosaConfig(layers=(2,), selector=selector, selection="per-head")
    assert str(failure.value) == (
        f"The selector '{selector}' has one score a token, not one a head: use --selection shared, or one of the "
        f"selectors attention, previous, random."
    )


@pytest.mark.parametrize(
    ("bypass", "selector", "matches", "keys", "fitted"),
    [
        ("identity", "attention", False, False, False),
        ("identity", "similarity", False, True, False),
        ("identity", "probe", False, False, True),
        ("linear", "previous", False, False, True),
        ("nearest", "random", True, True, False),
        ("nearest", "probe", True, True, True),
        ("nearest+affine", "attention", True, True, True),
        ("nearest+linear", "similarity", True, True, True),
    ],
)
def test_what_a_model_needs_follows_from_selector_and_bypass(
    bypass: Any, selector: Any, matches: bool, keys: bool, fitted: bool
) -> None:
    config = TosaConfig(layers=(2,), bypass=bypass, selector=selector)
    assert (config.matches_tokens, config.needs_keys, config.is_fitted) == (matches, keys, fitted)


def test_one_keep_rate_holds_for_all_layers_and_a_list_for_one_each() -> None:
    assert TosaConfig(layers=(2, 4), keep_rate=0.3).keep_rates == {2: 0.3, 4: 0.3}
    assert TosaConfig(layers=(2, 4), keep_rate=(0.3, 1)).keep_rates == {2: 0.3, 4: 1}


def test_layers_in_a_row_share_the_choice_of_the_first_of_their_span() -> None:
    def choosing(span: int) -> list[int]:
        config = TosaConfig(layers=(1, 2, 3, 5, 6, 8), selector="similarity", span=span)
        return list(config.choosing_layers.values())

    assert choosing(1) == [1, 2, 3, 5, 6, 8]
    assert choosing(2) == [1, 1, 3, 5, 5, 8]
    assert choosing(9) == [1, 1, 1, 5, 5, 8]


@pytest.mark.parametrize(
    "config",
    [
        TosaConfig(layers=(2,)),
        TosaConfig(layers=(2, 4), keep_rate=(0.25, 1.0), selector="previous", query_rows="all"),
        TosaConfig(layers=(1, 2), selector="random", selection="per-head", selector_kernel=5, query_rows=1),
        TosaConfig(layers=(1, 2, 3), selector="similarity", bypass="nearest+affine", neighbors=2, span=3),
    ],
    ids=lambda config: config.selector,
)
def test_settings_survive_the_way_through_json(config: TosaConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    assert sorted(values) == sorted(TosaConfig.field_names())
    assert TosaConfig.from_dict(values) == config
    assert hash(TosaConfig.from_dict(values)) == hash(config)


def test_an_unknown_key_is_named_with_the_nearest_and_all_valid_ones() -> None:
    check_keys({"top": 1}, ("top", "bottom"), "key")
    with pytest.raises(ConfigError, match=r"Unknown key 'botom'\. Did you mean 'bottom'\? Valid: bottom, top\."):
        check_keys({"top": 1, "botom": 2}, ("top", "bottom"), "key")
    with pytest.raises(ConfigError, match=r"Unknown key 7\. Valid: bottom, top\."):
        check_keys({7: 1}, ("top", "bottom"), "key")  # type: ignore[dict-item]


def test_settings_and_recipes_are_read_without_torch() -> None:
    code = (
        "import sys; import tosa_cli; from tosa_cli import TosaConfig, recipe; TosaConfig(layers=(2, 4));"
        "print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout == "[]\n"
