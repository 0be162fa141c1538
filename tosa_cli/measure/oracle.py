"""A greedy reference for selectors: what to skip by each layer's own true errors, at the price of the whole layer.

It is no bound. It does not see what later layers make of an error, nor that a skipped token may be the best partner of
another: a selector may come nearer to the dense model, and some do.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tosa_cli.errors import ConfigError
from tosa_cli.fit.candidates import bypass_errors, candidate_partners
from tosa_cli.model.families import attention_input
from tosa_cli.model.matching import Choice
from tosa_cli.model.places import Places
from tosa_cli.model.selection import choose_tokens, num_kept
from tosa_cli.model.tosa_vit import TosaViT


class OracleViT(TosaViT):
    """A ToSA model that runs each ToSA layer whole, and skips the tokens about which the layer's bypass is least wrong.

    Greedy: layer by layer, and token by token, as how wrong the bypass is about a token is measured with the tokens
    around it kept. To measure with, and never to use: it saves nothing.
    """

    @torch.no_grad()
    def choose(
        self, layer: int, tokens: Tensor, places: Places, scores: Tensor | None = None, inputs: Tensor | None = None
    ) -> Choice:
        """Choose the tokens that a ToSA layer computes by the true errors; see `TosaViT.choose`."""
        block, prefix = self.blocks[layer - 1], self.num_prefix_tokens
        partners = candidate_partners(self, layer, tokens, places.grid)
        errors = bypass_errors(self, layer, tokens, self.run_block(layer, tokens, places) - tokens, partners)
        kept = num_kept(tokens.shape[1], self.keep_rates[layer], prefix)
        keep_indices = choose_tokens(F.pad(errors, (prefix, 0)), kept, prefix)
        keys = self.keys[str(layer)](attention_input(block, tokens)) if self.config.matches_tokens else tokens
        return self.match(keep_indices, tokens.shape[1], keys)


def with_oracle(model: TosaViT) -> OracleViT:
    """The same model with the oracle in the place of its selector.

    Raises:
        ConfigError: If each head selects tokens of its own.
    """
    if model.config.selection == "per-head":
        raise ConfigError(
            "The oracle selects one set of tokens a layer, so it does not stand in for per-head selection."
        )
    oracle = OracleViT(model.backbone, model.config)
    oracle.load_state_dict(model.state_dict())
    oracle.provenance = model.provenance
    return oracle.eval()
