"""The tokens that enter a run of a whole model's blocks, by what the model is called with."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, suppress
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from tosa_cli.errors import ConfigError, DataError
from tosa_cli.fit.calibration import KeptTokens
from tosa_cli.model.places import CallPlaces, Places
from tosa_cli.model.runs import ImageRun, Run
from tosa_cli.model.runs.calls import call_on
from tosa_cli.model.runs.insert import dense
from tosa_cli.model.runs.maps import NO_IMAGE
from tosa_cli.model.runs.run import ReachedError, named_call
from tosa_cli.progress import Progress


class BatchTokens(KeptTokens):
    """The tokens that enter the run of a model, batch by batch; images may differ in size from batch to batch.

    Args:
        model: The model.
        found: Its run, which is converted.
        batches: What the model is called with; read as often as `read` is called.
        progress: Told about the advance.
    """

    model: Run

    def __init__(
        self, model: nn.Module, found: ImageRun, batches: Iterable[Any], progress: Progress | None = None
    ) -> None:
        run = found.run
        assert run is not None
        number = len(batches) if isinstance(batches, Sized) else 0
        # The model stays where it is; it is not a matter of several processes.
        super().__init__(Accelerator(cpu=next(model.parameters()).device.type == "cpu"), run, number, progress)
        self.whole, self.found, self.batches = model, found, batches
        self._places: dict[int, Places] = {}
        self._adds = True

    def read(self) -> Iterator[tuple[int, Tensor]]:
        """Run the model on each batch as far as layer 1."""
        self.num_images = 0
        for number, batch in enumerate(self.batches):
            tokens, extras = self._entering(batch)
            self.num_images += tokens.shape[0]
            grid = self.model.grid_of(tokens)
            before = self._between(batch) if self._adds else {}
            self._adds = bool(before)  # a model that adds nothing for one batch never does
            self.places = self._places[number] = CallPlaces(grid, given=extras, before=before)
            yield number, self.model.enter(tokens)
            self.progress.advance(tokens.shape[0], "")
        if not self.num_images:
            raise DataError("There is no batch to calibrate on: pass an iterable of what the model is called with.")
        self.num_batches = max(self.num_batches, len(self._places))

    def kept(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The batches that were kept, and where their tokens stand."""
        for number, values in super().kept():
            self.places = self._places[number]
            yield number, values

    def _between(self, batch: Any) -> dict[int, Tensor]:
        """What the model adds to its tokens before each layer that it adds something before, (1 or B, N, D)."""
        added: dict[int, Tensor] = {}
        came_out: dict[int, Tensor] = {}

        def go_in(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens, before = named_call(self.model.blocks[layer - 1], args, kwargs)[0], came_out.pop(layer - 1, None)
            if before is not None and before is not tokens:
                change = self.model.enter(tokens) - self.model.enter(before)
                if change.any():
                    added[layer] = change[:1] if change.allclose(change[:1], atol=1e-5) else change

        def come_out(layer: int, output: Any) -> None:
            came_out[layer] = output[0] if isinstance(output, tuple) else output
            if layer == len(self.found.layers):
                raise ReachedError

        with ExitStack() as hooks, dense(self.whole), suppress(ReachedError):
            for at, layer in enumerate(self.found.layers, start=1):
                enter = layer.register_forward_pre_hook(lambda _, *given, at=at: go_in(at, *given), with_kwargs=True)
                leave = layer.register_forward_hook(lambda _, args, output, at=at: come_out(at, output))
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
            call_on(self.whole, batch).outputs_or_why()
        return added

    def _entering(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """What the first block of the run is called with."""
        given: list[tuple[Tensor, dict[str, Any]]] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(named_call(self.model.blocks[0], args, kwargs))
            raise ReachedError

        handle = self.found.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with suppress(ReachedError):
                call_on(self.whole, batch).outputs_or_why()
        finally:
            handle.remove()
        if not given:
            raise ConfigError(NO_IMAGE)
        return given[0]
