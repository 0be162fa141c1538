"""The attention selector and its loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from tosa_cli.model.selectors.attention import EXPANSION, AttentionSelector, attention_kl

from .tiny_models import randomize_


def make_logits(heads: int = 3, rows: int = 4, keys: int = 7, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(2, heads, rows, keys, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_new_selector_predicts_the_maps_that_it_reads(kernel: int) -> None:
    logits = make_logits()
    predicted = AttentionSelector(3, kernel)(logits)
    assert torch.allclose(predicted, F.log_softmax(logits, dim=-1), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_selector_is_two_convolutions_along_the_keys_with_a_relu_between(kernel: int) -> None:
    selector = randomize_(AttentionSelector(3, kernel), seed=0)
    assert isinstance(selector, AttentionSelector)
    assert selector.conv1.weight.shape == (EXPANSION * 3, 3, kernel)
    assert selector.conv2.weight.shape == (3, EXPANSION * 3, kernel)
    logits = make_logits()
    predicted = selector(logits)
    assert predicted.shape == logits.shape
    for row in range(logits.shape[2]):
        hidden = F.conv1d(logits[:, :, row], selector.conv1.weight, selector.conv1.bias, padding=kernel // 2).relu()
        output = F.conv1d(hidden, selector.conv2.weight, selector.conv2.bias, padding=kernel // 2)
        assert torch.allclose(predicted[:, :, row], F.log_softmax(output, dim=-1), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_predicted_maps_sum_to_one_over_the_keys(kernel: int) -> None:
    predicted = randomize_(AttentionSelector(3, kernel), seed=0)(make_logits())
    assert torch.allclose(predicted.exp().sum(dim=-1), torch.ones(2, 3, 4), atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_rows_do_not_see_each_other(kernel: int) -> None:
    selector = randomize_(AttentionSelector(3, kernel), seed=0)
    logits = make_logits()
    changed = logits.clone()
    changed[:, :, 1] += 1 + torch.rand_like(changed[:, :, 1])
    before, after = selector(logits), selector(changed)
    assert torch.allclose(before[:, :, [0, 2, 3]], after[:, :, [0, 2, 3]], atol=1e-6)
    assert not torch.allclose(before[:, :, 1], after[:, :, 1], atol=1e-3)


def test_a_selector_serves_another_number_of_keys() -> None:
    selector = AttentionSelector(3)
    for keys in (7, 50):
        assert selector(make_logits(keys=keys)).shape == (2, 3, 4, keys)


def test_predicted_maps_are_float32_in_a_half_precision_model() -> None:
    predicted = AttentionSelector(3).bfloat16()(make_logits().bfloat16())
    assert predicted.dtype == torch.float32
    assert torch.allclose(predicted.exp().sum(dim=-1), torch.ones(2, 3, 4), atol=1e-5)


def test_the_loss_is_the_divergence_summed_over_heads_and_averaged_over_images_and_rows() -> None:
    log_predicted = F.log_softmax(make_logits(seed=1), dim=-1)
    logits = make_logits(seed=2)
    true = logits.softmax(dim=-1)
    divergences = []
    for image in range(2):
        for row in range(4):
            total = 0.0
            for head in range(3):
                for key in range(7):
                    p = true[image, head, row, key].item()
                    total += p * (math.log(p) - log_predicted[image, head, row, key].item())
            divergences.append(total)
    assert attention_kl(log_predicted, logits).item() == pytest.approx(sum(divergences) / 8, rel=1e-5)


def test_the_loss_is_zero_for_equal_maps_and_positive_for_others() -> None:
    logits = make_logits()
    assert attention_kl(F.log_softmax(logits, dim=-1), logits).item() == pytest.approx(0, abs=1e-6)
    assert attention_kl(F.log_softmax(make_logits(seed=1), dim=-1), logits).item() > 0.1


def test_the_loss_has_torchs_own_divergence_for_a_witness() -> None:
    log_predicted, logits = F.log_softmax(make_logits(seed=1), dim=-1), make_logits(seed=2)
    witness = F.kl_div(log_predicted, logits.softmax(dim=-1), reduction="sum") / (2 * 4)
    assert attention_kl(log_predicted, logits).item() == pytest.approx(witness.item(), rel=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_training_reaches_both_convolutions_and_lowers_the_loss(kernel: int) -> None:
    torch.manual_seed(0)
    selector = AttentionSelector(3, kernel)
    logits, target = make_logits(seed=1), make_logits(seed=2)
    before = {name: value.clone() for name, value in selector.state_dict().items()}
    optimizer = torch.optim.AdamW(selector.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(20):
        loss = attention_kl(selector(logits), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # All hidden channels take part, also the half that a new selector does not use.
    changed = {name: (value != before[name]) for name, value in selector.state_dict().items()}
    assert changed["conv1.weight"].flatten(1).any(dim=1).all()
    assert changed["conv2.weight"].any(dim=2).all()
