"""What stands in the place of a block: it has the block's name, weights and type, and hands its calls to the run."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from tosa_cli.model.runs.run import Run

_FORWARDED = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
"""What others set on a block, and the block itself reads."""


class TosaBlock(nn.Module):
    """Stands in the place of a block of a run, for the model's loop and for whoever looks at the model.

    The block itself is called by the run, on the tokens that its layer computes, and is not changed: it is no child of
    this module, which has the block's own tables of parameters and children, so that each is there once and under the
    source's name. Its class is also the block's, so that what transformers hooks on to blocks of a type is hooked here,
    where all tokens come out.

    Args:
        block: The block.
        run: The run that it is of.
        layer: Its number in the run, from 1.
    """

    block: nn.Module
    run: "Run"
    layer: int

    def __init__(self, block: nn.Module, run: "Run", layer: int) -> None:
        super().__init__()
        vars(self).update(block=block, run=run, layer=layer)
        self._parameters, self._buffers, self._modules = block._parameters, block._buffers, block._modules
        self._non_persistent_buffers_set = block._non_persistent_buffers_set
        # Hooks are of whoever looks at all tokens.
        _swap_hooks(self, block)
        self.__class__ = _joined(type(block))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block would return, for all tokens in their order."""
        return self.run.forward_layer(self.layer, args, kwargs)

    def restore(self) -> nn.Module:
        """The block, with the hooks that were added to this module since."""
        _swap_hooks(self, self.block)
        return self.block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "block" not in vars(self):
                raise
            return getattr(self.block, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A class that is made here cannot be looked up by its name.
        return _empty, (type(self.block),), vars(self)


def _forwarded(name: str) -> property:
    def read(self: Any) -> Any:
        return getattr(vars(self)["block"], name) if "block" in vars(self) else False

    def write(self: Any, value: Any) -> None:
        if "block" in vars(self):
            setattr(self.block, name, value)

    return property(read, write)


for _name in _FORWARDED:
    setattr(TosaBlock, _name, _forwarded(_name))


_JOINED: dict[type[nn.Module], Any] = {}


def _joined(source: type[nn.Module]) -> Any:
    """The class of what stands in the place of blocks of a class, under that class's name; the same each time."""
    if source in _JOINED:
        return _JOINED[source]
    joined: Any = type(source.__name__, (TosaBlock, source), {"__module__": source.__module__})
    # transformers wraps what subclasses compute, to compute it again in the backward pass; the block itself does so.
    joined.forward = TosaBlock.forward
    return _JOINED.setdefault(source, joined)


def _empty(source: type[nn.Module]) -> nn.Module:
    joined = _joined(source)
    return joined.__new__(joined)


def _swap_hooks(one: nn.Module, other: nn.Module) -> None:
    """Give each of two modules the hooks of the other; who holds a handle can still remove its hook."""
    for name in vars(nn.Module()):
        if "hook" in name:
            vars(one)[name], vars(other)[name] = vars(other)[name], vars(one)[name]
