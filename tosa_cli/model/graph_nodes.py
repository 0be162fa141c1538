"""Functions that are one node each in a graph that `torch.fx` traces, as they look at sizes, which a trace cannot."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.fx import Proxy

Called = TypeVar("Called", bound=Callable[..., Any])


def one_node(function: Called) -> Called:
    """Make a function one node of a graph that is traced; at any other time it is called as it is.

    Modules among its arguments are those of the graph, so that what is made of it has their weights. Its arguments are
    given by position.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        tracer = next((value.tracer for value in args if isinstance(value, Proxy)), None)
        if tracer is None:
            return function(*args)
        given = tuple(_in_graph(value, tracer) if isinstance(value, nn.Module) else value for value in args)
        return tracer.create_proxy("call_function", call, given, {})

    return call  # type: ignore[return-value]


def _in_graph(module: nn.Module, tracer: Any) -> Proxy:
    node: Proxy = tracer.create_proxy("get_attr", tracer.path_of_module(module), (), {})
    return node
