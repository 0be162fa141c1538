"""`tosa bench --peers` and `--sweep` of a whole model: what stands beside it, and how near its outputs are."""

from pathlib import Path

import pytest

from tests.cli.conftest import Tosa, write_whole
from tests.sentences import fragments
from tests.train.tiny_runs import write_photos
from tosa_cli.measure import speed
from tosa_cli.peers.whole import TAKES_APART, WHOLE_PEERS

FAST = "bench whole-tosa -b 2 --rounds 1 --device cpu"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `photos` and a converted whole model; one batch a turn, as no test reads a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    write_photos(Path("photos"), 5)
    write_whole()
    return tmp_path


def test_peers_stand_beside_the_model_at_the_same_macs(tosa: Tosa) -> None:
    report = tosa(f"{FAST} --peers --json").json
    assert list(report["models"]) == ["dense", "tosa", *WHOLE_PEERS]
    assert set(report["missing"]) == set(TAKES_APART) and report["samples"] is None
    for name, row in report["models"].items():
        assert "outputs" not in row and row["peak_memory_mb"] > 0
        if name != "dense":
            assert row["reduction"] >= report["target_reduction"] - 1e-9
    assert report["models"]["dense"]["ideal_speedup"] == 1
    assert report["models"]["tosa"]["settings"]["layers"] == [2]


def test_photos_tell_how_near_outputs_and_tokens_are(tosa: Tosa) -> None:
    Path("photos/bad.jpg").write_bytes(b"bad")
    done = tosa(f"{FAST} --peers --data-dir photos --json")
    assert done.json["samples"] == 5 and done.json["dataset"] == "photos" and "bad.jpg" in done.err
    for name, row in done.json["models"].items():
        if name != "dense":
            assert set(row["outputs"]) == {"logits", "patch_tokens", "class_token"}
            assert 0 < row["outputs"]["class_token"]["cosine"] < 1.0001
    done = tosa(f"{FAST} --peers --data-dir photos --max-samples 2")
    assert fragments.MEAN_OVER_2_IMAGES in done.out and fragments.COPY_LEFT_OUT_IPCV in done.out


def test_a_sweep_goes_through_keep_rates_and_batch_sizes(tosa: Tosa) -> None:
    report = tosa(f"{FAST} --sweep --keep-rates 0.8,0.4 --batch-sizes 1,2 --json").json
    found = [(row["batch_size"], row["keep_rate"]) for row in report["rows"]]
    assert found == [(1, 0.8), (1, 0.4), (2, 0.8), (2, 0.4)]
    assert report["rows"][0]["img_size"] == [56, 56]
    few, many = report["rows"][1], report["rows"][0]
    assert few["reduction"] > many["reduction"] and few["ideal_speedup"] > many["ideal_speedup"]
