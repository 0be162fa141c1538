"""How many groups are merged in each layer: schedules that begin early or late, and rise, fall or stay steady."""

from collections.abc import Sequence

from tosa_cli.bisection import largest
from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone, eligible_layers
from tosa_cli.model.flops import count_flops
from tosa_cli.model.selection import num_kept

RISES = (0.0, 0.5, 1.0, -0.5)
"""Powers of the depth that the number of merged groups rises or falls with."""

BEGINNINGS = 3
"""With how many of the layers that choose a schedule may begin: the first of them, the second, ..."""

LEAST_KEPT = 0.1
"""No layer computes a smaller share of the tokens."""

REGISTER = 16
"""How many numbers a vector register of a CPU holds, and rows a tile of AMX: what is left over takes nearly as long.

With AVX-512 PyTorch's attention of 191 tokens took a third longer than that of 192.
"""

LEAST_REGISTERS = 8
"""With fewer registers of tokens a layer computes the number that is shared out to it, whatever it is."""


class Schedules:
    """How much is merged in each layer, as shares, and the keep rates that save enough with them.

    Args:
        backbone: The dense model.
        method: A method that puts tokens into groups.
        layers: Layers in which tokens can be selected; None takes all that are eligible.

    Raises:
        ConfigError: If tokens can be selected in no layer.
    """

    def __init__(self, backbone: Backbone, method: Method, layers: Sequence[int] | None = None) -> None:
        if layers is None:
            layers = eligible_layers(backbone, method.selection, method.reads_maps)
        if not layers:
            raise ConfigError(
                f"The selector {method.selector!r} can select tokens in no layer of the model: take another."
            )
        self.backbone = backbone
        self.method = method
        self.layers = tuple(layers)
        self.depth = len(backbone.blocks)
        self.prefix = backbone.num_prefix_tokens
        self.tokens = int(backbone.patch_embed.num_patches) + self.prefix
        self.least = max(self.prefix + 1, round(LEAST_KEPT * self.tokens))
        self.step = REGISTER if self.tokens >= LEAST_REGISTERS * REGISTER else 1
        config = method.at(layers, 1.0)
        self.choosing = tuple(layer for layer, first in config.choosing_layers.items() if layer == first)
        self.chooser = config.choosing_layers
        self._reductions: dict[tuple[tuple[int, float], ...], float] = {}

    def check(self, target_reduction: float) -> None:
        """Check that a share of the dense MACs can be saved.

        Raises:
            ConfigError: If it cannot.
        """
        if self.most < target_reduction:
            raise ConfigError(
                f"The target reduction {target_reduction:.1%} cannot be reached: the layers save at most "
                f"{self.most:.1%} with a tenth of the tokens computed. Ask for less."
            )

    @property
    def most(self) -> float:
        """The largest share of the dense MACs that can be saved."""
        return self.reduction(self.at_scale(self.rising(0.0), float(self.tokens)))

    def all(self) -> list[list[float]]:
        """The shares that are tried, the steady ones first."""
        firsts = range(min(BEGINNINGS, len(self.choosing)))
        return [self.rising(rise, first) for first in firsts for rise in RISES]

    def rising(self, power: float, first: int = 0) -> list[float]:
        """Shares of the merging, one a layer that chooses: a power of the depth, and nothing in the first so many."""
        return [(layer / self.depth) ** power * (i >= first) for i, layer in enumerate(self.choosing)]

    def keep_rates(self, shares: Sequence[float], target_reduction: float) -> dict[int, float]:
        """The keep rates that share the merging out so, and save just that share of the dense MACs, or a little more.

        Where that is out of reach they save as much as these shares can.
        """
        low, high = 0.0, float(self.tokens) / min(share for share in shares if share > 0)
        for _ in range(40):
            middle = (low + high) / 2
            enough = self.reduction(self.at_scale(shares, middle)) >= target_reduction
            low, high = (low, middle) if enough else (middle, high)
        return self._give_back(self.at_scale(shares, high), target_reduction)

    def _give_back(self, rates: dict[int, float], target_reduction: float) -> dict[int, float]:
        """Let layers compute more tokens where that is enough: several may have come to their next count at one scale.

        The last layers come first, where a token costs least, and whole registers, so that one layer at most is left
        with a part of one.
        """
        for step in dict.fromkeys((self.step, 1)):
            for first in reversed(self.choosing):
                rates = self._give(rates, first, step, target_reduction)
        return rates

    def _give(self, rates: dict[int, float], first: int, step: int, target_reduction: float) -> dict[int, float]:
        """Let the layers that share a choice compute as many more tokens, by a step, as leave enough saved."""

        def more(steps: int) -> dict[int, float]:
            rate = self._rate(round(rates[first] * self.tokens) + steps * step)
            return {layer: rate if self.chooser[layer] == first else rates[layer] for layer in rates}

        room = round((rates.get(first - 1, 1.0) - rates[first]) * self.tokens)
        return more(largest(0, room // step, lambda steps: self.reduction(more(steps)) >= target_reduction))

    def at_scale(self, shares: Sequence[float], scale: float) -> dict[int, float]:
        """Keep rates where each layer that chooses merges about its share times a scale, in tokens."""
        merges = dict(zip(self.choosing, shares, strict=True))
        rates, merged = {}, 0.0
        for layer in self.layers:
            if layer - 1 not in rates:  # behind a standard layer every token is there again
                merged = 0.0
            if self.chooser[layer] == layer:
                merged += merges[layer] * scale
            rates[layer] = self._rate(max(self.least, self._near(self.tokens - merged)))
        return rates

    def _near(self, count: float) -> int:
        """The nearest number of tokens that fills registers, or all of them."""
        near = self.step * round(count / self.step)
        return self.tokens if near > self.tokens - self.step / 2 else near

    def _rate(self, count: int) -> float:
        """The keep rate with which a layer computes so many tokens."""
        return round(count / self.tokens, 5)

    def able(self, target_reduction: float) -> list[tuple[list[float], dict[int, float]]]:
        """Those of all schedules that can save so much, the steady ones first: shares, and the keep rates for it."""
        tries = [(shares, self.keep_rates(shares, target_reduction)) for shares in self.all()]
        return [(shares, rates) for shares, rates in tries if self.reduction(rates) >= target_reduction]

    def reduction(self, keep_rates: dict[int, float]) -> float:
        """Share of the dense MACs that keep rates save; counted once, as a search comes to the same rates again."""
        key = tuple(keep_rates.items())
        if key not in self._reductions:
            self._reductions[key] = self.count(keep_rates)
        return self._reductions[key]

    def count(self, keep_rates: dict[int, float]) -> float:
        """Count what share of the dense MACs keep rates save."""
        return count_flops(self.backbone, self.config(keep_rates)).reduction

    def config(self, keep_rates: dict[int, float]) -> TosaConfig:
        """The conversion at these keep rates, in the layers that merge anything; all of them where none does."""
        kept = {
            layer: rate for layer, rate in keep_rates.items() if num_kept(self.tokens, rate, self.prefix) < self.tokens
        }
        kept = kept or keep_rates
        return self.method.at(kept, kept.values())
