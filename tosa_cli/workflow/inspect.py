"""`inspect`: whether a model can be converted, in which layers, and what each setting would save."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from tosa_cli.config import Method, Selection, TosaConfig
from tosa_cli.data.description import Data
from tosa_cli.errors import ConfigError
from tosa_cli.fit.budget import ErrorCurve, allocate
from tosa_cli.hub.source import load_source
from tosa_cli.model.families import Backbone, eligible_layers, num_heads
from tosa_cli.model.flops import count_flops
from tosa_cli.model.flops_report import FlopsReport
from tosa_cli.progress import Listener, Nobody
from tosa_cli.workflow.rates import MeasuredLayers, measure_layers

KEEP_RATES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
TARGETS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Saving:
    """What a setting of the paper's selector would save.

    Attributes:
        layers: ToSA layers, numbered from 1.
        selection: How tokens are selected.
        keep_rate: Keep rate of all of them.
        reduction: Share of the MACs that is saved, selectors included.
    """

    layers: tuple[int, ...]
    selection: Selection
    keep_rate: float
    reduction: float

    def to_dict(self) -> dict[str, Any]:
        """The values as plain JSON."""
        return {
            "layers": list(self.layers),
            "selection": self.selection,
            "keep_rate": self.keep_rate,
            "reduction": self.reduction,
        }


@dataclass(frozen=True)
class InspectReport:
    """What can be converted of a model, and what that would save.

    Attributes:
        dense: Multiply-accumulates of the dense model.
        facts: What the model is, as JSON values.
        eligible: Layers, numbered from 1, that can be ToSA layers by a selector that reads no maps.
        savings: What settings would save, by layers, selection and keep rate.
        measured: What each layer can spare, where images were given.
        allocations: What would be chosen for each target reduction that can be reached, where that was measured.
    """

    dense: FlopsReport
    facts: Mapping[str, Any]
    eligible: tuple[int, ...]
    savings: Sequence[Saving]
    measured: MeasuredLayers = field(default_factory=MeasuredLayers)
    allocations: Mapping[float, TosaConfig] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        report = {**self.facts, "savings": [saving.to_dict() for saving in self.savings]}
        if self.measured.curves:
            report["curves"] = [curve.to_dict() for curve in self.measured.curves]
            report["allocations"] = [
                {"reduction": target, "layers": list(config.layers), "keep_rate": list(config.keep_rates.values())}
                for target, config in self.allocations.items()
            ]
        return report


def inspect(
    source: str,
    method: Method,
    *,
    img_size: int | tuple[int, int] | None = None,
    data_dir: str = "",
    max_samples: int | None = None,
    architecture: str | None = None,
    weights_key: str | None = None,
    listener: Listener | None = None,
) -> InspectReport:
    """Tell what can be converted of a model, and what each setting would save.

    Args:
        source: A timm name, Hub id, folder or weights file.
        method: By what tokens are selected where layers are measured.
        img_size: Image size in pixels, one number or (height, width); None keeps the source's.
        data_dir: Images on which to measure what each layer can spare; empty measures nothing.
        max_samples: Measure on so many of them; None takes 32.
        architecture: timm's name of the architecture of a weights file.
        weights_key: Which weights to take of a file that holds several.
        listener: Told what is done.

    Raises:
        TosaError: If the source cannot be found, read or converted, or the images cannot be read; the subclass and the
            message say which.
    """
    listener = listener or Nobody()
    if data_dir:
        method.check_measurable()
        if method.groups_tokens:
            raise ConfigError(
                f"With the selector {method.selector!r} no layer is measured alone, as groups go on from layer to "
                f"layer: use another --selector here, or let `tosa convert --layers auto` find keep rates."
            )
    loaded = load_source(
        source, pretrained=bool(data_dir), img_size=img_size, architecture=architecture, weights_key=weights_key
    )
    for note in loaded.notes:
        listener.say(note)
    model = loaded.model
    dense = count_flops(model, name=loaded.name)
    eligible, savings = eligible_layers(model), _savings(model)
    facts = {
        "model": loaded.name,
        "convertible": True,
        "architecture": type(model).__name__,
        "block": type(model.blocks[0]).__name__,
        "depth": len(model.blocks),
        "embed_dim": model.embed_dim,
        "num_heads": num_heads(model.blocks[eligible[0] - 1]),
        "num_prefix_tokens": model.num_prefix_tokens,
        "tokens": dense.layers[0].tokens,
        "img_size": list(dense.img_size),
        "num_classes": model.num_classes,
        "dense_gmacs": dense.gmacs,
        "params": dense.params,
    }
    if not data_dir:
        return InspectReport(dense, facts, eligible, savings)
    measured = measure_layers(model, method, Data(data_dir=data_dir, max_samples=max_samples), listener=listener)
    return InspectReport(dense, facts, eligible, savings, measured, _allocations(model, method, measured.curves))


def layer_choices(depth: int) -> list[tuple[int, ...]]:
    """ToSA layers to propose for a model of `depth` layers: every other one, and those of its second half.

    The first layer is never among them, as a selector that reads maps needs a layer before its own; so a model of one
    layer has no such choice.
    """
    every_other = tuple(range(2, depth, 2)) or tuple(range(2, depth + 1))
    second_half = tuple(range(depth // 2 // 2 * 2 + 2, depth, 2))
    return list(filter(None, dict.fromkeys((every_other, second_half))))


def _savings(model: Backbone) -> list[Saving]:
    selections: tuple[Selection, ...] = get_args(Selection)
    settings: dict[tuple[tuple[int, ...], Selection], None] = {}
    for proposed in layer_choices(len(model.blocks)):
        for selection in selections:
            eligible = eligible_layers(model, selection, reads_maps=True)
            layers = tuple(layer for layer in proposed if layer in eligible)
            if layers:
                settings[layers, selection] = None
    found = []
    for layers, selection in settings:
        for rate in KEEP_RATES:
            config = TosaConfig(layers=layers, keep_rate=rate, selection=selection)
            found.append(Saving(layers, selection, rate, count_flops(model, config).reduction))
    return found


def _allocations(model: Backbone, method: Method, curves: Sequence[ErrorCurve]) -> dict[float, TosaConfig]:
    found = {}
    for target in TARGETS:
        try:
            found[target] = allocate(model, method, curves, target)
        except ConfigError:
            break
    return found
