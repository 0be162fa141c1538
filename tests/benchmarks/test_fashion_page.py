"""The page of the Fashion-MNIST experiment says what the runs say."""

from pathlib import Path
from typing import Any

from benchmarks.fashion import render as render_fashion
from benchmarks.fashion.answer import answer
from benchmarks.fashion.figures import cost
from benchmarks.fashion.lab import FashionLab
from benchmarks.fashion.variants import LOW_RATE, variants

from .fashion_runs import (
    TINY,
    TOSA,
    fresh_accelerate,  # noqa: F401
    one_rate,  # noqa: F401
    small_teacher,  # noqa: F401
    variant,
    write_true_work,  # noqa: F401 (the fixture `true_work`)
)


def test_a_page_of_three_seeds_has_means_and_spreads(tmp_path: Path) -> None:
    def run(name: str, seed: int, top1: float) -> dict[str, Any]:
        return {
            "variant": name,
            "seed": seed,
            "top1": top1,
            "top5": 99.0,
            "start": {"top1": 50.0, "top5": 90.0, "test_images": 10},
            "gmacs": 0.1764,
            "reduction": 0.0,
            "keep_rates": {},
            "resumed": False,
            "images_per_second": 100.0,
            "last_loss": 0.5,
        }

    runs = {}
    for seed, (dense, tosa) in enumerate([(90.0, 90.5), (91.0, 91.6), (92.0, 92.1)]):
        runs[f"dense, seed {seed}"] = run("dense", seed, dense)
        runs[f"{TOSA}, seed {seed}"] = run(TOSA, seed, tosa)
    rates = {f"{name}, {lr}": {"variant": name, "lr": lr, "top1": lr} for name in ("dense", TOSA) for lr in (0.1, 0.2)}
    used = {**vars(TINY), "finetune": {**_tuned()}}
    render_fashion.render({"settings": used, "machine": {"cpu": "x"}, "runs": runs, "rates": rates}, tmp_path)
    page = (tmp_path / "FASHION.md").read_text()
    assert "| dense, finetuned | 0.1764 | 0.0 % | 91.00 ± 1.00 |" in page
    assert f"| {TOSA} (0.0 %) | dense (0.0 %) | +0.40 ± 0.26 | +0.50, +0.60, +0.10 | ahead |" in page
    assert "| dense | 0.10 | 0.20 |" in page and "the learning rate 0.2 falling" in page
    assert "Parts that are missing: selectors, speed, pictures." in page


TRIED = (("dense", 0.01, 90.0), ("dense", 0.02, 89.0), (TOSA, 0.01, 80.0), (TOSA, 0.02, 81.0))


def test_the_answer_is_made_from_the_runs_that_are_there() -> None:
    top1 = {"dense": 90.0, TOSA: 88.0, f"random {LOW_RATE}": 87.0, f"previous {LOW_RATE}": 88.5}
    runs = {
        f"{each.name}, seed {seed}": {
            "variant": each.name,
            "seed": seed,
            "top1": top1.get(each.name, 80.0) + 0.1 * seed,
            "reduction": 0.25,
            "gmacs": 0.1,
            "start": {"top1": 70.0},
        }
        for each in variants()
        for seed in range(3)
    }
    said = answer({"runs": runs})
    assert f"at keep rate {LOW_RATE} +1.00 ± 0.00 points against chance (ahead beyond the spread)" in said
    assert f"{LOW_RATE} -0.50 ± 0.00 points against the map of the layer before (behind beyond the spread)" in said
    assert f"{LOW_RATE} -2.00 ± 0.00 points against the dense model" in said and "70.00 ± 0.00 % before" in said
    assert "learning rate" not in said
    tried = {f"{name} {lr}": {"variant": name, "lr": lr, "top1": top1} for name, lr, top1 in TRIED}
    assert "0.01. On training images" in (said := answer({"runs": runs, "rates": tried}))
    assert f"at {LOW_RATE} had 80.00 % with it and 81.00 % with 0.02" in said
    some = answer({"runs": {key: run for key, run in runs.items() if not key.startswith("random")}})
    assert "against chance" not in some and "against the dense model" in some and answer({"runs": {}}) == ""


def test_what_is_chosen_anew_for_each_seed_has_its_mean_cost(tmp_path: Path) -> None:
    own = {seed: {"gmacs": gmacs, "reduction": 1 - gmacs / 2} for seed, gmacs in enumerate((1.0, 1.1, 1.2))}
    assert cost(own) == ("1.1000 ± 0.1000", "45.0 ± 5.0 %")
    assert cost({key: {"gmacs": 1.0, "reduction": 0.5} for key in range(3)}) == ("1.0000", "50.0 %")
    assert cost({0: {"gmacs": 1.0, "reduction": 0.5}}) == ("1.0000", "50.0 %")


def test_the_page_says_what_pruning_keeps(true_work: Path, tmp_path: Path) -> None:
    _, about = FashionLab(true_work, tmp_path / "fashion.json", TINY).build(variant(f"pruning, MACs of {LOW_RATE}"), 0)
    assert render_fashion._kept(about) == f"layers 4,7,10 at {about['keep_rate']:g} of the patches"


def _tuned() -> dict[str, Any]:
    from benchmarks.fashion.variants import FINETUNE

    return FINETUNE
