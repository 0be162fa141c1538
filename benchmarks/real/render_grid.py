"""The tables of every selector with every bypass, for benchmarks/RESULTS.md."""

import statistics
from typing import Any

from benchmarks.writer import table

SELECTORS = ("similarity", "probe", "attention", "previous", "random")
DROPPED = ("bypass-error",)
"""Selectors that are no longer part of the tool; their figures stay as the evidence."""
NOT_RUN = "not run"
SHOWN = (*SELECTORS, *DROPPED)
BYPASSES = ("identity", "linear", "nearest", "nearest+affine", "nearest+linear")


def pair(row: dict[str, Any], suffix: str = "") -> str:
    """Cosine of patch tokens / class token."""
    return f"{row[f'patch{suffix}']:.4f} / {row[f'class{suffix}']:.4f}"


def grid_section(grid: dict[str, Any]) -> str:
    """The grid at 0.8 and 0.5, and what each pair costs."""
    if not grid:
        return ""
    parts = ["## Every selector with every bypass: 224 x 224, layers 2,4,6,8,10"]
    for rate in ("0.8", "0.5"):
        rows = []
        for selector in ("oracle", *SHOWN):
            cells = [grid.get(f"{selector} {bypass} {rate}") for bypass in BYPASSES]
            if any(cells):
                rows.append([selector, *(pair(cell) if cell else "not run" for cell in cells)])
        if rows:
            parts.append(
                f"Keep rate {rate}. 64 calibration crops, 48 held-out crops, one draw. The oracle runs each layer "
                f"whole and skips the tokens about which the bypass is least wrong."
            )
            parts.append(table(["selector", *BYPASSES], rows))
    saved = [
        [
            selector,
            *(
                f"{grid[key]['reduction']:.1%} ({grid[key]['added']:.1%})" if key in grid else "not run"
                for key in (f"{selector} {bypass} 0.8" for bypass in BYPASSES)
            ),
        ]
        for selector in SHOWN
        if any(key.startswith(f"{selector} ") for key in grid)
    ]
    parts.append("MACs saved at 0.8; in brackets what selector, matching and bypass cost, in dense MACs.")
    parts.append(table(["selector", *BYPASSES], saved))
    return "\n\n".join(parts)


def draws_section(draws: dict[str, Any]) -> str:
    """The grid at 0.8 with several draws of calibration photos."""
    if not draws:
        return ""
    rows = []
    for selector in ("oracle", *SHOWN):
        cells = [_draws_cell(draws, f"{selector} {bypass} 0.8") for bypass in BYPASSES]
        if set(cells) != {NOT_RUN}:
            rows.append([selector, *cells])
    return "\n\n".join(
        [
            "Keep rate 0.8 once more, with three draws of 64 calibration crops: mean and standard deviation, the "
            "latter in units of the last digit.",
            table(["selector", *BYPASSES], rows),
            _dominated(draws),
        ]
    )


def _dominated(draws: dict[str, Any]) -> str:
    """Which selectors another one beats with every bypass in every draw, by the cosine of patch tokens."""
    found = []
    for selector in SHOWN:
        mine = {key.removeprefix(selector): row for key, row in draws.items() if key.startswith(f"{selector} ")}
        better = [
            other
            for other in SHOWN
            if mine and all(draws.get(other + key, {"patch": 0.0})["patch"] > row["patch"] for key, row in mine.items())
        ]
        if better:
            found.append(f"`{selector}` by {' and '.join(f'`{other}`' for other in better)}")
    if not found:
        return "No selector is beaten by another with every bypass in every draw (patch tokens)."
    return f"Beaten with every bypass in every draw (patch tokens): {'; '.join(found)}.{_dropped(draws)}"


def _dropped(draws: dict[str, Any]) -> str:
    if not any(key.startswith(DROPPED) for key in draws):
        return ""
    return (
        " `attention` is the paper's, `previous` and `random` are baselines. `bypass-error` was a network like the "
        "paper's selector, trained to predict from the attention logits of the layer before what the bypass gets "
        "wrong; `similarity` needs no training and no layer before, so `bypass-error` is no longer part of the tool. "
        "Its figures were measured before it was dropped. With the bypass `linear` alone the two are close, and at 0.5 "
        "`bypass-error` is a little ahead, far below what `similarity` reaches with a `nearest` bypass."
    )


def _draws_cell(draws: dict[str, Any], name: str) -> str:
    """Mean and spread over the draws of a pair of selector and bypass."""
    found = [row for key, row in draws.items() if key.startswith(name)]
    return " / ".join(_spread([row[key] for row in found]) for key in ("patch", "class")) if found else NOT_RUN


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ({1e4 * statistics.stdev(values):.0f})"


def large_grid_section(grid: dict[str, Any]) -> str:
    """The grid at 518 and 0.8."""
    if not grid:
        return ""
    sets = len({key.partition(", ")[2] for key in grid})
    rows = []
    for selector in SHOWN:
        cells = [_draws_cell(grid, f"{selector} {bypass} 0.8") for bypass in BYPASSES]
        if set(cells) != {NOT_RUN}:
            rows.append([selector, *cells])
    return "\n\n".join(
        [
            f"Every selector with every bypass at 518, layers 2,4,6,8,10 at 0.8: 16 held-out crops, and {sets} sets "
            "of 24 calibration crops, the first evenly spread, the others drawn; mean and standard deviation over "
            "them, one figure where nothing is trained, fitted or drawn, or where it was run once. Selectors that are "
            "trained step by step were trained at 224, on 64 crops.",
            table(["selector", *BYPASSES], rows),
        ]
    )
