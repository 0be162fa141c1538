"""`tosa bench`: what is measured beside what, with its conditions, and what is refused."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Done, Tosa
from tests.sentences import fragments
from tosa_cli.cli.timing import say_conditions
from tosa_cli.peers.compare import PEERS

FAST = "bench -b 2 --rounds 1 --device cpu"
CONDITIONS = {"device", "dtype", "torch", "threads", "compile", "rounds"}
TIMING = {"median_s", "min_s", "max_s", "peak_memory_mb"}
SPEED = {"speedup", "speedup_min", "speedup_max", "ideal_speedup"}


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch a turn: no test reads a time."""
    from tosa_cli.measure import speed

    # Turns repeat a batch until half a second is over; a batch that seems to take an hour is not repeated.
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)


def refused(done: Done, *parts: str) -> None:
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err, done.err
    for part in parts:
        assert part in done.err.splitlines()[-1], done.err


# ---------------------------------------------------------------- peers


def test_peers_stand_beside_the_model_at_the_same_macs(converted: Path, tosa: Tosa) -> None:
    report = tosa(f"{FAST} --peers --json").json
    assert {*CONDITIONS, "model", "batch_size", "img_size", "target_reduction", "models", "missing"} <= set(report)
    assert list(report["models"]) == ["dense", "tosa", *PEERS]
    assert report["missing"] == {} and report["samples"] is None
    for name, row in report["models"].items():
        assert {*TIMING, *SPEED, "gmacs", "reduction", "settings"} <= set(row) and "patch_cosine" not in row
        assert row["peak_memory_mb"] > 0
        if name != "dense":
            assert row["reduction"] >= report["target_reduction"]
    assert report["models"]["dense"]["ideal_speedup"] == 1
    assert report["models"]["tosa"]["reduction"] == report["target_reduction"]
    assert report["models"]["tosa"]["settings"]["layers"] == [2, 4]


def test_photos_tell_the_quality_of_each_peer(converted: Path, tosa: Tosa) -> None:
    done = tosa(f"{FAST} --peers --data-dir photos --max-samples 5 -j 0 --json")
    report = done.json
    assert report["samples"] == 5 and report["dataset"] == "photos" and report["skipped"] == []
    models = report["models"]
    assert models["dense"]["patch_cosine"] == pytest.approx(1)
    assert list(models) == ["dense", "tosa", *PEERS]
    for row in models.values():
        assert all(0 < row[f"{kind}_cosine"] < 1.0001 for kind in ("patch", "class"))
        assert all(row[f"{kind}_worst_tenth"] <= row[f"{kind}_median"] + 1e-4 for kind in ("patch", "class"))
    done = tosa(f"{FAST} --peers --data-dir photos -j 0")
    assert done.code == 0 and "5 photos" not in done.err and "24 photos" in done.err
    merge = next(line for line in done.out.splitlines() if "merge " in line and "unmerge" not in line)
    assert " - " not in merge and "cpu" in done.err and fragments.WORST_TENTH in done.out


def test_a_photo_that_cannot_be_read_is_told(converted: Path, tosa: Tosa) -> None:
    Path("photos/bad.jpg").write_bytes(b"bad")
    done = tosa(f"{FAST} --peers --data-dir photos -j 0 --json")
    assert done.json["samples"] == 24 and len(done.json["skipped"]) == 1 and "bad.jpg" in done.err


def test_a_peer_that_cannot_save_as_much_is_left_out_with_the_reason(work: Path, tosa: Tosa) -> None:
    settings = "--layers 1,2,3,4 --selector random --keep-rate 0.3"
    assert tosa(f"convert dense {settings} -o small").code == 0
    done = tosa("bench small -b 2 --rounds 1 --device cpu --peers --json")
    assert done.code == 0 and {"previous", "random"} <= set(done.json["missing"])
    assert "cannot be reached" in done.json["missing"]["previous"]
    assert fragments.PREVIOUS_LEFT_OUT_THE_TARGET in tosa("bench small -b 2 --rounds 1 --peers").out


def test_a_model_that_saves_nothing_has_no_peers(work: Path, tosa: Tosa) -> None:
    assert tosa("convert dense --layers 2,4 --keep-rate 1.0 -o same").code == 0
    refused(tosa("bench same --peers"), "Peers are compared at the model's reduction of MACs", "smaller --keep-rate")


def test_peers_in_bfloat16(converted: Path, tosa: Tosa) -> None:
    done = tosa(f"{FAST} --peers --data-dir photos --max-samples 4 -j 0 --dtype bfloat16 --json")
    assert done.code == 0, done.err
    assert done.json["dtype"] == "bfloat16" and len(done.json["models"]) == 2 + len(PEERS)


def test_the_conditions_name_what_computed(capsys: pytest.CaptureFixture[str]) -> None:
    report = SimpleNamespace(device="cpu", dtype="float32", threads=1, torch="2.14.1", compile=False)
    say_conditions(report)
    assert fragments.ONE_THREAD_EAGER in capsys.readouterr().err
    say_conditions(report, "onnxruntime 1.32.0")
    told = capsys.readouterr().err
    assert fragments.ONE_THREAD_ONNXRUNTIME in told and "torch" not in told and "eager" not in told


# ---------------------------------------------------------------- sweep


def test_a_sweep_measures_every_combination(converted: Path, tosa: Tosa) -> None:
    done = tosa(f"{FAST} --sweep --keep-rates 0.8,0.4 --batch-sizes 1,2 --img-sizes 32,48x32 --json")
    report = done.json
    assert {*CONDITIONS, "model", "rows"} == set(report)
    combinations = [(row["img_size"], row["batch_size"], row["keep_rate"]) for row in report["rows"]]
    sizes = ([32, 32], [48, 32])
    assert combinations == [(size, batch, rate) for size in sizes for batch in (1, 2) for rate in (0.8, 0.4)]
    for row in report["rows"]:
        assert {*SPEED, "reduction", "share_of_ideal"} <= set(row)
        assert set(row["dense"]) == set(row["tosa"]) == TIMING


def test_a_sweep_without_more_takes_the_sizes_of_plain_bench(converted: Path, tosa: Tosa) -> None:
    done = tosa(f"{FAST} --sweep --img-size 48 --dtype bfloat16 --json")
    rows = done.json["rows"]
    assert [row["keep_rate"] for row in rows] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert all(row["batch_size"] == 2 and row["img_size"] == [48, 48] for row in rows)
    assert done.json["dtype"] == "bfloat16"
    done = tosa(f"{FAST} --sweep --keep-rates 0.5")
    assert fragments.OF_EACH_MODEL_1_COMBINATION in done.err
    assert done.code == 0 and "32x32" in done.out and "share" in done.out and "cpu" in done.err


def test_a_sweep_is_drawn(converted: Path, tosa: Tosa) -> None:
    pytest.importorskip("matplotlib")
    command = f"{FAST} --sweep --keep-rates 0.8,0.4 --batch-sizes 1,2 --plot speed.png"
    done = tosa(f"{command} --json")
    assert done.code == 0 and len(json.loads(done.out)["rows"]) == 4 and fragments.WROTE_SPEED_PNG in done.err
    with Image.open("speed.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert not list(Path().glob("*.tmp")) and not list(Path().glob(".*.tmp"))
    before = Path("speed.png").read_bytes()
    refused(tosa(command), "speed.png already exists. Choose another name, or pass --overwrite.")
    assert Path("speed.png").read_bytes() == before
    assert tosa(f"{command} --overwrite").code == 0


def test_a_plot_needs_matplotlib_and_a_file_to_write(
    converted: Path, tosa: Tosa, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    refused(tosa("bench --sweep --plot speed.jpg"), "speed.jpg does not end in .png")
    refused(tosa("bench --sweep --plot nowhere/speed.png"), "nowhere/speed.png cannot be written")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(tosa("bench --sweep --plot speed.png"), "--plot needs matplotlib: run `pip install 'tosa-cli[plot]'`")


# ---------------------------------------------------------------- what is refused


def test_plain_bench_keeps_its_keys(converted: Path, tosa: Tosa) -> None:
    report: dict[str, Any] = tosa(f"{FAST} --json").json
    assert set(report) == {*CONDITIONS, *SPEED, "batch_size", "img_size", "dense", "tosa"}
    assert set(report["dense"]) == set(report["tosa"]) == TIMING
