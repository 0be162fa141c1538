"""A run of consecutive blocks that select tokens, inside a model that owns the loop over them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.errors import CheckpointError
from tosa_cli.model.families.transformers_vit import parameters
from tosa_cli.model.places import CallPlaces
from tosa_cli.model.selection import plain_shape
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layers import TosaLayers

FORMAT_VERSION = 1

Watcher = Callable[[int, Stream], None]
"""Told of each layer that was run on a stream, by its number."""


@dataclass(frozen=True)
class Patches:
    """The tokens of an image of the model's own size, by timm's names.

    Attributes:
        img_size: Image size (height, width) in pixels.
        grid_size: Patches (rows, columns).
        num_prefix_tokens: Tokens before those of the patches: class, distillation and register tokens.
        num_last_tokens: Tokens behind them, as those that stand for detected objects.
    """

    img_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_prefix_tokens: int
    num_last_tokens: int = 0

    @property
    def num_patches(self) -> int:
        """Number of patches."""
        return self.grid_size[0] * self.grid_size[1]

    def enter(self, tokens: Tensor) -> Tensor:
        """Put the tokens that come behind the patches before all others, of (B, N, D)."""
        last = self.num_last_tokens
        return torch.cat([tokens[:, -last:], tokens[:, :-last]], dim=1) if last else tokens

    def leave(self, tokens: Tensor) -> Tensor:
        """Undo `enter`."""
        last = self.num_last_tokens
        return torch.cat([tokens[:, last:], tokens[:, :last]], dim=1) if last else tokens

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "img_size": list(self.img_size),
            "grid_size": list(self.grid_size),
            "num_prefix_tokens": self.num_prefix_tokens,
            "num_last_tokens": self.num_last_tokens,
        }


class ReachedError(Exception):
    """A pass through a model has come to where it was to stop."""


@dataclass
class MapReading:
    """Attention logits of a run that are read while every token is computed.

    Attributes:
        layers: The layers whose logits are read.
        query_rows: Number of query rows M, or `"all"`; None takes the config's.
        ends_pass: Whether the pass through the model ends, by a `ReachedError`, once all are read.
        logits: Scaled logits (B, H, M, N) of each of the layers that was run.
    """

    layers: frozenset[int]
    query_rows: int | str | None = None
    ends_pass: bool = True
    logits: dict[int, Tensor] = field(default_factory=dict)


class Run(TosaLayers, nn.Module):
    """What a run of blocks has beside them: selectors, keys and bypasses, and the tokens on their way.

    It is a child of the model under the name `tosa`; the blocks are not its children, as the model has them already.
    A stream lives from the first layer of a row of ToSA layers to the last, one for each thread.

    Args:
        blocks: The blocks, in their order.
        config: Where and how tokens are selected.
        patches: The tokens of an image.
        embed_dim: Width D of the tokens.

    Attributes:
        enabled: Whether tokens are selected; else every block is called as the model calls it.
        watchers: Who is told of each ToSA layer that was run.
        reading: Logits that are to be read; then every token is computed.
    """

    format_version: Tensor

    def __init__(self, blocks: Sequence[nn.Module], config: TosaConfig, patches: Patches, embed_dim: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.config = config
        self.patch_embed = patches
        self.embed_dim = embed_dim
        self.num_prefix_tokens = patches.num_prefix_tokens + patches.num_last_tokens
        self.keep_rates = config.keep_rates
        self.choosing_layers = config.choosing_layers
        self.enabled = True
        self.watchers: list[Watcher] = []
        self.reading: MapReading | None = None
        self._streams: dict[int, tuple[Stream, Tensor]] = {}
        self._grids: dict[int, tuple[int, int]] = {}
        self.add_parts(self)
        # Who loads the weights without this package is told of a name that is not known, and not given a dense model
        # without a word.
        self.register_buffer("format_version", torch.tensor(FORMAT_VERSION, dtype=torch.int64))

    def to_dict(self) -> dict[str, Any]:
        """All that is needed to make the run anew, as plain JSON values."""
        return {"format_version": FORMAT_VERSION, **self.config.to_dict(), **self.patch_embed.to_dict()}

    @staticmethod
    def read(settings: Mapping[str, Any]) -> tuple[TosaConfig, Patches]:
        """Read what `to_dict` made.

        Raises:
            CheckpointError: If it is of a later format, or something is missing or of another type.
            ConfigError: If a setting is wrong.
        """
        if not isinstance(settings, Mapping):
            raise CheckpointError(f"The ToSA settings of the model should be an object, not {settings!r}.")
        values = dict(settings)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"The ToSA settings of the model are of format {version}, but this version of tosa-cli reads "
                f"{FORMAT_VERSION}: update tosa-cli."
            )
        read = {}
        for key, takes in (
            ("img_size", _is_pair),
            ("grid_size", _is_pair),
            ("num_prefix_tokens", _is_count),
            ("num_last_tokens", _is_count),
        ):
            if key not in values:
                raise CheckpointError(f"The ToSA settings of the model have no {key!r}: convert its source anew.")
            read[key] = values.pop(key)
            if not takes(read[key]):
                what = "two whole numbers from 1 up" if takes is _is_pair else "a whole number from 0 up"
                raise CheckpointError(f"{key} in the ToSA settings of the model should be {what}, not {read[key]!r}.")
        sizes = tuple(read["img_size"]), tuple(read["grid_size"])
        patches = Patches(*sizes, read["num_prefix_tokens"], read["num_last_tokens"])
        return TosaConfig.from_dict(values), patches

    @property
    def class_token(self) -> int | None:
        """Place of the class token among the tokens that a layer is given; None where none comes before the patches."""
        return self.patch_embed.num_last_tokens if self.patch_embed.num_prefix_tokens else None

    # ------------------------------------------------------------------ forward

    def forward_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer as the model calls its block.

        Args:
            layer: Its number, from 1.
            args: What the block is called with: all tokens (B, N, D) first.
            kwargs: Likewise, by name.

        Returns:
            All tokens (B, N, D), in their order.
        """
        block, thread = self.blocks[layer - 1], _thread()
        if self.reading is not None and layer in self.reading.layers:
            return self._read_layer(layer, *named_call(block, args, kwargs), self.reading)
        if self.reading is not None or not self.enabled or not self._takes_part(layer):
            self._streams.pop(thread, None)
            return block(*args, **kwargs)
        tokens, extras = named_call(block, args, kwargs)
        stream = self._stream(layer, tokens, thread)
        stream.places = CallPlaces(self.grid_of(tokens), given=extras)
        self.step(layer, stream)
        for watcher in self.watchers:
            watcher(layer, stream)
        shown = self.leave(stream.tokens)
        if layer + 1 in self.keep_rates:
            self._streams[thread] = stream, shown
        else:
            self._streams.pop(thread, None)
        return shown

    def _read_layer(self, layer: int, tokens: Tensor, extras: dict[str, Any], reading: MapReading) -> Tensor:
        """Run a layer on all tokens (B, N, D), and read its logits as a selector does: in the order of `enter`."""
        stream = Stream(self.enter(tokens), CallPlaces(self.grid_of(tokens), given=extras), layer - 1)
        self.run_standard_layer(layer, stream, lambda logits: logits, reading.query_rows)
        assert stream.scores is not None
        reading.logits[layer] = stream.scores
        if reading.ends_pass and reading.logits.keys() == reading.layers:
            raise ReachedError
        return self.leave(stream.tokens)

    def _takes_part(self, layer: int) -> bool:
        return layer in self.keep_rates or self.is_read(layer)

    def _stream(self, layer: int, tokens: Tensor, thread: int) -> Stream:
        """The stream that comes from the layer before, or a new one."""
        stream, shown = self._streams.pop(thread, (None, None))
        if stream is None or stream.layer != layer - 1 or not self._takes_part(layer - 1):
            return Stream(self.enter(tokens), CallPlaces((0, 0)), layer - 1)
        if shown is not tokens:
            # The model did something to them between its layers.
            stream.replace(self.enter(tokens))
        return stream

    def enter(self, tokens: Tensor) -> Tensor:
        """Put the tokens that come behind the patches before all others."""
        return self.patch_embed.enter(tokens)

    def leave(self, tokens: Tensor) -> Tensor:
        """Undo `enter`."""
        return self.patch_embed.leave(tokens)

    # ------------------------------------------------------------------ places

    def see_patches(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """As a hook of what embeds the patches: note their grid, by its output (B, D, rows, columns)."""
        rows, columns = plain_shape(output)[-2:]
        self._grids[_thread()] = rows, columns

    def grid_of(self, tokens: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of the images that tokens (B, N, D) are of, whose patches were made last."""
        count = plain_shape(tokens)[1] - self.num_prefix_tokens
        grid = self._grids.get(_thread(), self.patch_embed.grid_size)
        return grid if grid[0] * grid[1] == count else (1, count)


def named_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The tokens that a block is called with, and what it is given beside them, by name."""
    names = parameters(type(block))
    extras = dict(zip(names, args, strict=False)) | kwargs
    return extras.pop(names[0]), extras


def _thread() -> int:
    """What tells threads apart; a compiled graph is of one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_count(part, 1) for part in value)
