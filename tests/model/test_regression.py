"""Least squares from sums is the least squares of the rows that were summed up."""

import pytest
import torch
from torch import Tensor

from tosa_cli.model.regression import (
    RIDGE,
    Sums,
    affine_sums,
    linear_sums,
    scaled_linear_sums,
    solve_affine,
    solve_linear,
    solve_scaled_linear,
)

ROWS, INPUTS, OUTPUTS = 500, 5, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int = INPUTS, seed: int = 0) -> Tensor:
    """Inputs that hang together, of different sizes and means."""
    mixed = draw(ROWS, columns, seed=seed) @ (torch.eye(columns) + 0.3 * draw(columns, columns, seed=seed + 1))
    return mixed * torch.linspace(0.5, 2, columns) + torch.linspace(-2, 2, columns)


def least_squares(columns: Tensor, targets: Tensor) -> Tensor:
    return torch.linalg.lstsq(columns.double(), targets.double()).solution


def add(*many: Sums) -> Sums:
    return {name: sum(sums[name] for sums in many) for name in many[0]}  # type: ignore[misc]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-2) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


def test_known_coefficients_of_a_linear_map_are_found() -> None:
    x, weight, bias = correlated(), draw(OUTPUTS, INPUTS, seed=5), draw(OUTPUTS, seed=6)
    found, constant = solve_linear(linear_sums(x, x @ weight.T + bias))
    assert found.shape == (OUTPUTS, INPUTS) and found.dtype == torch.float64
    assert close(found, weight) and close(constant, bias, 2e-2)


def test_known_coefficients_of_a_map_with_one_scale_a_channel_are_found() -> None:
    v, x = correlated(OUTPUTS, seed=3), correlated()
    scale, weight, bias = draw(OUTPUTS, seed=4), draw(OUTPUTS, INPUTS, seed=5), draw(OUTPUTS, seed=6)
    found = solve_scaled_linear(scaled_linear_sums(v, x, scale * v + x @ weight.T + bias))
    assert [part.shape for part in found] == [(OUTPUTS,), (OUTPUTS, INPUTS), (OUTPUTS,)]
    assert close(found[0], scale) and close(found[1], weight) and close(found[2], bias, 2e-2)


def test_known_coefficients_of_three_numbers_a_channel_are_found_however_far_the_updates_are_from_zero() -> None:
    x, a, b, c = correlated(), draw(INPUTS, seed=4), draw(INPUTS, seed=5), draw(INPUTS, seed=6)
    for mean in (0, 100):
        v = draw(ROWS, INPUTS, seed=3) + mean
        found = solve_affine(affine_sums(v, x, a * v + b * x + c))
        assert close(found[0], a) and close(found[1], b) and close(found[2], c, 3e-2)


def test_with_noise_the_fits_are_those_of_torchs_least_squares() -> None:
    v, x = correlated(INPUTS, seed=3), correlated()
    targets, ones = x + 0.5 * v + draw(ROWS, INPUTS, seed=9), torch.ones(ROWS, 1)
    weight, bias = solve_linear(linear_sums(x, targets))
    expected = least_squares(torch.cat([x, ones], 1), targets)
    assert close(weight, expected[:-1].T) and close(bias, expected[-1], 1e-2)

    scales, weight, biases = solve_scaled_linear(scaled_linear_sums(v, x, targets))
    a, b, c = solve_affine(affine_sums(v, x, targets))
    for channel in range(INPUTS):
        expected = least_squares(torch.cat([v[:, channel : channel + 1], x, ones], 1), targets[:, channel])
        found = torch.cat([scales[channel, None], weight[channel], biases[channel, None]])
        assert close(found[:-1], expected[:-1]) and close(found[-1], expected[-1], 3e-2)
        columns = torch.stack([v[:, channel], x[:, channel], ones[:, 0]], 1)
        expected = least_squares(columns, targets[:, channel])
        assert close(torch.stack([a[channel], b[channel], c[channel]]), expected, 1e-2)


def test_the_ridge_is_a_penalty_in_variances_of_each_input() -> None:
    x, targets = correlated().double(), draw(ROWS, OUTPUTS, seed=9).double()
    weight, _ = solve_linear(linear_sums(x, targets))
    centered = x - x.mean(0)
    gram = centered.T @ centered
    expected = torch.linalg.solve(gram + RIDGE * gram.diagonal().diag(), centered.T @ (targets - targets.mean(0)))
    assert torch.allclose(weight, expected.T, rtol=1e-6, atol=1e-9)


def test_one_scale_a_channel_is_the_same_fit_as_an_input_of_its_own() -> None:
    v, x, targets = correlated(OUTPUTS, seed=3), correlated(), draw(ROWS, OUTPUTS, seed=9)
    scale, weight, bias = solve_scaled_linear(scaled_linear_sums(v, x, targets))
    for channel in range(OUTPUTS):
        columns = torch.cat([v[:, channel : channel + 1], x], 1)
        alone, constant = solve_linear(linear_sums(columns, targets[:, channel : channel + 1]))
        assert torch.allclose(torch.cat([scale[channel, None], weight[channel]]), alone[0], rtol=1e-6, atol=1e-8)
        assert torch.allclose(bias[channel], constant[0], rtol=1e-5)


def test_sums_of_batches_add_up_to_the_sums_of_the_whole() -> None:
    v, x, targets = correlated(seed=3), correlated(), draw(ROWS, INPUTS, seed=9)
    for sums, arguments in (
        (linear_sums, (x, targets)),
        (scaled_linear_sums, (v, x, targets)),
        (affine_sums, (v, x, targets)),
    ):
        whole = sums(*arguments)
        parts = [sums(*(values[start : start + 130] for values in arguments)) for start in range(0, ROWS, 130)]
        for name, value in add(*parts).items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-6)


def test_images_and_tokens_are_rows_alike() -> None:
    x, targets = draw(4, 25, 5), draw(4, 25, 3, seed=1)
    for name, value in linear_sums(x, targets).items():
        assert torch.equal(value, linear_sums(x.flatten(0, 1), targets.flatten(0, 1))[name])


@pytest.mark.parametrize("constant", [0.0, 0.1, -300.0])
def test_inputs_that_never_change_are_given_no_weight(constant: float) -> None:
    x, v, targets = draw(ROWS, 3), draw(ROWS, 3, seed=1), draw(ROWS, 3, seed=2) + 5
    x[:, 1] = v[:, 1] = constant
    x[:, 2] = constant
    linear = solve_linear(linear_sums(x, targets))
    scaled = solve_scaled_linear(scaled_linear_sums(v, x, targets))
    affine = solve_affine(affine_sums(v, x, targets))
    for fit in (linear, scaled, affine):
        assert all(part.isfinite().all() for part in fit)
    for made in (
        x.double() @ linear[0].T + linear[1],
        scaled[0] * v + x.double() @ scaled[1].T + scaled[2],
        affine[0] * v + affine[1] * x + affine[2],
    ):
        # No worse than the mean, which a constant cannot improve on.
        assert made.isfinite().all()
        assert ((made - targets).square().sum(0) <= (targets - targets.mean(0)).square().sum(0) * 1.0001).all()


def test_fewer_rows_than_inputs_give_a_finite_fit() -> None:
    x, v, targets = draw(3, 8), draw(3, 8, seed=1), draw(3, 8, seed=2)
    fits = (
        solve_linear(linear_sums(x, targets)),
        solve_scaled_linear(scaled_linear_sums(v, x, targets)),
        solve_affine(affine_sums(v, x, targets)),
        solve_affine(affine_sums(v[:1], x[:1], targets[:1])),
    )
    assert all(part.isfinite().all() for fit in fits for part in fit)


def test_no_gradient_is_kept() -> None:
    x = draw(10, 3).requires_grad_()
    assert not any(value.requires_grad for value in linear_sums(x, 2 * x).values())
