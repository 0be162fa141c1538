"""Choosing tokens, taking them out and putting them back."""

import pytest
import torch

from tosa_cli.model.selection import (
    choose_tokens,
    column_sum,
    gather_tokens,
    num_kept,
    num_query_rows,
    scatter_tokens,
    take_query_rows,
)


@pytest.mark.parametrize(
    ("num_tokens", "keep_rate", "num_prefix", "kept"),
    [
        (197, 0.8, 1, 158),  # 157.6
        (197, 0.5, 1, 98),  # 98.5, and Python rounds to the even number
        (197, 0.4, 1, 79),  # 78.8
        (197, 1.0, 1, 197),
        (197, 0.001, 1, 2),
        (197, 0.001, 0, 1),
        (10, 0.1, 5, 6),
        (10, 0.55, 5, 6),
        (10, 0.7, 5, 7),
        (2, 0.1, 1, 2),
        (1, 0.1, 1, 1),
    ],
)
def test_a_share_of_the_tokens_is_kept_and_at_least_one_beyond_the_prefix(
    num_tokens: int, keep_rate: float, num_prefix: int, kept: int
) -> None:
    assert num_kept(num_tokens, keep_rate, num_prefix) == kept


def test_the_tokens_chosen_are_the_most_important_ones_in_rising_order() -> None:
    importance = torch.tensor([[0.0, 5, 1, 9, 2, 7], [3.0, 1, 2, 3, 4, 5]])
    assert choose_tokens(importance, 3, 0).tolist() == [[1, 3, 5], [3, 4, 5]]


def test_prefix_tokens_are_chosen_however_unimportant_and_leave_the_rest_of_the_places() -> None:
    importance = torch.tensor([[-9.0, -9, 1, 9, 2, 7]])
    assert choose_tokens(importance, 3, 2).tolist() == [[0, 1, 3]]
    assert choose_tokens(importance, 4, 2).tolist() == [[0, 1, 3, 5]]
    assert choose_tokens(importance, 6, 2).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_each_head_chooses_for_itself() -> None:
    importance = torch.rand(3, 4, 17)
    chosen = choose_tokens(importance, 5, 1)
    assert chosen.shape == (3, 4, 5)
    for image in range(3):
        for head in range(4):
            assert torch.equal(chosen[image, head], choose_tokens(importance[image, head], 5, 1))


def test_tokens_taken_out_and_put_back_unchanged_give_the_same_tensor() -> None:
    tokens = torch.randn(3, 11, 4)
    keep = choose_tokens(torch.rand(3, 11), 6, 1)
    assert torch.equal(scatter_tokens(tokens, keep, gather_tokens(tokens, keep)), tokens)


def test_gathering_takes_the_rows_that_the_indices_name_image_by_image() -> None:
    tokens = torch.randn(2, 5, 3)
    keep = torch.tensor([[0, 3], [1, 4]])
    assert torch.equal(gather_tokens(tokens, keep), torch.stack([tokens[0, [0, 3]], tokens[1, [1, 4]]]))


def test_scattering_writes_the_selected_tokens_and_leaves_every_other_bit_as_it_was() -> None:
    tokens, selected = torch.randn(2, 5, 3), torch.randn(2, 2, 3)
    before = tokens.clone()
    keep = torch.tensor([[0, 3], [1, 4]])
    output = scatter_tokens(tokens, keep, selected)
    assert torch.equal(gather_tokens(output, keep), selected)
    skipped = torch.tensor([[1, 2, 4], [0, 2, 3]])
    assert torch.equal(gather_tokens(output, skipped), gather_tokens(before, skipped))
    assert torch.equal(tokens, before)


def test_gradients_flow_through_the_selected_and_the_skipped_tokens() -> None:
    tokens = torch.randn(1, 4, 2, requires_grad=True)
    keep = torch.tensor([[0, 2]])
    scatter_tokens(tokens, keep, 3 * gather_tokens(tokens, keep)).sum().backward()
    assert tokens.grad is not None and tokens.grad[0, :, 0].tolist() == [3, 1, 3, 1]


@pytest.mark.parametrize(("rows", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))])
def test_query_rows_are_spread_evenly_from_the_first_to_the_last(rows: int, expected: list[int]) -> None:
    query = torch.arange(10.0).view(1, 1, 10, 1).expand(2, 3, 10, 4)
    taken = take_query_rows(query, rows)
    assert taken.shape == (2, 3, rows, 4)
    assert taken[1, 2, :, 3].tolist() == expected


@pytest.mark.parametrize("rows", ["all", 197, 10_000])
def test_all_query_rows_are_the_queries_themselves(rows: int | str) -> None:
    query = torch.randn(1, 2, 197, 4)
    assert take_query_rows(query, rows) is query
    assert num_query_rows(197, rows) == 197


def test_no_query_row_is_taken_twice() -> None:
    query = torch.arange(197.0).view(1, 1, 197, 1)
    for rows in (2, 16, 100, 196):
        assert take_query_rows(query, rows).unique().numel() == rows


def test_the_importance_of_a_token_is_what_it_receives_from_all_query_rows() -> None:
    maps = torch.randn(2, 3, 4, 5).softmax(dim=-1)
    importance = column_sum(maps)
    for image in range(2):
        for head in range(3):
            for token in range(5):
                received = sum(maps[image, head, row, token].item() for row in range(4))
                assert importance[image, head, token].item() == pytest.approx(received, rel=1e-5)


def test_importance_is_summed_in_float32() -> None:
    # In bfloat16 a sum of many rows stops growing at 256 of them.
    maps = torch.ones(1, 1, 1000, 2, dtype=torch.bfloat16)
    assert column_sum(maps).tolist() == [[[1000, 1000]]] and column_sum(maps).dtype == torch.float32
