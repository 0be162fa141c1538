"""Masks of attention that say nothing: transformers makes one of every place while a model is traced, and else none.

ONNX Runtime spends more on such a mask than on the attention: a traced model is written without it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tosa_cli.model.sdpa import ARGUMENTS

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
MASK = ARGUMENTS.index("attn_mask")
"""Which of the arguments of attention the mask is."""


class MaskedCalls(TorchFunctionMode):
    """Notes of each call of PyTorch's attention in its context whether it was given a mask.

    Attributes:
        masked: A flag a call, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masked: list[bool] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function as it would be called without this mode."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
            self.masked.append(given.get("attn_mask") is not None)
        return func(*args, **kwargs)


def drop_idle_masks(program: ExportedProgram, masked: list[bool]) -> None:
    """Take the masks out of a traced model that its calls of attention do not have when it simply runs.

    Args:
        program: The traced model, which is changed in place.
        masked: From `MaskedCalls`, of the model's pass over the same input. Where the traced model calls attention
            another number of times, it stays as it is.
    """
    calls = [node for node in program.graph.nodes if node.target is ATTENTION]
    if len(calls) != len(masked):
        return
    for node, has_mask in zip(calls, masked, strict=True):
        if has_mask:
            continue
        if len(node.args) > MASK:
            node.update_arg(MASK, None)
        elif "attn_mask" in node.kwargs:
            node.update_kwarg("attn_mask", None)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
