"""Logits are read of attention however a block calls it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.model.attention import AttentionTap
from tosa_cli.model.places import SelectedBias
from tosa_cli.model.sdpa import read_call

QUERY, KEY, VALUE = (torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
BIAS = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(3))


def tap(rows: int | str, *args: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
    reader = AttentionTap(rows, lambda logits: logits)
    with reader:
        output = F.scaled_dot_product_attention(*args, **kwargs)  # type: ignore[arg-type]
    return output, reader.result


@pytest.mark.parametrize("rows", ["all", 3])
def test_by_position_or_by_name_the_logits_are_the_same(rows: int | str) -> None:
    output, logits = tap(rows, QUERY, KEY, VALUE, attn_mask=BIAS)
    for args, kwargs in (
        ((QUERY, KEY, VALUE, BIAS), {}),
        ((), {"query": QUERY, "key": KEY, "value": VALUE, "attn_mask": BIAS}),
        ((QUERY,), {"key": KEY, "value": VALUE, "attn_mask": BIAS, "dropout_p": 0.0, "is_causal": False}),
    ):
        again, read = tap(rows, *args, **kwargs)
        assert torch.allclose(again, output, atol=1e-6) and read is not None and torch.equal(read, logits)


@pytest.mark.parametrize("rows", ["all", 3])
def test_a_scale_of_its_own_is_that_of_the_logits(rows: int | str) -> None:
    output, logits = tap(rows, QUERY, KEY, VALUE, scale=0.2)
    assert torch.allclose(output, F.scaled_dot_product_attention(QUERY, KEY, VALUE, scale=0.2), atol=1e-6)
    chosen = [0, 3, 6] if rows == 3 else list(range(7))
    assert logits is not None
    assert torch.allclose(logits, (QUERY[:, :, chosen] @ KEY.transpose(-2, -1)) * 0.2, atol=1e-5)


@pytest.mark.parametrize("rows", ["all", 3])
def test_heads_that_share_keys_have_logits_of_their_own(rows: int | str) -> None:
    key, value = KEY[:, :2], VALUE[:, :2]
    output, logits = tap(rows, QUERY, key, value, enable_gqa=True)
    expected = F.scaled_dot_product_attention(QUERY, key, value, enable_gqa=True)
    assert torch.allclose(output, expected, atol=1e-6)
    _, repeated = tap(rows, QUERY, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1))
    assert logits is not None and repeated is not None and torch.equal(logits, repeated)


def test_what_a_mask_hides_is_infinitely_far_away() -> None:
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[:, 5:] = False
    output, logits = tap("all", QUERY, KEY, VALUE, attn_mask=mask)
    assert torch.allclose(output, F.scaled_dot_product_attention(QUERY, KEY, VALUE, attn_mask=mask), atol=1e-6)
    assert logits is not None and logits[..., 5:].isneginf().all() and logits[..., :5].isfinite().all()


def test_causal_attention_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        read_call(QUERY, KEY, VALUE, is_causal=True)


@pytest.mark.parametrize("as_bool", [False, True])
def test_a_mask_is_fitted_to_selected_tokens_however_it_is_given(as_bool: bool) -> None:
    keep = torch.tensor([[0, 2, 3, 6], [0, 1, 4, 5]])
    mask = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(4)) > 0.3 if as_bool else BIAS[:1]
    mask[..., 0] = 1
    query, key, value = (each.gather(2, keep[:, None, :, None].expand(-1, 4, -1, 8)) for each in (QUERY, KEY, VALUE))
    gathered = torch.stack([mask[0][:, rows][:, :, rows] for rows in keep])
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=gathered)
    for args, kwargs in (((query, key, value, mask), {}), ((query, key), {"value": value, "attn_mask": mask})):
        with SelectedBias(keep, None):
            found = F.scaled_dot_product_attention(*args, **kwargs)
        assert torch.allclose(found, expected, atol=1e-6)
