"""A ToSA layer (paper Eq. 4): the selected tokens go through the untouched block, the others through the bypass."""

from typing import NamedTuple

from torch import Tensor, nn

from tosa_cli.model.bypasses import Bypass
from tosa_cli.model.choice import Choice, Grown
from tosa_cli.model.families import attention_input, kind_of
from tosa_cli.model.grouping import (
    Moved,
    each_alone,
    how_grown,
    join_groups,
    log_counts,
    part_into_groups,
    unmerge_groups,
)
from tosa_cli.model.matching import mean_of_partners, token_sizes
from tosa_cli.model.places import Extras
from tosa_cli.model.selection import gather_tokens, merge_tokens, scatter_tokens


class Parts(NamedTuple):
    """The tokens of a span of ToSA layers, taken apart by its choice: no layer of it reads them in their old order.

    Attributes:
        selected: Selected tokens, or means of groups at the mean length of their tokens, (B, K, D).
        others: Skipped tokens (B, S, D); where nothing updates them all tokens (B, N, D), as they entered the span;
            None where tokens are in groups.
        reads: What the bypass of the next layer reads of the skipped tokens, (B, S, D); None where it is not known yet.
        coherence: How far the tokens of each group point one way, (B, K) in float32: length of their mean as a share of
            their mean length; None where tokens are not in groups.
        size_bias: Logarithm of how often each of `selected` counts in the attention, (B, 1, 1, K), as it is added to
            the logits; None where all count once.
        moved: How to undo each merge of groups, in their order.
    """

    selected: Tensor
    others: Tensor | None = None
    reads: Tensor | None = None
    coherence: Tensor | None = None
    size_bias: Tensor | None = None
    moved: tuple[Moved, ...] = ()


def run_tosa_layer(
    block: nn.Module,
    tokens: Tensor,
    choice: Choice,
    bypass: Bypass,
    extras: Extras | None = None,
) -> Tensor:
    """Run a block on the selected tokens and put everything back in its old place.

    Args:
        block: A supported block.
        tokens: Tokens (B, N, D).
        choice: Which tokens are computed; with partners where the bypass is a `nearest` one.
        bypass: What updates the skipped tokens.
        extras: What the block is given beside the tokens, from `Places`; nothing for a plain block.

    Returns:
        Tokens (B, N, D).
    """
    return join_parts(run_parts(block, split_tokens(tokens, choice), choice, bypass, extras), choice)


def split_tokens(tokens: Tensor, choice: Choice) -> Parts:
    """Take tokens (B, N, D) apart."""
    if choice.groups is None:
        return take_apart(tokens, choice)._replace(size_bias=partner_bias(choice))
    assert choice.sizes is not None
    grown, length, alone = choice.grown, tokens.shape[1], Parts(tokens, coherence=each_alone(tokens))
    if choice.sizes.shape[1] == length:
        return alone  # none is merged
    if grown is not None and grown.position.shape[1] == length:
        return _grow_parts(alone, grown)
    return _parts_in_groups(choice.sizes, (), *part_into_groups(tokens, choice.groups, choice.sizes))


def take_apart(tokens: Tensor, choice: Choice) -> Parts:
    """The selected and the skipped of tokens (B, N, D) that no block runs on."""
    others = tokens if choice.skip_indices is None else gather_tokens(tokens, choice.skip_indices)
    return Parts(gather_tokens(tokens, choice.keep_indices), others)


def partner_bias(choice: Choice) -> Tensor | None:
    """What is added to the logits of kept tokens for those that they are partners of, (B, 1, 1, K)."""
    if choice.partners is None or choice.weights is None:
        return None
    return to_logits(token_sizes(choice.keep_indices.shape[1], choice.partners, choice.weights).log())


def to_logits(log_counts: Tensor) -> Tensor:
    """A number for each of K keys, (B, K), as it is added to logits (B, H, M, K)."""
    return log_counts.unsqueeze(1).unsqueeze(1)


def join_parts(parts: Parts, choice: Choice) -> Tensor:
    """Put tokens that `split_tokens` took apart back in their old places: (B, N, D)."""
    if parts.others is None:
        tokens = parts.selected
        for moved in reversed(parts.moved):
            tokens = unmerge_groups(tokens, moved)
        return tokens
    if choice.skip_indices is None:
        return scatter_tokens(parts.others, choice.keep_indices, parts.selected)
    return merge_tokens(choice.keep_indices, parts.selected, choice.skip_indices, parts.others)


def merge_parts(parts: Parts, before: Choice, choice: Choice) -> Parts:
    """Take the tokens of groups apart by a choice of larger groups, in which those of the choice before are merged."""
    assert before.sizes is not None and choice.sizes is not None
    if choice.sizes.shape[1] == before.sizes.shape[1]:
        return parts  # none is merged
    grown = how_grown(before, choice) if choice.grown is None else choice.grown
    return _grow_parts(parts, grown)


def _grow_parts(parts: Parts, grown: Grown) -> Parts:
    assert parts.coherence is not None
    return _parts_in_groups(grown.sizes, parts.moved, *join_groups(parts.selected, parts.coherence, grown))


def _parts_in_groups(sizes: Tensor, before: tuple[Moved, ...], means: Tensor, coherence: Tensor, moved: Moved) -> Parts:
    """What stands for groups of these sizes (B, K), behind the merges before."""
    size_bias = to_logits(log_counts(sizes, coherence))
    return Parts(means, coherence=coherence, size_bias=size_bias, moved=(*before, moved))


def run_parts(
    block: nn.Module,
    parts: Parts,
    choice: Choice,
    bypass: Bypass,
    extras: Extras | None = None,
) -> Parts:
    """Run a block on the selected tokens, and update the others; the arguments are `run_tosa_layer`'s."""
    selected, others, reads, size_bias = parts.selected, parts.others, parts.reads, parts.size_bias
    if not bypass.updates_tokens:
        return parts._replace(selected=run_selected(block, selected, choice, extras, size_bias), reads=None)
    assert others is not None  # tokens in groups have no updates but those of their means
    if reads is None and bypass.reads_inputs:
        # Before the block runs, so that what this takes is free again when the block needs the most.
        read = selected if choice.partners is None else attention_input(block, selected)  # partners alone are read
        reads = bypass_reads(Parts(read, attention_input(block, others)), choice)
    computed = run_selected(block, selected, choice, extras, size_bias)
    updates = bypass(reads, partner_updates(selected, computed, choice) if bypass.reads_updates else None)
    return Parts(computed, (others + updates).to(others.dtype), size_bias=size_bias)


def run_selected(
    block: nn.Module,
    selected: Tensor,
    choice: Choice,
    extras: Extras | None = None,
    size_bias: Tensor | None = None,
) -> Tensor:
    """Run a block on the selected tokens (B, K, D), each of which stands for its group, or the ones it is a partner of.

    In the attention a token counts as often as that, as in the proportional attention of token merging (ToMe, section
    3): softmax(QK^T + log size), with `size_bias` (B, 1, 1, K). Nothing else of the block knows about it. Where the
    block is told of places, it is told those of the selected tokens.

    Returns:
        Tokens (B, K, D).
    """
    size_bias = None if size_bias is None else size_bias.to(selected.dtype)
    return kind_of(block).run_selected(block, selected, choice.keep_indices, extras or {}, size_bias)


def bypass_reads(inputs: Parts, choice: Choice) -> Tensor:
    """What a bypass reads of the skipped tokens.

    Args:
        inputs: What the block's attention reads of the tokens, taken apart.
        choice: Which ones are computed.

    Returns:
        The inputs of the skipped tokens, less the mean of their partners' where they have some: (B, S, D).
    """
    assert inputs.others is not None
    if choice.partners is None or choice.weights is None:
        return inputs.others
    return inputs.others - mean_of_partners(inputs.selected, choice.partners, choice.weights)


def partner_updates(selected: Tensor, computed: Tensor, choice: Choice) -> Tensor:
    """Mean update of the partners of each skipped token.

    Args:
        selected: Selected tokens before the block, (B, K, D).
        computed: Selected tokens after it, (B, K, D).
        choice: A choice with partners.

    Returns:
        Updates (B, S, D).

    Raises:
        ValueError: If the choice has no partners.
    """
    if choice.partners is None or choice.weights is None:
        raise ValueError("The choice has no partners.")
    return mean_of_partners(computed - selected, choice.partners, choice.weights)
