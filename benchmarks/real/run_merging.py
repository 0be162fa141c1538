"""The preset `calibrated` beside token merging and the other peers: tokens, two heads, and the clock.

    python -m benchmarks.real.run_merging [--work FOLDER] [--sizes 224 518] [--speed] [--anew]
    python -m benchmarks.real.run_merging --render

Every model is compared by all tokens at its end, at equal MACs with matching counted, on held-out photos; keep rates of
`calibrated` are found on calibration photos, of which several draws are made. `--speed` times all in turns in one
process, and wants the machine alone. A saliency head and, at 224, a depth head trained by `depth_head` read the tokens.
It writes benchmarks/results/merging.json after each measurement and goes on where it stopped; `--anew` measures
`calibrated` again and, with `--speed`, the times of all. From that file it makes benchmarks/MERGING.md.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, HERE, WORK
from benchmarks.real.depth_head import DepthHead
from benchmarks.real.lab import SMALL, RealLab, chosen, distilled, fetch
from benchmarks.real.render_merging import (
    BATCHES,
    CALIBRATION,
    CUT,
    DRAWS,
    HELD_OUT,
    OURS,
    TARGETS,
    key,
    render,
)
from benchmarks.real.run_saliency import SaliencyLab, correlation
from benchmarks.writer import machine
from tosa_cli.config import CALIBRATED

RESULTS = FIGURES / "merging.json"
FASHION_RESULTS = FIGURES / "merging_fashion.json"
"""From benchmarks.fashion.run_merging."""
PAGE = HERE / "MERGING.md"


def main() -> None:
    """Measure what is not in the results yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoint and photos go")
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--speed", action="store_true", help="time the models, on a machine that does nothing else")
    parser.add_argument("--anew", action="store_true", help="forget what was measured of `calibrated` at these sizes")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        fetch(args.work)
        lab = MergingLab(args.work)
        if args.anew:
            forget(lab.results, args.sizes, args.speed)
        for size in args.sizes:
            for target in TARGETS[size]:
                run_quality(lab, size, target)
                if size == SMALL:
                    run_depth(lab, size, target)
                if args.speed:
                    run_speed(lab, size, target)
    write_page()


def write_page() -> None:
    """Render the page from all figures there are."""
    figures = [json.loads(path.read_text("utf-8")) for path in (RESULTS, FASHION_RESULTS)]
    PAGE.write_text(render(*figures), encoding="utf-8")
    print(f"Wrote {PAGE}")


class MergingLab(SaliencyLab):
    """The checkpoint with its saliency head, the photos, and the results so far."""

    num_held_out = dict.fromkeys(TARGETS, HELD_OUT)

    def __init__(self, work: Path) -> None:  # noqa: D107
        super().__init__(work)
        self.path, self.results = RESULTS, {}
        self.read()
        self.results["machine"] = machine()
        self.fitted: dict[tuple[int, float], Any] = {}

    @cached_property
    def depth_head(self) -> DepthHead:
        """The depth head and its rooms."""
        return DepthHead(self, self.work)

    def rates(self, size: int, target: float, draw: int) -> dict[int, float]:
        """Keep rates of `calibrated`, found on one draw of calibration photos."""
        from tosa_cli.fit.rates import search_rates

        def one() -> dict[str, Any]:
            source = self.source(size)
            photos = self.photos("calibration", source, CALIBRATION, draw)
            return search_rates(self.accelerator, source, CALIBRATED, photos, target).to_dict()

        name = key(size, target, draw)
        self.measure("rates", name, one)
        return {int(layer): rate for layer, rate in self.results["rates"][name]["keep_rates"].items()}

    def ours(self, size: int, target: float, draw: int) -> Any:
        """A model by the preset `calibrated`."""
        from tosa_cli.model.convert import insert_selectors

        rates = self.rates(size, target, draw)
        config = CALIBRATED.at(rates, rates.values())
        return insert_selectors(self.source(size), config).eval()

    def matched(self, size: int, target: float) -> Any:
        """A model by the preset `matched`: layers and keep rates as in results.json, fitted on 126 photos."""
        if (size, target) not in self.fitted:
            config = chosen(RealLab(self.work), target)
            self.fitted[size, target] = distilled(self, self.source(size), config, 126)[0]
        return self.fitted[size, target]

    def near(self, model: Any, size: int) -> dict[str, Any]:
        """1 - cosine of final tokens, and correlation of the saliency maps, on held-out photos."""
        import torch
        from torch.nn import functional as F

        errors, correlations = [], []
        with torch.inference_mode():
            for images, dense_maps, dense_tokens in self.held_out(size):
                maps, tokens = self.map_and_tokens(model, images)
                errors.append(1 - F.cosine_similarity(tokens, dense_tokens, dim=-1))
                correlations.append(correlation(dense_maps.flatten(1).double(), maps.flatten(1).double()))
        return {**error_figures(torch.cat(errors)), "saliency": torch.cat(correlations).mean().item()}

    def keep(self, names: list[str], what: str, batches: list[Any]) -> None:
        """Nothing: this page has no picture."""


def error_figures(errors: Any) -> dict[str, Any]:
    """Mean, median and worst tenth of errors (images, N) of patch tokens, a mean an image, and of the class token."""
    found: dict[str, Any] = {"photos": len(errors)}
    for name, values in {"patch": errors[:, 1:].mean(1), "class": errors[:, 0]}.items():
        found |= {name: values.mean().item(), f"{name}_median": values.median().item()}
        found[f"{name}_worst_tenth"] = values.quantile(0.9).item()
    return found


def forget(results: dict[str, Any], sizes: list[int], speed: bool = False) -> None:
    """Leave out what was measured of `calibrated` and, if asked to, the times, which are those of all in turns."""
    begins = {"rates": (), "quality": (OURS,), "depth": (OURS,), **({"speed": ()} if speed else {})}
    for part, begin in begins.items():
        starts = tuple(key(size, target, *begin, "") for size in sizes for target in TARGETS[size])
        results[part] = {name: found for name, found in results.get(part, {}).items() if not name.startswith(starts)}


def run_quality(lab: MergingLab, size: int, target: float) -> None:
    """Every model at one size and one saving."""

    def one(make: Callable[[], tuple[Any, float]]) -> dict[str, Any]:
        model, reduction = make()
        return {"reduction": reduction, **lab.near(model, size)}

    for name, make in models(lab, size, target):
        lab.measure("quality", name, partial(one, make))


def run_depth(lab: MergingLab, size: int, target: float) -> None:
    """The depth head on the dense model's tokens, and on those of every model at one size and one saving."""

    def one(make: Callable[[], tuple[Any, float]]) -> dict[str, Any]:
        return lab.depth_head.errors(make()[0])

    lab.measure("depth", f"{size} dense", lambda: lab.depth_head.errors(lab.source(size).eval()))
    for name, make in models(lab, size, target):
        lab.measure("depth", name, partial(one, make))


def models(lab: MergingLab, size: int, target: float) -> Iterator[tuple[str, Callable[[], tuple[Any, float]]]]:
    """Every model by its name in the results, and what makes it: the model, and the share of the MACs it saves."""
    import torch

    from tosa_cli.model.flops import count_flops
    from tosa_cli.peers.compare import Peer, build_peers

    def converted(make: Callable[[], Any]) -> tuple[Any, float]:
        model = make()
        return model, count_flops(model).reduction

    def built(peer: Peer) -> tuple[Any, float]:
        return peer.model.eval(), peer.reduction

    for draw in range(DRAWS[size]):
        yield key(size, target, OURS, draw), partial(converted, partial(lab.ours, size, target, draw))
    if size == SMALL and target < 0.5:
        yield key(size, target, "matched"), partial(converted, partial(lab.matched, size, target))
    torch.manual_seed(0)  # the selector `random` draws
    for name, peer in build_peers(lab.source(size), target)[0].items():
        yield key(size, target, name), partial(built, peer)


def run_speed(lab: MergingLab, size: int, target: float) -> None:
    """Time of every model at one size and one saving, all in turns."""
    import torch

    from benchmarks.real.cut import CutTokens
    from tosa_cli.measure.speed import time_in_turns
    from tosa_cli.peers.compare import build_peers

    def one(batch: int) -> dict[str, Any]:
        dense = lab.source(size).eval()
        models: dict[str, Any] = {"dense": dense, OURS: lab.ours(size, target, 0)}
        models[CUT] = CutTokens(dense, lab.rates(size, target, 0))
        if size == SMALL and target < 0.5:
            models["matched"] = lab.matched(size, target)
        models |= {name: peer.model.eval() for name, peer in build_peers(dense, target)[0].items()}
        rounds = 30 if batch == 1 and size == SMALL else 15  # the shorter a pass, the more its time varies
        report = time_in_turns(models, torch.randn(batch, 3, size, size), rounds=rounds, seconds=0.2)
        return {
            "threads": torch.get_num_threads(),
            "models": {name: {**vars(report.timings[name]), **vars(report.speedups[name])} for name in models},
        }

    for batch in BATCHES if size == SMALL else (1,):
        lab.measure("speed", key(size, target, "batch", batch), partial(one, batch))


if __name__ == "__main__":
    main()
