"""What a conversion does, as one frozen and strict object. Imports no torch."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tosa_cli.errors import ConfigError
from tosa_cli.methods import BYPASSES, SELECTORS, Bypass, Selection, Selector

ARCHITECTURE = "tosa_vit"
"""Name of converted models in timm's registry."""


@dataclass(frozen=True, kw_only=True)
class TosaConfig:
    """Settings of a conversion: where tokens are selected, how many, and by what.

    Attributes:
        layers: ToSA layers, numbered from 1 as in the paper.
        keep_rate: Share of tokens that attend (the paper's attention ratio r): one number, or one a ToSA layer.
        selector: What ranks the tokens. `attention` is the trained selector of paper 2.2. `similarity` skips the
            tokens that have the nearest partner among the others, and needs no training. `probe` is a linear map of the
            incoming tokens that predicts how wrong the bypass is about a token. `previous` (the feeding layer's own
            map) and `random` are baselines.
        query_rows: How many evenly spread query rows the selector reads; `"all"` is the paper.
        selection: `shared` selects one set of tokens a layer, and a skipped token bypasses the whole layer;
            `per-head` selects a set for each head and skips attention alone (paper Eq. 4 read literally).
        bypass: What a skipped token becomes. `identity` (the paper) leaves it as it is; `linear` maps it; `nearest`
            gives it the update of the kept tokens that are most like it, `nearest+affine` and `nearest+linear` correct
            that update by the difference between it and them.
        neighbors: How many kept tokens a skipped one takes its update from, where the bypass is a `nearest` one.
        span: How many ToSA layers in a row share one choice of tokens, made at the first of them. More than one needs
            a selector that reads no maps, and one keep rate for those that share.
        selector_kernel: Kernel size of the selector's convolutions along the keys; odd.

    Raises:
        ConfigError: If a value is out of range, or the layers do not fit each other.
    """

    layers: tuple[int, ...]
    keep_rate: float | tuple[float, ...] = 0.8
    selector: Selector = "attention"
    query_rows: int | Literal["all"] = 16
    selection: Selection = "shared"
    bypass: Bypass = "identity"
    neighbors: int = 4
    span: int = 1
    selector_kernel: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.layers, (list, tuple)):
            raise ConfigError(f"layers must be a list of layer numbers such as [2, 4, 6], not {self.layers!r}.")
        if not isinstance(self.keep_rate, (int, float, list, tuple)):
            raise ConfigError(f"keep_rate must be a number or a list of numbers, not {self.keep_rate!r}.")
        object.__setattr__(self, "layers", tuple(self.layers))
        if not isinstance(self.keep_rate, (int, float)):
            object.__setattr__(self, "keep_rate", tuple(self.keep_rate))
        self._check_choices()
        self._check_layers()
        self._check_keep_rates()
        if self.query_rows != "all" and not (is_int(self.query_rows) and self.query_rows >= 1):
            raise ConfigError(f"query_rows must be 'all' or a number from 1 up, not {self.query_rows!r}.")
        if not (is_int(self.neighbors) and self.neighbors >= 1):
            raise ConfigError(f"neighbors must be a whole number from 1 up, not {self.neighbors!r}.")
        self._check_span()
        if not (is_int(self.selector_kernel) and self.selector_kernel >= 1 and self.selector_kernel % 2):
            raise ConfigError(f"selector_kernel must be odd and positive (1, 3, 5, ...), not {self.selector_kernel!r}.")

    @property
    def keep_rates(self) -> dict[int, float]:
        """Keep rate of each ToSA layer."""
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,) * len(self.layers)
        return dict(zip(self.layers, rates, strict=True))

    @property
    def choosing_layers(self) -> dict[int, int]:
        """Of each ToSA layer, the layer whose choice of tokens it uses: its own, or that of the first of its span."""
        choosing: dict[int, int] = {}
        for layer in self.layers:
            first = choosing.get(layer - 1, layer)
            choosing[layer] = first if layer - first < self.span else layer
        return choosing

    @property
    def reads_maps(self) -> bool:
        """Whether the selector reads the attention logits of a feeding layer."""
        return SELECTORS[self.selector].reads_maps

    @property
    def matches_tokens(self) -> bool:
        """Whether skipped tokens are matched with kept ones."""
        return BYPASSES[self.bypass].matches_tokens

    @property
    def needs_keys(self) -> bool:
        """Whether tokens are compared by keys."""
        return self.matches_tokens or SELECTORS[self.selector].compares_keys

    @property
    def is_fitted(self) -> bool:
        """Whether the bypass or the selector has parameters that are fitted in closed form."""
        return BYPASSES[self.bypass].is_fitted or SELECTORS[self.selector].is_fitted

    @property
    def needs_distill(self) -> bool:
        """Whether `tosa distill` has something to do: selectors to train, or something to fit."""
        return SELECTORS[self.selector].is_trained or self.is_fitted

    @property
    def unread(self) -> dict[str, str]:
        """Settings that selector and bypass do not read, and why."""
        found = {}
        if not self.matches_tokens:
            found["neighbors"] = f"the bypass {self.bypass!r} takes nothing from other tokens"
        if not self.reads_maps:
            found["query_rows"] = f"the selector {self.selector!r} reads no attention logits"
        if not SELECTORS[self.selector].is_trained:
            found["selector_kernel"] = f"the selector {self.selector!r} has no convolutions"
        return found

    @property
    def feeding_layers(self) -> frozenset[int]:
        """Standard layers whose attention logits feed a selector."""
        return frozenset(layer - 1 for layer in self.layers) if self.reads_maps else frozenset()

    def check_depth(self, depth: int) -> None:
        """Check that a model of `depth` layers has every ToSA layer.

        Raises:
            ConfigError: Naming the first layer that the model does not have.
        """
        for layer in self.layers:
            if layer > depth:
                raise ConfigError(f"Layer {layer} was asked for, but the model has {depth} layers (1 to {depth}).")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TosaConfig":
        """Read settings from JSON values, strictly.

        Raises:
            ConfigError: If a key is unknown or missing, or a value is wrong.
        """
        check_keys(values, cls.field_names(), "setting")
        if "layers" not in values:
            raise ConfigError("The setting 'layers' is missing: give the ToSA layers, as in layers: [2, 4, 6].")
        return cls(**values)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def _check_choices(self) -> None:
        for name, choices in (("selector", Selector), ("selection", Selection), ("bypass", Bypass)):
            value = getattr(self, name)
            if value not in get_args(choices):
                valid = ", ".join(get_args(choices))
                raise ConfigError(f"{name} must be one of: {valid}; not {value!r}.")
        if self.selection == "per-head" and not BYPASSES[self.bypass].per_head:
            raise ConfigError(
                f"Per-head selection skips a token in some heads only, so it has no bypass {self.bypass!r}: leave out "
                f"--bypass, or use --selection shared."
            )
        if self.selection == "per-head" and not SELECTORS[self.selector].per_head:
            others = ", ".join(sorted(name for name, facts in SELECTORS.items() if facts.per_head))
            raise ConfigError(
                f"The selector {self.selector!r} has one score a token, not one a head: use --selection shared, or one "
                f"of the selectors {others}."
            )

    def _check_layers(self) -> None:
        if not self.layers:
            raise ConfigError("No ToSA layer was given: name at least one, as in --layers 2,4,6.")
        for layer in self.layers:
            if not is_int(layer) or layer < 1:
                raise ConfigError(f"Layer {layer!r} was given, but layers are whole numbers from 1 up.")
        if len(set(self.layers)) != len(self.layers):
            double = next(layer for layer in self.layers if self.layers.count(layer) > 1)
            raise ConfigError(f"Layer {double} was given twice: name each ToSA layer once.")
        if list(self.layers) != sorted(self.layers):
            raise ConfigError(f"Layers must be in rising order, not {_join(self.layers)}.")
        if not self.reads_maps:
            return
        if self.layers[0] == 1:
            raise ConfigError(
                "Layer 1 cannot be a ToSA layer: its selector needs a standard layer before it. Start at layer 2."
            )
        for before, layer in zip(self.layers, self.layers[1:], strict=False):
            if layer == before + 1:
                raise ConfigError(
                    f"Layers {before} and {layer} are adjacent, but a ToSA layer needs a standard layer "
                    f"before it. Leave one of them out."
                )

    def _check_keep_rates(self) -> None:
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != len(self.layers):
            raise ConfigError(
                f"{len(self.keep_rate)} keep rates were given for {len(self.layers)} ToSA layers: "
                f"give one for all, or one a layer."
            )
        for layer, rate in self.keep_rates.items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
                raise ConfigError(f"The keep rate of layer {layer} is {rate!r}, but must be above 0 and at most 1.")

    def _check_span(self) -> None:
        if not (is_int(self.span) and self.span >= 1):
            raise ConfigError(f"span must be a whole number from 1 up, not {self.span!r}.")
        if self.span > 1 and self.reads_maps:
            raise ConfigError(
                f"The selector {self.selector!r} chooses anew in each ToSA layer, so no layers share a choice: leave "
                f"out --span, or use --selector similarity."
            )
        rates = self.keep_rates
        for layer, first in self.choosing_layers.items():
            if rates[layer] != rates[first]:
                raise ConfigError(
                    f"Layers {first} and {layer} share one choice of tokens (span {self.span}), so they need one keep "
                    f"rate, not {rates[first]} and {rates[layer]}."
                )


def check_keys(values: Mapping[str, Any], valid: Iterable[str], what: str) -> None:
    """Check that no key is unknown.

    Raises:
        ConfigError: Naming the first unknown key, the nearest valid one and all valid ones.
    """
    valid = sorted(valid)
    for key in values:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"Unknown {what} {key!r}.{hint} Valid: {', '.join(valid)}.")


def is_int(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _join(layers: Iterable[int]) -> str:
    return ",".join(map(str, layers))
