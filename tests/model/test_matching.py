"""Which patches may be skipped, which of them are, and by what kept tokens they are stood in for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tosa_cli.model.grouping import grow_groups
from tosa_cli.model.matching import (
    Choice,
    choose_by_similarity,
    length_scale,
    match_with_kept,
    mean_of_partners,
    num_partners,
    other_indices,
    partner_spacing,
    partner_weights,
    positions,
    squared_distances,
    token_sizes,
    two_sets,
)
from tosa_cli.model.selection import choose_tokens

GRIDS = [(1, 2), (2, 1), (2, 2), (3, 3), (4, 6), (5, 3), (1, 7), (7, 8), (14, 14)]


def make_keys(length: int, batch: int = 2, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed))


def check_choice(choice: Choice, keys: Tensor, kept: int, prefix: int) -> None:
    """What holds for every choice with partners: who is kept and who is not, and who stands in for whom."""
    assert choice.skip_indices is not None and choice.partners is not None and choice.weights is not None
    batch, length, _ = keys.shape
    assert choice.keep_indices.shape == (batch, kept) and choice.skip_indices.shape == (batch, length - kept)
    for image in range(batch):
        keep, skip = choice.keep_indices[image].tolist(), choice.skip_indices[image].tolist()
        assert keep == sorted(keep) and skip == sorted(skip) and sorted(keep + skip) == list(range(length))
        assert keep[:prefix] == list(range(prefix))
    assert ((choice.partners >= prefix) & (choice.partners < kept)).all()
    ones = torch.ones(batch, length - kept)
    assert choice.weights.isfinite().all() and torch.allclose(choice.weights.sum(-1), ones, atol=1e-5)


# ---------------------------------------------------------------------- two sets


@pytest.mark.parametrize("spacing", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_patch_is_either_a_candidate_or_a_possible_partner(grid: tuple[int, int], spacing: int) -> None:
    candidates, partners = (indices.tolist() for indices in two_sets(grid, spacing))
    assert sorted(candidates + partners) == list(range(grid[0] * grid[1]))
    assert candidates == sorted(candidates) and partners == sorted(partners)
    assert len(partners) == num_partners(grid, spacing) > 0


@pytest.mark.parametrize("spacing", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_candidate_has_a_possible_partner_beside_it(grid: tuple[int, int], spacing: int) -> None:
    candidates, partners = (indices.tolist() for indices in two_sets(grid, spacing))
    for candidate in candidates:
        row, column = divmod(candidate, grid[1])
        away = [(abs(row - partner // grid[1]), abs(column - partner % grid[1])) for partner in partners]
        # On a checkerboard a neighbour of the other color, else the corner of the square that the patch lies in.
        near = [rows + columns if spacing == 1 else max(rows, columns) for rows, columns in away]
        assert min(near) <= max(1, spacing - 1)


def test_the_sets_of_a_checkerboard_are_its_colors() -> None:
    candidates, partners = two_sets((3, 4), 1)
    assert candidates.tolist() == [0, 2, 5, 7, 8, 10] and partners.tolist() == [1, 3, 4, 6, 9, 11]


def test_spaced_partners_are_one_of_each_square() -> None:
    assert two_sets((4, 5), 2)[1].tolist() == [0, 2, 4, 10, 12, 14]
    assert two_sets((4, 4), 3)[1].tolist() == [0, 3, 12, 15]


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_at_every_size_and_rate_there_are_candidates_enough_and_the_choice_is_whole(prefix: int) -> None:
    for grid in [(rows, columns) for rows in range(1, 10) for columns in range(1, 8)]:
        patches = grid[0] * grid[1]
        keys = make_keys(patches + prefix, batch=1, dim=2)
        for skipped in range(patches):
            candidates, _ = two_sets(grid, partner_spacing(grid, skipped))
            assert len(candidates) >= skipped, (grid, skipped)
            kept = patches + prefix - skipped
            check_choice(choose_by_similarity(keys, kept, prefix, grid, 4), keys, kept, prefix)


# ---------------------------------------------------------------------- the choice


def test_duplicates_are_skipped_before_all_others_and_their_twin_stays() -> None:
    keys = make_keys(1 + 36)
    candidates, partners = (indices + 1 for indices in two_sets((6, 6), partner_spacing((6, 6), 3)))
    twins = [(candidates[2], partners[11]), (candidates[9], partners[4]), (candidates[17], partners[0])]
    for candidate, partner in twins:
        keys[:, candidate] = keys[:, partner]
    choice = choose_by_similarity(keys, 34, 1, (6, 6), neighbors=2)
    assert choice.skip_indices is not None and choice.partners is not None and choice.weights is not None
    assert choice.skip_indices.tolist() == [sorted(int(candidate) for candidate, _ in twins)] * 2
    nearest = choice.keep_indices.gather(1, choice.partners[..., 0])
    assert nearest.tolist() == [[int(partner) for _, partner in sorted(twins)]] * 2
    assert torch.allclose(choice.weights[..., 0], torch.ones(2, 3))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("neighbors", [1, 3])
def test_the_candidates_with_the_nearest_partner_are_skipped_and_matched_with_it(rate: float, neighbors: int) -> None:
    grid, prefix = (5, 6), 2
    keys = make_keys(30 + prefix)
    kept = round(rate * 32)
    choice = choose_by_similarity(keys, kept, prefix, grid, neighbors)
    check_choice(choice, keys, kept, prefix)
    assert choice.skip_indices is not None and choice.partners is not None
    candidates, partners = two_sets(grid, partner_spacing(grid, 32 - kept))
    for image in range(2):

        def away(token: int, image: int = image) -> list[tuple[float, int]]:
            others = (partners + prefix).tolist()
            return sorted(((keys[image, token] - keys[image, other]).norm().item(), other) for other in others)

        ranked = sorted((candidates + prefix).tolist(), key=lambda token: away(token)[0])
        assert choice.skip_indices[image].tolist() == sorted(ranked[: 32 - kept])
        for token, matched in zip(choice.skip_indices[image].tolist(), choice.partners[image], strict=True):
            expected = [other for _, other in away(token)[:neighbors]]
            assert choice.keep_indices[image][matched].tolist() == expected


@pytest.mark.parametrize("neighbors", [1, 4, 100])
def test_matching_finds_the_nearest_kept_patches_and_no_prefix_token(neighbors: int) -> None:
    prefix, kept = 2, 12
    keys = make_keys(30)
    keys[:, 0] = keys[:, 20]  # a prefix token that is like a patch is no partner all the same
    keep = choose_tokens(torch.rand(2, 30, generator=torch.Generator().manual_seed(1)), kept, prefix)
    choice = match_with_kept(keys, keep, prefix, neighbors)
    check_choice(choice, keys, kept, prefix)
    assert choice.skip_indices is not None and choice.partners is not None
    for image in range(2):
        patches = keep[image, prefix:].tolist()
        for token, matched in zip(choice.skip_indices[image].tolist(), choice.partners[image], strict=True):
            ranked = sorted(patches, key=lambda other: (keys[image, token] - keys[image, other]).norm().item())
            assert keep[image][matched].tolist() == ranked[:neighbors]


def test_a_choice_that_keeps_all_skips_nobody() -> None:
    keys, every = make_keys(17), torch.arange(17).expand(2, -1)
    for choice in (choose_by_similarity(keys, 17, 1, (4, 4), 4), match_with_kept(keys, every, 1, 4)):
        assert choice.keep_indices[0].tolist() == list(range(17))
        assert choice.partners is not None and choice.partners.shape[1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_much_the_same_also_where_all_keys_share_a_large_part(dtype: torch.dtype) -> None:
    keys = 0.3 * make_keys(197, dim=64) + 2 * make_keys(1, dim=64, batch=1, seed=1)
    keys[:, 5] = keys[:, 6]
    expected, choice = (choose_by_similarity(some, 100, 1, (14, 14), 4) for some in (keys, keys.to(dtype)))
    check_choice(choice, keys, 100, 1)
    assert expected.skip_indices is not None and choice.skip_indices is not None
    for image in range(2):
        common = set(expected.skip_indices[image].tolist()) & set(choice.skip_indices[image].tolist())
        assert len(common) >= 0.95 * 97


def test_distances_are_those_of_each_pair_and_zero_for_equal_keys() -> None:
    keys = make_keys(9) + 100
    expected = (keys[:, :4, None] - keys[:, None, 4:]).square().sum(-1) * length_scale(keys.shape[-1]) ** 2
    assert torch.allclose(squared_distances(keys[:, :4], keys[:, 4:]), expected, rtol=1e-3)
    same = squared_distances(keys, keys)
    assert (same >= 0).all() and same.diagonal(dim1=1, dim2=2).max() < 1e-4


# ---------------------------------------------------------------------- shares and sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nearer_partners_count_more_and_equal_tokens_at_distance_zero_share(dtype: torch.dtype) -> None:
    distances = torch.tensor([[[1.0, 2.0, 4.0], [0.0, 1.0, 1.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]], dtype=dtype)
    weights = partner_weights(distances)
    shares = [[16 / 21, 4 / 21, 1 / 21], [1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert torch.allclose(weights, torch.tensor([shares]), atol=1e-6)


@pytest.mark.parametrize("kept", [2, 9, 16, 17])
def test_the_kept_tokens_stand_for_all_tokens_together(kept: int) -> None:
    keys = make_keys(17)
    choice = choose_by_similarity(keys, kept, 1, (4, 4), 3)
    assert choice.partners is not None and choice.weights is not None
    sizes = token_sizes(kept, choice.partners, choice.weights)
    assert torch.allclose(sizes.sum(-1), torch.full((2,), 17.0)) and sizes.min() >= 1
    assert sizes[:, 0].tolist() == [1, 1]  # nobody is a partner of the class token
    for image in range(2):
        expected = [1.0] * kept
        for partners, weights in zip(choice.partners[image].tolist(), choice.weights[image].tolist(), strict=True):
            for partner, weight in zip(partners, weights, strict=True):
                expected[partner] += weight
        assert sizes[image].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_mean_of_partners_is_weighted_by_their_shares() -> None:
    tokens, partners = make_keys(5), torch.tensor([[[0, 3], [4, 4]], [[1, 2], [0, 1]]])
    weights = torch.tensor([[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], [0.1, 0.9]]])
    means = mean_of_partners(tokens, partners, weights)
    assert torch.allclose(means[0, 0], 0.25 * tokens[0, 0] + 0.75 * tokens[0, 3])
    assert torch.allclose(means[0, 1], tokens[0, 4]) and torch.allclose(means[1, 0], tokens[1, 1])
    assert torch.allclose(means[1, 1], 0.1 * tokens[1, 0] + 0.9 * tokens[1, 1])
    assert mean_of_partners(tokens.bfloat16(), partners, weights).dtype == torch.bfloat16


# ---------------------------------------------------------------------- indices


@pytest.mark.parametrize("count", [0, 1, 6, 11])
def test_the_other_indices_are_those_left_over_in_rising_order(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    indices = torch.stack([torch.randperm(11, generator=generator)[:count] for _ in range(3)])
    expected = [[i for i in range(11) if i not in row] for row in indices.tolist()]
    assert other_indices(indices, 11).tolist() == expected


def test_positions_are_places_among_the_kept_tokens() -> None:
    keep = torch.tensor([[0, 2, 3, 7], [1, 4, 5, 6]])
    found = positions(keep, 8)
    for image in range(2):
        for place, token in enumerate(keep[image].tolist()):
            assert found[image, token] == place
    assert found[0, 1] == found[0, 4] == found[1, 0] == found[1, 7] == 0


# ---------------------------------------------------------------------- many tokens


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def by_similarity(keys: Tensor) -> tuple[Tensor, ...]:
    return tuple(choose_by_similarity(keys, 700, 0, (32, 32), 4)[:4])  # type: ignore[return-value]


def among_kept(keys: Tensor) -> tuple[Tensor, ...]:
    kept = torch.arange(0, 1024, 2).expand(2, -1)
    return tuple(match_with_kept(keys, kept, 0, 4)[:4])  # type: ignore[return-value]


def in_groups(keys: Tensor) -> tuple[Tensor, ...]:
    return tuple(grow_groups(keys, keys.new_ones(2, 1024), 600, 0))


@pytest.mark.parametrize("choose", [by_similarity, among_kept, in_groups], ids=lambda choose: choose.__name__)
def test_the_memory_of_matching_grows_with_the_tokens_and_not_with_their_square(
    choose: Callable[[Tensor], tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = make_keys(1024)
    with Largest() as whole:
        expected = choose(keys)
    assert whole.numbers >= 2 * 324 * 512
    monkeypatch.setattr("tosa_cli.model.matching.AT_ONCE", 8 * 1024)
    with Largest() as blocks:
        found = choose(keys)
    assert blocks.numbers <= 2 * 8 * 1024
    for expected_part, part in zip(expected, found, strict=True):
        torch.testing.assert_close(part, expected_part)
