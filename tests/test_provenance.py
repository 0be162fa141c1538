"""A model remembers where it comes from, and what was done to it."""

import json
from typing import Any

import pytest

from tosa_cli.errors import ConfigError
from tosa_cli.provenance import FORMAT_VERSION, Provenance, command_of


def test_provenance_survives_the_way_through_json() -> None:
    provenance = Provenance(source="deit_tiny", base_model="deit_tiny_patch16_224.fb_in1k").after(
        "distilled", {"lr": 1}
    )
    assert Provenance.from_dict(json.loads(json.dumps(provenance.to_dict()))) == provenance


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"format_version": FORMAT_VERSION + 1, "unheard_of": 1},
            f"The folder has format_version {FORMAT_VERSION + 1}, but this tosa reads up to {FORMAT_VERSION}: "
            "run `pip install -U tosa-cli`.",
        ),
        ({}, "format_version should be a whole number from 1 up, but is None."),
        ({"format_version": "1"}, "format_version should be a whole number from 1 up, but is '1'."),
        ({"format_version": True}, "format_version should be a whole number from 1 up, but is True."),
        ({"format_version": 0}, "format_version should be a whole number from 1 up, but is 0."),
        ({"format_version": 1, "sourc": "x"}, "Unknown key in the tosa block: 'sourc'. Did you mean 'source'?"),
    ],
)
def test_provenance_is_read_strictly(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        Provenance.from_dict(values)
    assert sentence in str(failure.value)


@pytest.mark.parametrize(
    "values", [{"stage": "melted"}, {"steps": ["convert"]}, {"results": 3}, {"steps": None}], ids=str
)
def test_a_provenance_whose_values_nothing_can_work_with_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Provenance.from_dict({"format_version": FORMAT_VERSION, **values})


def test_a_further_step_is_added_and_figures_measured_before_it_are_dropped() -> None:
    converted = Provenance(results={"eval": {"top1": 70.0}}).after("converted", {"layers": [2]})
    distilled = converted.after("distilled", {"lr": 0.01}, {"distill": {"samples": 8}})
    assert distilled.stage == "distilled"
    assert distilled.steps == {"convert": {"layers": [2]}, "distill": {"lr": 0.01}}
    assert converted.results == {} and distilled.results == {"distill": {"samples": 8}}


def test_a_command_that_is_run_again_is_a_step_of_its_own_in_its_place() -> None:
    provenance = Provenance().after("converted", {"layers": [2]})
    for seed, stage in enumerate(("distilled", "finetuned", "distilled", "distilled")):
        provenance = provenance.after(stage, {"seed": seed})  # type: ignore[arg-type]
    assert list(provenance.steps) == ["convert", "distill", "finetune", "distill-2", "distill-3"]
    assert [command_of(step) for step in provenance.steps][2:] == ["finetune", "distill", "distill"]
    assert provenance.steps["distill"] == {"seed": 0} and provenance.steps["distill-3"] == {"seed": 3}


@pytest.mark.parametrize(
    ("stages", "distilled", "finetuned"),
    [
        ((), False, False),
        (("distilled",), True, False),
        (("finetuned",), False, True),
        (("finetuned", "distilled"), True, True),
    ],
    ids=str,
)
def test_what_was_done_is_known_whatever_came_after(stages: tuple[Any, ...], distilled: bool, finetuned: bool) -> None:
    provenance = Provenance().after("converted", {"layers": [2]})
    for stage in stages:
        provenance = provenance.after(stage, {})
    assert (provenance.is_distilled, provenance.is_finetuned) == (distilled, finetuned)
