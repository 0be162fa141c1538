"""Merges tokens into groups, near ones into small ones; needs no training."""

from torch import Tensor

from tosa_cli.config import Method
from tosa_cli.model.choice import Choice
from tosa_cli.model.families import Backbone
from tosa_cli.model.grouping import each_alone, grow_groups, num_mergeable
from tosa_cli.model.selectors.base import Entry, Ranks, Selector


class WardSelector(Selector):
    """Merges the groups of tokens that cost least by Ward's (1963) formula, with roots of sizes; they only grow.

    In the first ToSA layer of a row every token is a group; each one behind it goes on with the groups of the one
    before. A group is kept by one of its tokens, which stands for it wherever a token is named.
    """

    @staticmethod
    def macs(backbone: Backbone, layer: int, method: Method, tokens: int, kept: int) -> int:
        """The distances between the two halves of the groups that enter, `tokens` in number, and sums of those merged.

        Of those that go into the same group each sums all up, their tokens and their lengths.
        """
        prefix, macs = backbone.num_prefix_tokens, (tokens - kept) ** 2 * (backbone.embed_dim + 1)
        while tokens > kept:
            second = num_mergeable(tokens, prefix)
            macs += (tokens - prefix - second) * second * backbone.embed_dim
            tokens -= min(tokens - kept, second)
        return macs

    def choose(self, entry: Entry) -> Choice:
        """Merge groups until there are as many as the layer computes."""
        means, before = entry.means, entry.before
        assert means is not None
        if before is None:
            grown = grow_groups(means, each_alone(means), entry.num_kept, entry.num_prefix_tokens)
            return Choice(grown.stay, groups=grown.position, sizes=grown.sizes, grown=grown)
        assert before.groups is not None and before.sizes is not None
        grown = grow_groups(means, before.sizes, entry.num_kept, entry.num_prefix_tokens)
        keep_indices, groups = before.keep_indices.gather(1, grown.stay), grown.position.gather(1, before.groups)
        return Choice(keep_indices, groups=groups, sizes=grown.sizes, grown=grown)

    def ranks(self, entry: Entry) -> Ranks | None:
        """None: a group is merged as a whole, and no token has a rank of its own."""
        return None

    def shown(self, entry: Entry) -> Tensor | None:
        """None: no token has a score of its own."""
        return None
