"""Settings are strict: whatever cannot work is refused with a sentence, before any model is touched."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, InputError
from tosa_cli.settings import check_keys


def test_a_config_error_counts_as_bad_input() -> None:
    assert issubclass(ConfigError, InputError) and ConfigError.exit_code == 2


def test_a_layer_that_the_model_does_not_have_is_refused() -> None:
    config = TosaConfig(layers=(2, 13))
    with pytest.raises(ConfigError, match="Layer 13"):
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
        with pytest.raises(ConfigError, match=re.escape(repr(bypass))):
            TosaConfig(layers=(2,), selector=selector, selection="per-head", bypass=bypass)


@pytest.mark.parametrize("selector", ["similarity", "probe"])
def test_a_selector_with_one_score_a_token_cannot_select_by_head(selector: Any) -> None:
    with pytest.raises(ConfigError, match=selector):
        TosaConfig(layers=(2,), selector=selector, selection="per-head")


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
    with pytest.raises(ConfigError, match=r"botom.*bottom.*top"):
        check_keys({"top": 1, "botom": 2}, ("top", "bottom"), "key")
    with pytest.raises(ConfigError, match=r"7.*bottom, top"):
        check_keys({7: 1}, ("top", "bottom"), "key")  # type: ignore[dict-item]


def test_settings_and_recipes_are_read_without_torch() -> None:
    code = (
        "import sys; import tosa_cli; from tosa_cli import TosaConfig, recipe; TosaConfig(layers=(2, 4));"
        "print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout == "[]\n"
