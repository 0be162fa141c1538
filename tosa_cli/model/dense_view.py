"""The dense model inside of a converted one: of the source's class, on the converted model's modules and parameters."""

import functools
import weakref
from typing import Any, ClassVar

from torch import nn

OWN = frozenset(vars(nn.Module())) | {"_whole", "_dense", "_model_args"}
"""Traits that are a module's own: hooks and tables, which every module has, and what tells who belongs to whom."""


def share(source: Any, target: Any, without: tuple[str, ...] = ()) -> None:
    """Give a module the weights, the modules and the traits of another, but not its hooks.

    Both have one table of parameters, so that one that is put in the place of another is so for both.

    Args:
        source: The module that has them.
        target: The other one.
        without: Names of modules that are left out.
    """
    for name, value in vars(source).items():
        # What stands before a method of its class is a wrapped form of it, for that module alone.
        if name not in OWN and not callable(getattr(type(target), name, None)):
            vars(target)[name] = value
    for name in (*source._modules, *source._parameters, *source._buffers):
        vars(target).pop(name, None)  # what was nothing before
    if "_model_args" in vars(source):
        vars(target)["_model_args"] = vars(source)["_model_args"]
    target._parameters, target._buffers = source._parameters, source._buffers
    target._non_persistent_buffers_set = source._non_persistent_buffers_set
    dict.clear(target._modules)
    dict.update(target._modules, {name: part for name, part in source._modules.items() if name not in without})
    target.training = source.training


class _Modules(dict[str, nn.Module | None]):
    """A table of modules: what is written to it is written to that of the whole model too."""

    def __init__(self, whole: "weakref.ref[nn.Module]") -> None:
        super().__init__()
        self.whole = whole

    def __setitem__(self, name: str, module: nn.Module | None) -> None:
        super().__setitem__(name, module)
        if (whole := self.whole()) is not None:
            whole._modules[name] = module

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        if (whole := self.whole()) is not None:
            whole._modules.pop(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class DenseView(nn.Module):
    """What `model.backbone` is: a class is made of this one and of the source's.

    What is set here, a module or a trait such as `num_classes`, is set on the whole model, as long as there is one. A
    copy of it is a model of the source's class for itself.

    Attributes:
        view_of: The source's class.
    """

    view_of: ClassVar[type[nn.Module]]

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name != "_whole"}
        return self.view_of.__new__, (self.view_of,), state

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        whole = whole_of(self)
        if whole is not None and name not in OWN and not callable(getattr(type(whole), name, None)):
            setattr(whole, name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        whole = whole_of(self)
        if whole is not None and name not in OWN and hasattr(whole, name):
            delattr(whole, name)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image size of the whole model, as timm does; see `TimmInterface.set_input_size`."""
        self._run("set_input_size", *args, **kwargs)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Drop the last layers of the whole model, with what was added for them, as timm does."""
        kept: list[int] = self._run("prune_intermediate_layers", *args, **kwargs)
        return kept

    def _run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        whole = whole_of(self)
        if whole is None:
            return getattr(super(), method)(*args, **kwargs)
        result = getattr(whole, method)(*args, **kwargs)
        view_of(whole, whole.added)
        return result


def whole_of(dense: nn.Module) -> Any:
    """The whole model that a dense one belongs to; None if it is gone."""
    whole = vars(dense).get("_whole")
    return None if whole is None else whole()


def view_of(whole: Any, without: tuple[str, ...]) -> Any:
    """The dense model of a converted one, as it is now: the same object each time.

    Args:
        whole: The converted model.
        without: Names of the modules that the source does not have.
    """
    dense = vars(whole).get("_dense")
    if dense is None:
        kind = _view_class(whole.made_of[1])
        dense = kind.__new__(kind)
        nn.Module.__init__(dense)
        vars(dense)["_whole"] = weakref.ref(whole)
        vars(dense)["_modules"] = _Modules(vars(dense)["_whole"])
        vars(whole)["_dense"] = dense
    share(whole, dense, without)
    return dense


@functools.cache
def _view_class(source: type[nn.Module]) -> type[nn.Module]:
    return type(source.__name__, (DenseView, source), {"__module__": source.__module__, "view_of": source})
