"""Least squares from streamed sums: the normal equations, in float64, so that memory does not grow with the images.

Each kind of fit has two functions: one sums up a batch, one solves. Sums of batches are added.
"""

import torch
from torch import Tensor

RIDGE = 1e-4
"""Weight of the ridge penalty, in variances of each input."""

CONSTANT = 1e-10
"""An input whose variance is a smaller share of its mean square is a constant: what varies of it is rounding."""

Sums = dict[str, Tensor]


def linear_sums(inputs: Tensor, targets: Tensor) -> Sums:
    """Sums for `targets = W inputs + b`.

    Args:
        inputs: (..., p).
        targets: (..., q).
    """
    x, t = _rows(inputs), _rows(targets)
    return {
        "count": x.new_tensor([len(x)]),
        "x": x.sum(0),
        "t": t.sum(0),
        "xx": x.T @ x,
        "xt": x.T @ t,
    }


def solve_linear(sums: Sums) -> tuple[Tensor, Tensor]:
    """Solve for the weight (q, p) and the bias (q)."""
    _, weight, bias = _solve(sums, scaled=False)
    return weight, bias


def scaled_linear_sums(updates: Tensor, inputs: Tensor, targets: Tensor) -> Sums:
    """Sums for `targets = a * updates + W inputs + c`, with one number `a` a channel.

    Args:
        updates: (..., q).
        inputs: (..., p).
        targets: (..., q).
    """
    v, x, t = _rows(updates), _rows(inputs), _rows(targets)
    sums = linear_sums(inputs, targets)
    return {**sums, "v": v.sum(0), "xv": x.T @ v, "vv": v.square().sum(0), "vt": (v * t).sum(0)}


def solve_scaled_linear(sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for the scale `a` (q), the weight (q, p) and the bias `c` (q)."""
    return _solve(sums, scaled=True)


def _solve(sums: Sums, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    count = sums["count"]
    mean_x, mean_t = sums["x"] / count, sums["t"] / count
    xx = sums["xx"] - torch.outer(sums["x"], mean_x)
    xt = sums["xt"] - torch.outer(sums["x"], mean_t)
    deviation = _variance(xx.diagonal(), sums["xx"].diagonal()).sqrt()
    xx = xx / torch.outer(deviation, deviation) + RIDGE * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    if not scaled:
        weight = torch.linalg.solve(xx, xt / deviation[:, None]) / deviation[:, None]
        return torch.zeros_like(mean_t), weight.T, mean_t - mean_x @ weight
    # The scale stands alone in its channel: it is solved for first, with the inputs eliminated (Schur complement).
    mean_v = sums["v"] / count
    xv = (sums["xv"] - torch.outer(sums["x"], mean_v)) / deviation[:, None]
    xt = xt / deviation[:, None]
    solved_v, solved_t = torch.linalg.solve(xx, torch.cat([xv, xt], dim=1)).chunk(2, dim=1)
    vv = sums["vv"] - sums["v"] * mean_v
    vt = sums["vt"] - sums["v"] * mean_t
    variance = _variance(vv, sums["vv"])
    rest = (1 + RIDGE) * variance - (xv * solved_v).sum(0)
    scale = (vt - (xv * solved_t).sum(0)) / rest.clamp_min(RIDGE * variance)
    weight = (solved_t - solved_v * scale) / deviation[:, None]
    return scale, weight.T, mean_t - scale * mean_v - mean_x @ weight


def affine_sums(updates: Tensor, inputs: Tensor, targets: Tensor) -> Sums:
    """Sums for `targets = a * updates + b * inputs + c`, channel by channel; all (..., D)."""
    v, x, t = _rows(updates), _rows(inputs), _rows(targets)
    terms = torch.stack([v, x, torch.ones_like(v)])
    return {
        "gram": torch.einsum("inq,jnq->qij", terms, terms),
        "moments": torch.einsum("inq,nq->qi", terms, t),
    }


def solve_affine(sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for `a`, `b` and `c`, each (D)."""
    gram, moments = sums["gram"], sums["moments"]
    count = gram[:, 2, 2]
    totals, total_t = gram[:, :2, 2], moments[:, 2]
    means = totals / count[:, None]
    covariance = gram[:, :2, :2] - totals[:, :, None] * means[:, None]
    covariance.diagonal(dim1=1, dim2=2).copy_(
        (1 + RIDGE) * _variance(covariance.diagonal(dim1=1, dim2=2), gram.diagonal(dim1=1, dim2=2)[:, :2])
    )
    a, b = torch.linalg.solve(covariance, moments[:, :2] - means * total_t[:, None]).unbind(-1)
    return a, b, total_t / count - a * means[:, 0] - b * means[:, 1]


def _variance(variance: Tensor, square: Tensor) -> Tensor:
    """The variance of inputs, summed over the rows, but never nothing, so that one may divide by it.

    Args:
        variance: Sum of the squared differences from the mean, (p).
        square: Sum of the squares, (p).
    """
    return variance.maximum(CONSTANT * square).clamp_min(torch.finfo(variance.dtype).tiny ** 0.5)


def _rows(values: Tensor) -> Tensor:
    return values.detach().flatten(0, -2).double()
