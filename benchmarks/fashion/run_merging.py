"""The preset `calibrated` beside its peers on a classifier of other statistics: the Fashion-MNIST teacher, a DeiT.

    python -m benchmarks.fashion.run_merging [--work FOLDER]

Keep rates are found on a few training images without their labels; tokens and classes are compared on test images, and
nothing is finetuned. It writes benchmarks/results/merging_fashion.json after each measurement and goes on where it
stopped; the page is benchmarks/MERGING.md.
"""

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fashion.run_fashion import TEACHER
from benchmarks.lab import WORK, Lab, run_module
from benchmarks.real.render_merging import FASHION_DRAWS, OURS, key
from benchmarks.real.run_merging import FASHION_RESULTS, error_figures, write_page
from benchmarks.writer import machine
from tosa_cli.config import CALIBRATED

TARGETS = (0.25, 0.4)
"""Shares of the MACs to save."""
TEST_IMAGES, CALIBRATION, BATCH = 2_000, 32, 100


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where the images go")
    work = parser.parse_args().work
    if not (work / "fashion").exists():
        work.mkdir(parents=True, exist_ok=True)
        run_module("fashion.data", work / "fashion")
    lab = FashionMergingLab(work / "fashion")
    for target in TARGETS:
        run_target(lab, target)
    write_page()


class FashionMergingLab(Lab):
    """The teacher, images, and the results so far.

    Args:
        data: Folder of the images.
    """

    def __init__(self, data: Path) -> None:  # noqa: D107
        from tosa_cli.hub.source import load_source
        from tosa_cli.train.config import TrainConfig
        from tosa_cli.train.processes import make_accelerator

        super().__init__(FASHION_RESULTS)
        self.results["machine"] = machine()
        self.accelerator = make_accelerator(TrainConfig(device="cpu"))
        self.data = data
        self.source: Any = load_source(str(TEACHER)).model.eval()
        self.tested: list[tuple[Any, Any, Any]] = []

    def images(self, split: str, count: int, seed: int, batch_size: int) -> Any:
        """Images of a split, drawn with a seed."""
        from tosa_cli.data.datasets import open_dataset
        from tosa_cli.data.loading import images_to_read

        opened = open_dataset(str(self.data / split))
        indices = sorted(random.Random(seed).sample(range(len(opened)), count))
        return images_to_read(opened, self.source, indices=indices, batch_size=batch_size, name=split)

    def test(self) -> list[tuple[Any, Any, Any]]:
        """Test images, their classes, and the dense model's final tokens, batch by batch; read once."""
        if not self.tested:
            batches = self.images("validation", TEST_IMAGES, 0, BATCH).batches(True)
            self.tested = [(each.images, each.targets, self.source.forward_features(each.images)) for each in batches]
        return self.tested

    def near(self, model: Any) -> dict[str, Any]:
        """1 - cosine of final tokens to the dense model's, and how often class and dense model are met."""
        import torch
        from torch.nn import functional as F

        errors, right, same = [], 0, 0
        with torch.inference_mode():
            for images, classes, dense in self.test():
                errors.append(1 - F.cosine_similarity(model.forward_features(images), dense, dim=-1))
                found = model(images).argmax(1)
                right += int((found == classes).sum())
                same += int((found == self.source.forward_head(dense).argmax(1)).sum())
        return {"top1": right / TEST_IMAGES, "agreement": same / TEST_IMAGES, **error_figures(torch.cat(errors))}

    def ours(self, target: float, draw: int) -> dict[str, Any]:
        """The preset `calibrated`, its keep rates found on one draw of training images."""
        from tosa_cli.fit.rates import search_rates
        from tosa_cli.model.convert import insert_selectors
        from tosa_cli.model.flops import count_flops

        images = self.images("train", CALIBRATION, draw, CALIBRATION)
        rates = search_rates(self.accelerator, self.source, CALIBRATED, images, target).keep_rates
        model = insert_selectors(self.source, CALIBRATED.at(rates, rates.values())).eval()
        return {"reduction": count_flops(model).reduction, "keep_rates": rates, **self.near(model)}


def run_target(lab: FashionMergingLab, target: float) -> None:
    """Every model at one saving."""
    import torch

    from tosa_cli.peers.compare import build_peers

    with torch.inference_mode():
        lab.measure("quality", "dense", lambda: {"reduction": 0.0, **lab.near(lab.source)})
    for draw in range(FASHION_DRAWS):
        lab.measure("quality", key(56, target, OURS, draw), partial(lab.ours, target, draw))
    torch.manual_seed(0)  # the selector `random` draws
    for name, peer in build_peers(lab.source, target)[0].items():
        measured = partial(lambda peer: {"reduction": peer.reduction, **lab.near(peer.model.eval())}, peer)
        lab.measure("quality", key(56, target, name), measured)


if __name__ == "__main__":
    main()
