"""`tosa list`."""

import pytest

from tests.sentences import fragments

from .conftest import Tosa


def test_those_that_match_are_listed_with_the_reason_against_them(tosa: Tosa) -> None:
    done = tosa("list test_vit")
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()] == [
        [name, "yes"] for name in ("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos")
    ]
    assert "5 of 5 " in done.err and fragments.NEXT_TOSA_INSPECT_TEST_VIT in done.err
    done = tosa("list swin_tiny")
    name, _, answer = done.out.partition(" ")
    assert name == "swin_tiny_patch4_window7_224" and answer.strip().startswith("no: Its attention runs in windows")
    assert "0 of 1 " in done.err and "Next" not in done.err


def test_patterns_are_timms(tosa: Tosa) -> None:
    assert tosa("list test_vit?").out.split() == ["test_vit2", "yes", "test_vit3", "yes", "test_vit4", "yes"]


def test_without_a_pattern_only_those_that_convert_are_listed(tosa: Tosa, monkeypatch: pytest.MonkeyPatch) -> None:
    # Most of the time to build a model without weights goes into drawing them.
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_, **__: tensor)
    done = tosa("list")
    lines = done.out.splitlines()
    assert len(lines) > 280 and all(line.endswith("  yes") for line in lines)
    assert f"{len(lines)} of 1" in done.err


def test_those_that_cannot_be_converted_may_be_asked_for(tosa: Tosa) -> None:
    done = tosa("list dwee --unsupported")
    assert done.out.startswith("vit_dwee_patch16_reg1_gap_256  no: ")
    assert tosa("list test_vit --unsupported").out == ""


def test_json_has_the_same(tosa: Tosa) -> None:
    (row,) = tosa("list swin_tiny --json").json
    assert row.pop("reason").startswith("Its attention runs in windows")
    assert row == {"architecture": "swin_tiny_patch4_window7_224", "family": "swin_transformer", "convertible": False}
    (row,) = tosa("list test_vit_relpos --json").json
    assert row["convertible"] is True and row["reason"] is None


def test_a_pattern_that_matches_nothing_is_refused(tosa: Tosa) -> None:
    done = tosa("list xyzzy")
    assert done.code == 2 and done.out == ""
    assert "'xyzzy'" in done.err
