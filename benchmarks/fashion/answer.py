"""What the Fashion-MNIST experiment answers, in words made from its results."""

from typing import Any

from benchmarks.fashion.figures import Row, best_rate, cost, differences, found, spread, top1, verdict
from benchmarks.fashion.variants import KEEP_RATES, LOW_MATCHED, LOW_RATE, tosa

VERDICTS = {
    "ahead": "ahead beyond the spread",
    "behind": "behind beyond the spread",
    "no": "no difference beyond the spread",
    "one seed only": "one seed only",
}
TABLE_1 = (
    "Table 1 of the paper sets a finetuned ToSA model (73.9 %) beside DeiT-Tiny as it was published (72.2 %), which "
    "was not finetuned for as long."
)
MACS = (
    "**What the 25.8 % of Table 1 are.** By our count five layers of DeiT-Tiny save 9.0 % of the MACs at keep rate "
    "0.8, selectors not counted, and 25.8 % is, to the digit, what keep rate 0.4 saves."
)


def answer(results: dict[str, Any]) -> str:
    """The section that answers what the finished runs can answer; empty if that is nothing."""
    runs = results.get("runs", {})
    accuracy = _accuracy(runs)
    if not accuracy:
        return ""
    parts = filter(None, [_selector(runs), accuracy, _learning_rate(results.get("rates", {})), _matched(runs)])
    saved = ", ".join(f"{cost(found(runs, tosa(rate).name))[1]} at {rate}" for rate in KEEP_RATES)
    return "\n\n".join(["## In words", *parts, f"{MACS} Here, with selectors that read all query rows, it is {saved}."])


def _selector(runs: dict[str, Row]) -> str:
    pairs = [
        (f"at keep rate {rate} ", tosa(rate).name, f"{other} {rate}", called)
        for rate in KEEP_RATES
        for other, called in (("random", "chance"), ("previous", "the map of the layer before"))
    ]
    question = "**Does the trained selector beat chance and the layer before?**"
    return _said(runs, f"{question} Finetuned alike, ToSA has", pairs)


def _accuracy(runs: dict[str, Row]) -> str:
    question = "**Does ToSA raise the accuracy over an equally finetuned dense model?**"
    pairs = [(f"at keep rate {rate} ", tosa(rate).name, "dense", "the dense model") for rate in KEEP_RATES]
    return _said(runs, f"{question} {TABLE_1} Here, finetuned on the same images in the same order, ToSA has", pairs)


def _learning_rate(rates: dict[str, Row]) -> str:
    """What the common learning rate, which suits the dense model, may cost the paper's setting; or nothing."""
    name = tosa(LOW_RATE).name
    own = {row["lr"]: row["top1"] for row in rates.values() if row["variant"] == name}
    if not own:
        return ""
    common, best = best_rate(rates), max(own, key=lambda lr: own[lr])
    if best == common:
        return ""
    return (
        f"All have the learning rate that suits the dense model, {common}. On training images that finetuning did not "
        f"read, the paper's setting at {LOW_RATE} had {own[common]:.2f} % with it and {own[best]:.2f} % with {best}: a "
        f"rate of its own may bring it nearer to the others."
    )


def _matched(runs: dict[str, Row]) -> str:
    name = LOW_MATCHED
    own = found(runs, name)
    if not own:
        return ""
    before = spread([run["start"]["top1"] for run in own.values()])
    question = f"**And the matched preset?** At {cost(own)[1]} fewer MACs it has {before} % before any finetuning"
    pairs = [
        ("", name, "dense", "the dense model"),
        ("", name, tosa(LOW_RATE).name, f"the paper's setting at {LOW_RATE}"),
        *(("", name, f"{peer}, MACs of {LOW_RATE}", f"{peer} at as many MACs") for peer in ("merging", "pruning")),
    ]
    return _said(runs, f"{question}. Finetuned like the others it has", pairs)


def _said(runs: dict[str, Row], start: str, pairs: list[tuple[str, str, str, str]]) -> str:
    """A sentence of differences between pairs of models: where, one, the other, and what to call that."""
    said = []
    for where, name, other, called in pairs:
        gained = differences(found(runs, name), found(runs, other), top1)
        if not gained:
            return ""
        said.append(f"{where}{spread(gained, '+')} points against {called} ({VERDICTS[verdict(gained)]})")
    return f"{start}: {'; '.join(said)}."
