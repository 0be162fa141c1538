"""timm's models as they would be built: on the meta device, where tensors have shapes and no values."""

from collections.abc import Callable, Mapping
from typing import Any

import timm
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLS = frozenset(
    {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_, Tensor.zero_}
)
"""What a model's initialisation does to tensors in place."""


def create_on_meta(name: str, args: Mapping[str, Any]) -> Any:
    """Build one of timm's models on the meta device.

    Args:
        name: timm's name of it.
        args: For timm's `create_model`.

    Raises:
        Exception: Whatever timm raises.
    """
    with _NothingIsFilled():
        return timm.create_model(name, device="meta", **args)


class _NothingIsFilled(TorchFunctionMode):
    """Leaves out the initialisation of tensors without values: PyTorch works out each step of it, in Python."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
