"""A greedy reference for selectors: what to skip by each layer's own true errors, at the price of the whole layer.

It is no bound. It does not see what later layers make of an error, nor that a skipped token may be the best partner of
another: a selector may come nearer to the dense model, and some do.
"""

import torch
from torch.nn import functional as F

from tosa_cli.errors import ConfigError
from tosa_cli.fit.candidates import bypass_errors, candidate_partners
from tosa_cli.model.choice import Choice
from tosa_cli.model.selection import choose_tokens
from tosa_cli.model.selectors import Entry, match
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_vit import TosaViT


class OracleViT(TosaViT):
    """A ToSA model that runs each ToSA layer whole, and skips the tokens about which the layer's bypass is least wrong.

    Greedy: layer by layer, and token by token, as how wrong the bypass is about a token is measured with the tokens
    around it kept. To measure with, and never to use: it saves nothing.
    """

    @torch.no_grad()
    def choose(self, layer: int, stream: Stream, entry: Entry | None = None) -> Choice:
        """Choose the tokens that a ToSA layer computes by the true errors; see `TosaViT.choose`."""
        entry, tokens = entry or self.entry(layer, stream), stream.tokens
        partners = candidate_partners(self, layer, tokens, entry.grid)
        errors = bypass_errors(self, layer, tokens, self.run_block(layer, tokens, stream.places) - tokens, partners)
        scores = F.pad(errors, (entry.num_prefix_tokens, 0))
        return match(choose_tokens(scores, entry.num_kept, entry.num_prefix_tokens), entry)


def with_oracle(model: TosaViT) -> OracleViT:
    """The same model with the oracle in the place of its selector.

    Raises:
        ConfigError: If each head selects tokens of its own, or tokens are in groups.
    """
    if model.config.selection == "per-head":
        raise ConfigError(
            "The oracle selects one set of tokens a layer, so it does not stand in for per-head selection: leave out "
            "--selector oracle."
        )
    if model.config.groups_tokens:
        raise ConfigError(
            "The oracle ranks single tokens, so it does not stand in for a selector that makes groups: leave out "
            "--selector oracle."
        )
    oracle = OracleViT(model.backbone, model.config)
    oracle.load_state_dict(model.state_dict())
    oracle.provenance = model.provenance
    return oracle.eval()
