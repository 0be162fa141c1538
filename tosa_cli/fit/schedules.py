"""Which layers merge groups, and how many: schedules that begin early or late and merge as many in each layer.

A choice takes a single image as long as some 2 % of the layers of a small model, and MACs do not tell of it. So a
schedule ends as soon as its layers merge enough each, and in the last layers, where a merge saves least, nothing is
merged: tokens come about as near to the dense ones with three layers that merge as with five. Schedules that rise or
fall with the depth were tried and left: they win on the images that they are chosen by, and lose on others.
"""

from collections.abc import Sequence
from functools import partial

from tosa_cli.bisection import largest
from tosa_cli.config import Method, TosaConfig
from tosa_cli.errors import ConfigError
from tosa_cli.model.families import Backbone, eligible_layers
from tosa_cli.model.flops import count_flops
from tosa_cli.model.selection import num_kept

BEGINS = (0.0, 1 / 6, 1 / 3, 1 / 2)
"""Behind what share of the layers that choose a schedule may begin."""

END = 5 / 6
"""Up to what share of the layers that choose a schedule goes, where as much can be saved so."""

LEAST_MERGED = 0.115
"""What share of the tokens the layers that merge take off on average, where fewer of them can save as much."""

LEAST_KEPT = 0.1
"""No layer computes a smaller share of the tokens."""

REGISTER = 16
"""How many numbers a vector register of a CPU holds, and rows a tile of AMX: what is left over takes nearly as long.

With AVX-512 PyTorch's attention of 191 tokens took a third longer than that of 192.
"""

LEAST_REGISTERS = 8
"""With fewer registers of tokens a layer computes the number that is shared out to it, whatever it is."""


class Schedules:
    """Which layers merge, and the keep rates that save enough with them.

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
        self.prefix = backbone.num_prefix_tokens
        self.tokens = int(backbone.patch_embed.num_patches) + self.prefix
        self.least = max(self.prefix + 1, round(LEAST_KEPT * self.tokens))
        self.step = REGISTER if self.tokens >= LEAST_REGISTERS * REGISTER else 1
        self.half = max(1, self.step // 2)
        config = method.at(layers, 1.0)
        self.choosing = tuple(layer for layer, first in config.choosing_layers.items() if layer == first)
        self.last = self.choosing[round(END * len(self.choosing)) - 1]
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
        return self.reduction(self._rates(self._shared_out(self._rows(self.choosing), self.tokens)))

    def able(self, target_reduction: float) -> dict[tuple[int, ...], dict[int, float]]:
        """The layers that merge by each schedule that can save so much, the earliest first, and their keep rates."""
        begins = dict.fromkeys(round(share * len(self.choosing)) for share in BEGINS)
        found = [self._fewest(self.choosing[begin:], target_reduction) for begin in begins]
        return {merging: rates for merging, rates in found if self.saves(rates, target_reduction)}

    def _fewest(self, merging: tuple[int, ...], target_reduction: float) -> tuple[tuple[int, ...], dict[int, float]]:
        """The first of some layers, as few as `END` and `LEAST_MERGED` ask for, and their keep rates."""
        rates = self.keep_rates(merging, target_reduction)
        while len(merging) > 1 and (merging[-1] > self.last or self._merges_little(rates)):
            fewer = self.keep_rates(merging[:-1], target_reduction)
            if not self.saves(fewer, target_reduction):
                break
            merging, rates = merging[:-1], fewer
        return merging, rates

    def _merges_little(self, keep_rates: dict[int, float]) -> bool:
        """Whether the layers that merge take off less than `LEAST_MERGED` each."""
        falls = [keep_rates.get(layer - 1, 1.0) - rate for layer, rate in keep_rates.items()]
        return sum(falls) < LEAST_MERGED * sum(fall > 0 for fall in falls)

    def keep_rates(self, merging: Sequence[int], target_reduction: float) -> dict[int, float]:
        """The keep rates with which these layers save just that share of the dense MACs, or a little more.

        Where that is out of reach they save as much as these layers can.
        """
        rows = self._rows(merging)
        low, high = 0.0, float(self.tokens)
        for _ in range(40):
            middle = (low + high) / 2
            enough = self.saves(self._rates(self._shared_out(rows, middle)), target_reduction)
            low, high = (low, middle) if enough else (middle, high)
        return self._rates(self._in_registers(rows, self._shared_out(rows, high), target_reduction))

    def saves(self, keep_rates: dict[int, float], target_reduction: float) -> bool:
        """Whether keep rates save that share of the dense MACs."""
        return self.reduction(keep_rates) >= target_reduction

    def _rows(self, merging: Sequence[int]) -> list[list[int]]:
        """The layers, in rows of those that compute as many tokens as the first of them, which merges."""
        rows, before = list[list[int]](), 0
        for layer in self.layers:
            if layer in merging:
                rows.append([layer])
            elif rows and layer - 1 == before:
                rows[-1].append(layer)
            else:  # behind a standard layer every token is there again
                continue
            before = layer
        return rows

    def _shared_out(self, rows: list[list[int]], merged: float) -> dict[int, float]:
        """How many tokens each layer computes where the first of each row merges so many: no whole numbers."""
        counts = dict.fromkeys(self.layers, float(self.tokens))
        for row in rows:
            counts |= dict.fromkeys(row, max(self.least, self._entering(counts, row) - merged))
        return counts

    def _in_registers(
        self, rows: list[list[int]], shares: dict[int, float], target_reduction: float
    ) -> dict[int, float]:
        """Whole registers of tokens that save enough, as near to shares as can be.

        Rows that are furthest below their share get registers first. Then one row, the last that can, as a token costs
        least there, may compute a part of one besides: half of it or more, as it takes nearly as long as a whole one.
        """
        counts = {
            layer: share if share == self.tokens else max(self.least, share // self.step * self.step)
            for layer, share in shares.items()
        }

        def computing(row: list[int], count: float) -> dict[int, float]:
            return counts | dict.fromkeys(row, count)

        def can_compute(row: list[int], count: float) -> bool:
            still_merges = self._entering(counts, row) - count >= self.half
            return still_merges and self.saves(self._rates(computing(row, count)), target_reduction)

        def one_more(row: list[int]) -> float:
            return (counts[row[0]] // self.step + 1) * self.step

        while able := [row for row in rows if can_compute(row, one_more(row))]:
            row = max(able, key=lambda row: shares[row[0]] - counts[row[0]])
            counts = computing(row, one_more(row))
        for row in reversed(rows):
            least, most = one_more(row) - self.half, one_more(row) - 1
            if least > counts[row[0]] and can_compute(row, least):
                return computing(row, largest(round(least), round(most), partial(can_compute, row)))
        return counts

    def _entering(self, counts: dict[int, float], row: list[int]) -> float:
        """How many tokens enter the first layer of a row: all of them behind a standard layer."""
        return counts.get(row[0] - 1, self.tokens)

    def _rates(self, counts: dict[int, float]) -> dict[int, float]:
        """The keep rates with which layers compute so many tokens."""
        return {layer: round(round(count) / self.tokens, 5) for layer, count in counts.items()}

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
