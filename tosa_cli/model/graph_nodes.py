"""Functions that are one node each in a graph that `torch.fx` traces, as they look at sizes, which a trace cannot."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

from timm.layers import get_notrace_functions
from torch import nn
from torch.fx import Proxy

Called = TypeVar("Called", bound=Callable[..., Any])


def one_node(function: Called) -> Called:
    """Make a function one node of a graph that is traced; at any other time it is called as it is.

    Modules among its arguments are those of the graph, so that what is made of it has their weights.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = next((value.tracer for value in (*args, *kwargs.values()) if isinstance(value, Proxy)), None)
        if tracer is None:
            return function(*args, **kwargs)
        given = tuple(_in_graph(value, tracer) if isinstance(value, nn.Module) else value for value in args)
        return tracer.create_proxy("call_function", call, given, kwargs)

    return call  # type: ignore[return-value]


def _in_graph(module: nn.Module, tracer: Any) -> Proxy:
    node: Proxy = tracer.create_proxy("get_attr", tracer.path_of_module(module), (), {})
    return node


@contextmanager
def timms_nodes(kinds: Iterable[type]) -> Iterator[None]:
    """While a graph is traced, make what timm does not want to be looked into one node each.

    Tracers that are told of these functions look for them where the model's class is written, and find ours there.

    Args:
        kinds: Classes of timm's models, in whose files they are called.
    """
    known = get_notrace_functions()
    with ExitStack() as stack:
        for file in {kind.__module__: vars(sys.modules[kind.__module__]) for kind in kinds}.values():
            nodes = {name: one_node(value) for name, value in file.items() if any(value is each for each in known)}
            stack.enter_context(patch.dict(file, nodes))
        yield
