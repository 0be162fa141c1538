"""Runs a whole model on an image, and draws what its encoder computed and what came out beside every token computed."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tosa_cli.draw.outputs import compare_one
from tosa_cli.draw.picture import Picture
from tosa_cli.draw.selection_figure import draw_selection, require_matplotlib
from tosa_cli.draw.selection_maps import SelectionMap, check_layers, kept_map
from tosa_cli.measure.agreement import compare_outputs
from tosa_cli.model.runs import Run, converted_runs, dense
from tosa_cli.model.runs.calls import call_on
from tosa_cli.model.stream import Stream

NO_SCORES = "which patches each layer computes; all of them are there at the end"


@torch.no_grad()
def make_whole_picture(
    model: nn.Module,
    images: Tensor,
    pixels: Tensor,
    *,
    layers: Iterable[int] | None = None,
    labels: Mapping[int, str] | None = None,
    title: str = "",
) -> Picture:
    """Run a model on an image, once as converted and once with every token computed, and draw both.

    Args:
        model: The converted model, or the part of it that takes images, in evaluation mode.
        images: One prepared image (1, C, height, width).
        pixels: The same to look at, (height, width, 3) in 0..1.
        layers: ToSA layers to draw; None draws all.
        labels: Names of classes.
        title: Line above the picture.

    Raises:
        ConfigError: If one of the layers is not a ToSA layer.
        InputError: If matplotlib is not installed.
    """
    require_matplotlib()
    run = converted_run(model)
    check_layers(run, layers or ())
    maps: list[SelectionMap] = []

    def watch(layer: int, stream: Stream) -> None:
        if stream.choice is None or (layers is not None and layer not in layers):
            return
        rows, columns = stream.places.grid
        length = rows * columns + run.num_prefix_tokens
        kept = kept_map(stream.choice.keep_indices, length, run.num_prefix_tokens).unflatten(0, (rows, columns)).cpu()
        maps.append(SelectionMap(layer, run.keep_rates[layer], kept, None))

    layers = None if layers is None else set(layers)
    run.watchers.append(watch)
    try:
        converted = call_on(model, images).outputs_or_why()
    finally:
        run.watchers.remove(watch)
    with dense(model):
        expected = call_on(model, images).outputs_or_why()
    output = compare_one(expected, converted, labels)
    png = draw_selection(pixels, maps, predicted=output, title=title, footer=NO_SCORES)
    return Picture(png, maps, None, outputs=compare_outputs(None, model, [images]).outputs)


def converted_run(model: nn.Module) -> Run:
    """The first run of a converted model."""
    run = converted_runs(model)[0].run
    assert run is not None
    return run
