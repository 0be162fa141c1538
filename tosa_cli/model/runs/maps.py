"""The attention maps of the dense model, which a trained selector learns to predict, by the model's own loop."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from tosa_cli.errors import ConfigError
from tosa_cli.model.runs.calls import Call
from tosa_cli.model.runs.run import MapReading, ReachedError, Run

NO_IMAGE = "The batch sends no image through the encoder: pass what the model is called with."


@torch.no_grad()
def dense_logits(call: Call, runs: Sequence[Run], query_rows: int | str | None = None) -> list[dict[int, Tensor]]:
    """Attention logits of the source model, in which every token is computed; what comes behind a lone run is not run.

    Args:
        call: A call of the converted model.
        runs: Its runs.
        query_rows: Number of query rows M, or `"all"`; None takes the config's.

    Returns:
        Of each run, scaled logits (B, H, M, N) of its `map_layers`.

    Raises:
        ConfigError: If the call sends no image through one of the runs.
        DataError: If the model does not take it.
        UnsupportedModelError: If a block does not use PyTorch's fused attention function.
    """
    readings = [MapReading(run.map_layers, query_rows, ends_pass=len(runs) == 1) for run in runs]
    for run, reading in zip(runs, readings, strict=True):
        run.reading = reading
    try:
        with suppress(ReachedError):
            call.outputs_or_why()
    finally:
        for run in runs:
            run.reading = None
    if any(reading.logits.keys() != reading.layers for reading in readings):
        raise ConfigError(NO_IMAGE)
    return [reading.logits for reading in readings]
