"""A ToSA layer (paper Eq. 4): the selected tokens go through the untouched block, the others through the bypass."""

from collections.abc import Mapping

from torch import Tensor

from tosa_cli.model.backbone import Backbone, attention_input, has_bias
from tosa_cli.model.bypass import LinearBypass, NearestBypass
from tosa_cli.model.matching import Choice, mean_of_partners, token_sizes
from tosa_cli.model.places import ROPE, SelectedBias, gather_rope
from tosa_cli.model.selection import gather_tokens, merge_tokens, scatter_tokens


def run_tosa_layer(
    block: Backbone,
    tokens: Tensor,
    choice: Choice,
    bypass: LinearBypass | NearestBypass | None,
    extras: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Run a block on the selected tokens and put everything back in its old place.

    Args:
        block: A supported block.
        tokens: Tokens (B, N, D).
        choice: Which tokens are computed; with partners where the bypass is a `nearest` one.
        bypass: What updates the skipped tokens; None leaves them as they are.
        extras: What the block is given beside the tokens, from `Places`; nothing for a plain block.

    Returns:
        Tokens (B, N, D).
    """
    selected = gather_tokens(tokens, choice.keep_indices)
    computed = run_selected(block, selected, choice, extras)
    if bypass is None or choice.skip_indices is None:
        return scatter_tokens(tokens, choice.keep_indices, computed)
    skipped = gather_tokens(tokens, choice.skip_indices)
    if isinstance(bypass, NearestBypass):
        updates = bypass(*partner_features(block, selected, computed, skipped, choice, bypass.reads_inputs))
    else:
        updates = bypass(attention_input(block, skipped))
    return merge_tokens(tokens, choice.keep_indices, computed, choice.skip_indices, skipped + updates)


def run_selected(
    block: Backbone, selected: Tensor, choice: Choice, extras: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Run a block on the selected tokens (B, K, D), each of which stands for the skipped ones it is a partner of.

    In the attention a token counts as often as that, as in the proportional attention of token merging (ToMe, section
    3): softmax(QK^T + log size). Nothing else of the block knows about it. Where the block is told of places, it is
    told those of the selected tokens.

    Returns:
        Tokens (B, K, D).
    """
    size_bias = None
    if choice.partners is not None and choice.weights is not None:
        sizes = token_sizes(selected.shape[1], choice.partners, choice.weights)
        size_bias = sizes.log()[:, None, None, :].to(selected.dtype)
    given = dict(extras or {})
    if has_bias(block):
        with SelectedBias(choice.keep_indices, size_bias):
            return block(selected, **given)
    if ROPE in given:
        prefix = block.attn.num_prefix_tokens
        given[ROPE] = gather_rope(given[ROPE], choice.keep_indices[:, prefix:] - prefix)
    if size_bias is not None:
        given["attn_mask"] = size_bias
    return block(selected, **given)


def partner_features(
    block: Backbone, selected: Tensor, computed: Tensor, skipped: Tensor, choice: Choice, reads_inputs: bool = True
) -> tuple[Tensor, Tensor | None]:
    """What a `nearest` bypass reads.

    Args:
        block: The block.
        selected: Selected tokens before it, (B, K, D).
        computed: Selected tokens after it, (B, K, D).
        skipped: Skipped tokens, (B, S, D).
        choice: A choice with partners.
        reads_inputs: Whether the differences are needed.

    Returns:
        Mean update of each skipped token's partners, (B, S, D), and its input less theirs, (B, S, D), or None.

    Raises:
        ValueError: If the choice has no partners.
    """
    if choice.partners is None or choice.weights is None:
        raise ValueError("The choice has no partners.")
    updates = mean_of_partners(computed - selected, choice.partners, choice.weights)
    if not reads_inputs:
        return updates, None
    inputs = mean_of_partners(attention_input(block, selected), choice.partners, choice.weights)
    return updates, attention_input(block, skipped) - inputs
