"""Two processes on the CPU train one model together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_together
from tests.train.tiny_runs import curves_all, fit_all, tiny_tosa, write_digits, write_photos
from tosa_cli import load, save
from tosa_cli.train.config import TrainConfig
from tosa_cli.train.loop import images_left_out
from tosa_cli.train.processes import make_accelerator

LAUNCH = [
    *[sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    *["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"],
]
TOSA = [*LAUNCH, "tosa_cli.cli.app"]


def launch(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120)


def run_tosa(arguments: str, folder: Path, launched: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes: forked, or with `accelerate launch`, which takes long to start."""
    words = [*arguments.split(), "--device", "cpu", "-j", "0", "-b", "4"]
    return launch([*TOSA, *words], folder) if launched else run_together(["tosa_cli.cli.app", *words], folder)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos")
    write_digits(tmp_path / "digits", 40)
    write_photos(tmp_path / "broken")
    (tmp_path / "broken" / "005.jpg").write_bytes(b"not an image")
    model = tiny_tosa()
    save(model, tmp_path / "model")
    return tmp_path


def test_each_process_reads_its_half_and_a_resumed_run_is_exact(work: Path) -> None:
    done = run_together(["tests.train.two_processes", str(work)], work)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["processes"] == 2
    assert found["patience"] <= 1800  # a process that died is not waited for longer
    for command, images in (("distill", 24), ("finetune", 40)):
        first, second = (found[f"{command}_read"][i] for i in range(2))
        assert len(first) == len(second) == images and sorted(first + second) == sorted([*range(images)] * 2)
        assert found[f"{command}_updates"] == images // 4 and found[f"{command}_images"] == 2 * images
        assert "run the same command with --resume" in found[f"{command}_interrupted"]
        assert found[f"{command}_resumes"] == [True, True] and found[f"{command}_agree"]
    assert found["features_resumes"] == found["features_weights"] == [True, True] and found["features_agree"]
    assert [name.split()[0] for names in found["broken"] for name in names] == ["005.jpg", "005.jpg"]
    assert len(found["strict"]) == 2 and all("005.jpg (not an image, or broken) cannot" in x for x in found["strict"])
    alone = fit_all(work, make_accelerator(TrainConfig(device="cpu")))
    assert [images for _, _, images in alone] == [24] * 4
    for late in range(2):
        assert found[f"fitted_{late}"] == [alone, alone]
    alone_curves = curves_all(work, make_accelerator(TrainConfig(device="cpu")))
    assert found["curves"] == [alone_curves, alone_curves]
    assert [name.split()[0] for names in found["fit_broken"] for name in names] == ["005.jpg", "005.jpg"]
    assert len(found["fit_strict"]) == 2 and all("005.jpg (not an image, or" in x for x in found["fit_strict"])
    assert found["fitted"]


@pytest.mark.parametrize(
    ("command", "stage", "updates"),
    [
        ("distill model --data-dir photos", "distilled", 2),
        ("finetune model --data-dir digits", "finetuned", 4),
        ("finetune model --objective features --data-dir photos", "finetuned", 2),
    ],
)
def test_only_the_main_process_talks_and_writes(work: Path, command: str, stage: str, updates: int) -> None:
    done = run_tosa(f"{command} --epochs 1 -o trained --json", work, launched=stage == "distilled")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["updates"] == updates
    lines = [line for line in done.stderr.splitlines() if "are held out" in line or line.startswith(("Wrote", "Next:"))]
    assert len(lines) == 3, done.stderr
    assert load(work / "trained").provenance.stage == stage
    names = sorted(path.name for path in work.iterdir())
    assert names == ["broken", "digits", "model", "photos", "trained"]


def test_an_error_of_all_processes_is_told_once(work: Path) -> None:
    done = run_tosa("distill model --data-dir nowhere", work)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("There is no folder nowhere.") == 1


@pytest.mark.parametrize(
    ("images", "batch_size", "steps_summed", "processes", "left_out"),
    [
        *((100, 10, 1, 2, 0), (105, 10, 1, 2, 5), (110, 10, 1, 2, 10)),
        *((105, 10, 3, 1, 15), (105, 10, 2, 2, 25), (9, 10, 1, 1, 9)),
    ],
)
def test_images_that_no_step_takes_are_counted(
    images: int, batch_size: int, steps_summed: int, processes: int, left_out: int
) -> None:
    config = TrainConfig(batch_size=batch_size, grad_accum_steps=steps_summed)
    assert images_left_out(images, config, processes) == left_out
