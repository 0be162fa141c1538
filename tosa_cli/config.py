"""What a conversion does: by what method, in which places. Long, as each setting has its help here; no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tosa_cli.errors import ConfigError
from tosa_cli.methods import BYPASSES, SELECTORS, Bypass, Selection, Selector, describe
from tosa_cli.settings import Setting, Settings

ARCHITECTURE = "tosa_vit"
"""Name of converted models in timm's registry."""

SETTINGS_KEY = "tosa_config"
"""Key of a transformers config under which the settings of a conversion are, in the part that is of the encoder."""


def read_layers(value: Any) -> tuple[int, ...]:
    """Read a list of layers.

    Raises:
        ValueError: If it is none.
        ConfigError: Naming the first element that cannot be a layer, or that does not fit those before it.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError
    layers = tuple(value)
    if not layers:
        raise ConfigError("No ToSA layer was given: name at least one, as in --layers 2,4,6.")
    for layer in layers:
        if not is_int(layer) or layer < 1:
            raise ConfigError(f"Layer {layer!r} was given, but layers are whole numbers from 1 up.")
    if len(set(layers)) != len(layers):
        double = next(layer for layer in layers if layers.count(layer) > 1)
        raise ConfigError(f"Layer {double} was given twice: name each ToSA layer once.")
    if list(layers) != sorted(layers):
        raise ConfigError(f"Layers must be in rising order, not {','.join(map(str, layers))}.")
    return layers


def read_keep_rate(value: Any) -> float | tuple[float, ...]:
    """Read one keep rate or a list of them; `Places` checks each, as it knows its layer.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(value, (int, float)):
        return value
    raise ValueError


@dataclass(frozen=True, kw_only=True)
class Places(Settings):
    """Where tokens are selected, and how many.

    Raises:
        ConfigError: If a value is out of range, or layers and keep rates do not fit each other.
    """

    layers: Annotated[
        tuple[int, ...],
        Setting(
            "ToSA layers, numbered from 1 as in the paper.",
            expected="a list of layer numbers such as [2, 4, 6]",
            read=read_layers,
        ),
    ]
    keep_rate: Annotated[
        float | tuple[float, ...],
        Setting(
            "Share of tokens that are computed (the paper's attention ratio r): one number, or one a layer.",
            expected="a number or a list of numbers",
            read=read_keep_rate,
        ),
    ] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != len(self.layers):
            raise ConfigError(
                f"{len(self.keep_rate)} keep rates were given for {len(self.layers)} ToSA layers: "
                f"give one for all, or one a layer."
            )
        for layer, rate in self.keep_rates.items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
                raise ConfigError(f"The keep rate of layer {layer} is {rate!r}, but must be above 0 and at most 1.")

    @property
    def keep_rates(self) -> dict[int, float]:
        """Keep rate of each ToSA layer."""
        rates = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,) * len(self.layers)
        return dict(zip(self.layers, rates, strict=True))

    def check_depth(self, depth: int) -> None:
        """Check that a model of `depth` layers has every ToSA layer.

        Raises:
            ConfigError: Naming the first layer that the model does not have.
        """
        for layer in self.layers:
            if layer > depth:
                raise ConfigError(
                    f"Layer {layer} was asked for, but the model has layers 1 to {depth}: choose among these."
                )


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """By what tokens are selected, and what becomes of the others.

    Raises:
        ConfigError: If a value is out of range, or settings do not go with each other.
    """

    selector: Annotated[
        Selector,
        Setting(f"What ranks the tokens. {describe(SELECTORS)}"),
    ] = "attention"
    query_rows: Annotated[
        int | Literal["all"],
        Setting(
            "How many evenly spread query rows the selector reads; all is the paper.",
            ge=1,
            expected="'all' or a number from 1 up",
        ),
    ] = 16
    selection: Annotated[
        Selection,
        Setting(
            "shared selects one set of tokens a layer, and a skipped token bypasses the whole layer; per-head selects "
            "a set for each head and skips attention alone (paper Eq. 4 read literally)."
        ),
    ] = "shared"
    bypass: Annotated[
        Bypass,
        Setting(f"What a skipped token becomes. {describe(BYPASSES)}"),
    ] = "identity"
    neighbors: Annotated[
        int, Setting("How many kept tokens a skipped one takes its update from, with a nearest bypass.", ge=1)
    ] = 4
    span: Annotated[
        int,
        Setting(
            "How many ToSA layers in a row share one choice of tokens, made at the first of them. More than one needs "
            "a selector that reads no maps, and one keep rate for those that share.",
            ge=1,
        ),
    ] = 1
    selector_kernel: Annotated[
        int,
        Setting(
            "Kernel size of the selector's convolutions along the keys; odd.",
            ge=1,
            expected="odd and positive (1, 3, 5, ...)",
        ),
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selector_kernel % 2 == 0:
            raise ConfigError(f"selector_kernel must be odd and positive (1, 3, 5, ...), not {self.selector_kernel!r}.")
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
        if SELECTORS[self.selector].groups_tokens != BYPASSES[self.bypass].groups_tokens:
            selectors, bypasses = (
                " or ".join(repr(name) for name, facts in table.items() if facts.groups_tokens)
                for table in (SELECTORS, BYPASSES)
            )
            raise ConfigError(
                f"The selector {self.selector!r} does not go with the bypass {self.bypass!r}: a layer that computes "
                f"groups of tokens has the selector {selectors} and the bypass {bypasses}. Pass both, or none."
            )
        if self.span > 1 and self.reads_maps:
            raise ConfigError(
                f"The selector {self.selector!r} chooses anew in each ToSA layer, so no layers share a choice: leave "
                f"out --span, or use --selector similarity."
            )

    def at(self, layers: Iterable[int], keep_rate: float | Iterable[float]) -> "TosaConfig":
        """The conversion of these layers by this method.

        Raises:
            ConfigError: If layers or keep rates are out of range, or do not go with the method.
        """
        rate = keep_rate if isinstance(keep_rate, (int, float)) else tuple(keep_rate)
        method = {name: getattr(self, name) for name in Method.field_names()}
        return TosaConfig(layers=tuple(layers), keep_rate=rate, **method)

    @property
    def reads_maps(self) -> bool:
        """Whether the selector reads the attention logits of a feeding layer."""
        return SELECTORS[self.selector].reads_maps

    @property
    def matches_tokens(self) -> bool:
        """Whether skipped tokens are matched with kept ones."""
        return BYPASSES[self.bypass].matches_tokens

    @property
    def groups_tokens(self) -> bool:
        """Whether tokens are put into groups, which only grow from one ToSA layer to the next."""
        return BYPASSES[self.bypass].groups_tokens

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

    def check_measurable(self) -> None:
        """Check that what a layer can spare can be measured by this method before anything is trained.

        Raises:
            ConfigError: If the selector says nothing before it is trained.
        """
        if SELECTORS[self.selector].is_trained:
            raise ConfigError(
                f"The selector {self.selector!r} says nothing before it is trained, so what each layer can spare "
                f"cannot be measured with it: use --selector similarity, or name the layers as in --layers 2,4,6,8,10."
            )

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


@dataclass(frozen=True, kw_only=True)
class TosaConfig(Method, Places):
    """Settings of a conversion: where tokens are selected, how many, and by what.

    Raises:
        ConfigError: If a value is out of range, or settings do not go with each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads_maps:
            self._check_feeding_layers()
        rates = self.keep_rates
        if self.groups_tokens:
            self._check_groups_grow(rates)
        for layer, first in self.choosing_layers.items():
            if rates[layer] != rates[first]:
                raise ConfigError(
                    f"Layers {first} and {layer} share one choice of tokens (span {self.span}), so they need one keep "
                    f"rate, not {rates[first]} and {rates[layer]}."
                )

    @property
    def method(self) -> Method:
        """By what tokens are selected, without the places."""
        return Method(**{name: getattr(self, name) for name in Method.field_names()})

    @property
    def choosing_layers(self) -> dict[int, int]:
        """Of each ToSA layer, the layer whose choice of tokens it uses: its own, or that of the first of its span."""
        choosing: dict[int, int] = {}
        for layer in self.layers:
            first = choosing.get(layer - 1, layer)
            choosing[layer] = first if layer - first < self.span else layer
        return choosing

    @property
    def feeding_layers(self) -> frozenset[int]:
        """Standard layers whose attention logits feed a selector."""
        return frozenset(layer - 1 for layer in self.layers) if self.reads_maps else frozenset()

    def _check_groups_grow(self, rates: dict[int, float]) -> None:
        for layer, rate in rates.items():
            if rate > rates.get(layer - 1, 1):
                raise ConfigError(
                    f"Layer {layer} has the keep rate {rate} after {rates[layer - 1]} in layer {layer - 1}, but groups "
                    f"of tokens only grow from one ToSA layer to the next: give it at most that, or leave out a layer."
                )

    def _check_feeding_layers(self) -> None:
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


def is_int(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


CALIBRATED = Method(selector="ward", bypass="mean", span=2)
"""The method of the preset `calibrated`."""
