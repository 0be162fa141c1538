"""An interrupted run that is resumed ends in the same weights as one that was never interrupted."""

import itertools
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.sentences import fragments
from tests.train import tiny_runs
from tests.train.tiny_runs import (
    StopAt,
    run_distill,
    run_finetune,
    same,
    short_tosa,
    tiny_tosa,
    weights,
    write_digits,
    write_photos,
)
from tosa_cli.errors import TrainingError
from tosa_cli.train import checkpoint as checkpoints

RICH = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "model_ema": True,
    "model_ema_decay": 0.7,
    "drop_path": 0.3,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.3,
    "reprob": 0.5,
    "layer_decay": 0.8,
    "warmup_epochs": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("images") / "digits")


# ---------------------------------------------------------------------- resumed


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        ({"checkpoint_every": 1}, 2),
        ({"checkpoint_every": 1}, 3),
        ({"checkpoint_every": 2}, 5),
        ({}, 4),
        ({"workers": 2, "checkpoint_every": 1}, 5),
        ({"grad_accum_steps": 2, "batch_size": 4, "checkpoint_every": 1}, 6),
        ({"amp": "bf16", "checkpoint_every": 1}, 4),
    ],
)
def test_distillation_resumes_exactly(photos: Path, tmp_path: Path, settings: dict[str, Any], stop: int) -> None:
    whole = tiny_tosa(depth=4, layers=(2, 4))
    run_distill(whole, photos, tmp_path / "whole", **settings)
    with pytest.raises(TrainingError, match="--resume"):
        run_distill(tiny_tosa(depth=4, layers=(2, 4)), photos, tmp_path / "part", progress=StopAt(stop), **settings)
    resumed = tiny_tosa(depth=4, layers=(2, 4))
    report = run_distill(resumed, photos, tmp_path / "part", resume=True, **settings)
    assert same(weights(whole, "selectors"), weights(resumed, "selectors"))
    assert report.updates == 6 and report.images < 48


@pytest.mark.parametrize("workers", [0, 2])
def test_finetuning_with_all_that_is_random_resumes_exactly(digits: Path, tmp_path: Path, workers: int) -> None:
    settings = {**RICH, "workers": workers, "checkpoint_every": 1}
    whole = short_tosa()
    run_finetune(whole, digits, tmp_path / "whole", **settings)
    # In the third step and, begun with it again, in the seventh, which is in the second epoch.
    for stop, resume in ((3, False), (5, True)):
        with pytest.raises(TrainingError, match="--resume"):
            run_finetune(short_tosa(), digits, tmp_path / "part", resume=resume, progress=StopAt(stop), **settings)
    resumed = short_tosa()
    run_finetune(resumed, digits, tmp_path / "part", resume=True, **settings)
    assert same(weights(whole, "backbone"), weights(resumed, "backbone"))


@pytest.mark.parametrize("opt", ["sgd", "lamb", "adopt", "lion", "muon"])
def test_other_optimizers_resume_exactly(digits: Path, tmp_path: Path, opt: str) -> None:
    whole, resumed = short_tosa(), short_tosa()
    settings = {"opt": opt, "epochs": 1, "checkpoint_every": 1}
    run_finetune(whole, digits, tmp_path / "whole", **settings)
    with pytest.raises(TrainingError):
        run_finetune(short_tosa(), digits, tmp_path / "part", progress=StopAt(4), **settings)
    run_finetune(resumed, digits, tmp_path / "part", resume=True, **settings)
    assert same(weights(whole, "backbone"), weights(resumed, "backbone"))


def test_the_number_of_workers_does_not_change_what_is_trained(digits: Path, tmp_path: Path) -> None:
    models = []
    for workers in (0, 2):
        models.append(short_tosa())
        run_finetune(models[-1], digits, tmp_path / f"{workers}", workers=workers, **RICH)
    assert same(weights(models[0], "backbone"), weights(models[1], "backbone"))


def test_another_seed_trains_other_weights(photos: Path, tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        models.append(short_tosa())
        run_distill(models[-1], photos, tmp_path / f"{seed}", seed=seed)
    assert not same(weights(models[0], "selectors"), weights(models[1], "selectors"))


def test_a_finished_run_that_is_resumed_changes_nothing(photos: Path, tmp_path: Path) -> None:
    model, again = short_tosa(), short_tosa()
    run_distill(model, photos, tmp_path / "run")
    assert run_distill(again, photos, tmp_path / "run", resume=True).images == 0
    assert same(weights(model, "selectors"), weights(again, "selectors"))


def hang(told: Connection, command: str, data: Path, run: Path, write: int, where: str, settings: Any) -> None:
    """What a child does: it tells of a run's write of a checkpoint, by number, and hangs there; it never hangs in 0."""
    module: Any = os if where == "replace" else checkpoints
    real, writes = getattr(module, where), itertools.count(1)

    def write_or_hang(*args: Any, **named: Any) -> Any:
        if next(writes) == write:
            if where == "save_file":  # as far as a write got when the kill came
                Path(args[1]).write_bytes(b"half a checkpoint")
            told.send("hanging")
            time.sleep(60)
        return real(*args, **named)

    setattr(module, where, write_or_hang)
    getattr(tiny_runs, command)(short_tosa(), data, run, checkpoint_every=1, **settings)


def start_child(*arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start a run in a child, which is forked, as importing takes long; and what it tells."""
    forked = multiprocessing.get_context("fork")
    reading, telling = forked.Pipe(duplex=False)
    child = forked.Process(target=hang, args=(telling, *arguments))
    child.start()
    telling.close()
    return child, reading


def kill_while_writing(command: str, data: Path, checkpoint: Path, write: int, where: str, settings: Any) -> None:
    child, told = start_child(command, data, checkpoint, write, where, settings)
    assert told.recv() == "hanging"
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "settings", "part", "where"),
    [
        ("run_distill", {}, "selectors", "save_file"),
        ("run_distill", {}, "selectors", "replace"),
        ("run_finetune", RICH, "backbone", "save_file"),
    ],
)
def test_a_run_that_is_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(
    photos: Path, digits: Path, tmp_path: Path, command: str, settings: dict[str, Any], part: str, where: str
) -> None:
    run, data = (run_distill, photos) if command == "run_distill" else (run_finetune, digits)
    kill_while_writing(command, data, tmp_path / "part", 4, where, settings)
    assert checkpoints.read_checkpoint(tmp_path / "part").update == 3
    whole, resumed = short_tosa(), short_tosa()
    run(whole, data, tmp_path / "whole", checkpoint_every=1, **settings)
    run(resumed, data, tmp_path / "part", resume=True, checkpoint_every=1, **settings)
    assert same(weights(whole, part), weights(resumed, part))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["part", "whole"]


def test_a_run_that_is_killed_between_checkpoints_resumes_exactly(photos: Path, tmp_path: Path) -> None:
    child, _ = start_child("run_distill", photos, tmp_path / "part", 0, "replace", {"epochs": 400})
    while not (tmp_path / "part").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    child.kill()
    child.join()
    start = checkpoints.read_checkpoint(tmp_path / "part").update
    assert 0 < start < 1200
    whole, resumed = short_tosa(), short_tosa()
    epochs = {"epochs": 400, "checkpoint_every": 1}
    stop = start + 20
    for model, name, first in ((whole, "whole", 0), (resumed, "part", start)):
        with pytest.raises(TrainingError):
            progress = StopAt(stop - first)
            run_distill(model, photos, tmp_path / name, resume=first > 0, progress=progress, **epochs)
    assert same(weights(whole, "selectors"), weights(resumed, "selectors"))


# ---------------------------------------------------------------------- refused


class Ask(StopAt):
    """Progress that sends a signal to this process and to those that load data, as `timeout` does, twice to this."""

    def __init__(self, batches: int, number: int) -> None:
        super().__init__(batches)
        self.number = number

    def advance(self, num_images: int, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, self.number)
            for _ in range(1 if self.number == signal.SIGINT else 2):
                signal.raise_signal(self.number)


# ---------------------------------------------------------------------- stops


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGTERM, 2)]
)
def test_what_asks_to_stop_stops_between_two_steps_with_a_checkpoint_of_that_moment(
    photos: Path, tmp_path: Path, number: int, workers: int
) -> None:
    handler = signal.getsignal(number)
    settings = {"grad_accum_steps": 2, "batch_size": 4, "workers": workers, "epochs": 1}
    whole, resumed = short_tosa(), short_tosa()
    run_distill(whole, photos, tmp_path / "whole", **settings)
    for batches, update in ((3, 2), (4, 2)):
        with pytest.raises(TrainingError, match=fragments.PART_RESUME):
            run_distill(short_tosa(), photos, tmp_path / "part", progress=Ask(batches, number), **settings)
        assert checkpoints.read_checkpoint(tmp_path / "part").update == update
    run_distill(resumed, photos, tmp_path / "part", resume=True, **settings)
    assert same(weights(whole, "selectors"), weights(resumed, "selectors"))
    assert signal.getsignal(number) is handler


def test_a_second_ctrl_c_stops_at_once(photos: Path, tmp_path: Path) -> None:
    class Twice(StopAt):
        def advance(self, num_images: int, text: str) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingError, match=fragments.BEFORE_THE_FIRST_CHECKPOINT):
        run_distill(short_tosa(), photos, tmp_path / "run", progress=Twice(1))
    assert not (tmp_path / "run").exists()


def test_a_signal_that_is_ignored_stays_so_as_after_nohup(photos: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_distill(short_tosa(), photos, tmp_path / "run", progress=Ask(1, signal.SIGHUP)).updates == 6
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_before_the_first_checkpoint_does_not_speak_of_an_older_one(photos: Path, tmp_path: Path) -> None:
    run_distill(short_tosa(), photos, tmp_path / "run")
    with pytest.raises(TrainingError, match=fragments.BEFORE_THE_FIRST_CHECKPOINT):
        run_distill(short_tosa(), photos, tmp_path / "run", progress=StopAt(1))
