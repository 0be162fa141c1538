"""A timm `Block` in two halves, attention and MLP: what reduces tokens between them is a peer to measure against."""

from typing import Any, NamedTuple

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families import Backbone, check_supported


class Attended(NamedTuple):
    """What the first half of a block leaves.

    Attributes:
        tokens: Tokens with the attention's output added, (B, N, D).
        queries: The queries that the block attended with, (B, H, N, head_dim).
        keys: The keys, (B, H, N, head_dim).
    """

    tokens: Tensor
    queries: Tensor
    keys: Tensor


class QueryKeyTap(TorchFunctionMode):
    """Reads the queries and keys that a block attends with, while it runs unchanged with fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.read: tuple[Tensor, Tensor] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.scaled_dot_product_attention:
            self.read = args[0], args[1]
        return func(*args, **(kwargs or {}))


def run_attention(block: Any, tokens: Tensor, attn_mask: Tensor | None = None) -> Attended:
    """Run the first half of a block on tokens (B, N, D), with what is added to its logits, (B, 1, 1, N).

    Raises:
        UnsupportedModelError: If the block does not use PyTorch's fused attention function.
    """
    tap = QueryKeyTap()
    with tap:
        attended = block.attn(block.norm1(tokens), attn_mask=attn_mask)
    if tap.read is None:
        raise UnsupportedModelError(
            "The model runs without PyTorch's fused attention, so its queries and keys cannot be read: "
            "unset TIMM_FUSED_ATTN."
        )
    return Attended(tokens + block.drop_path1(block.ls1(attended)), *tap.read)


def run_mlp(block: Any, tokens: Tensor) -> Tensor:
    """Run the second half of a block on tokens (B, N, D): tokens (B, N, D)."""
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def check_blocks(backbone: Backbone, action: str, method: str) -> None:
    """Check that a method knows how a model's blocks are put together.

    Args:
        backbone: A timm model.
        action: What is done to tokens, as `merged`.
        method: Its name, as `token merging`.

    Raises:
        UnsupportedModelError: Naming the type that is not supported.
    """
    check_supported(backbone)
    for layer, block in enumerate(backbone.blocks, start=1):
        if type(block) is not Block or type(block.attn) is not Attention:
            raise UnsupportedModelError(
                f"Layer {layer} is a {type(block).__name__}, which tokens cannot be {action} in: {method} knows "
                f"timm's Block with Attention only."
            )
