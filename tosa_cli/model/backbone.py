"""What the rest of the package knows of timm's models: which are supported, and how their parts are called.

This is the one list of supported model and block types. timm's modules are called as they are, never copied.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.selection import num_query_rows, take_query_rows

Backbone = Any
"""A timm ViT. timm's attributes are set in ways that type checkers cannot follow."""

SUPPORTED_MODELS: tuple[type[nn.Module], ...] = (VisionTransformer, VisionTransformerDistilled)
SUPPORTED_BLOCKS: tuple[type[nn.Module], ...] = (Block, ResPostBlock, ParallelScalingBlock)


def check_supported(model: Backbone, selection: str = "shared") -> None:
    """Check that a model can be converted. The types must match exactly: a subclass may compute something else.

    Args:
        model: A timm model.
        selection: `shared` or `per-head`; the latter needs blocks of type `Block`.

    Raises:
        UnsupportedModelError: Naming the type that is not supported, and what is.
    """
    if type(model) not in SUPPORTED_MODELS:
        raise UnsupportedModelError(
            f"{_architecture(model)} is a {type(model).__name__}, which cannot be converted: "
            f"tosa converts {_names(SUPPORTED_MODELS)}. Try `tosa convert deit_tiny`."
        )
    blocks = SUPPORTED_BLOCKS if selection == "shared" else (Block,)
    for layer, block in enumerate(model.blocks, start=1):
        if type(block) not in blocks:
            raise UnsupportedModelError(
                f"Layer {layer} of {_architecture(model)} is a {type(block).__name__}, which cannot be converted "
                f"with {selection} selection: supported are {_names(blocks)}."
            )
        attention = getattr(block, "attn", None)
        if attention is not None and type(attention) is not Attention:
            raise UnsupportedModelError(
                f"Layer {layer} of {_architecture(model)} has attention of type {type(attention).__name__}, which "
                f"cannot be converted: supported is Attention."
            )
        if selection == "per-head" and attention is not None and attention.gate is not None:
            raise UnsupportedModelError(
                f"Layer {layer} of {_architecture(model)} has gated attention, which per-head selection does not "
                f"support: use --selection shared."
            )


def is_supported(model: Backbone, selection: str) -> bool:
    """Whether a model can be converted with this selection."""
    try:
        check_supported(model, selection)
    except UnsupportedModelError:
        return False
    return True


def embed(model: Backbone, images: Tensor) -> Tensor:
    """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1."""
    tokens = model._pos_embed(model.patch_embed(images))
    return model.norm_pre(model.patch_drop(tokens))


def num_heads(block: Backbone) -> int:
    """Number of attention heads of a supported block."""
    attention: Any = getattr(block, "attn", block)
    return attention.num_heads


def attention_input(block: Backbone, tokens: Tensor) -> Tensor:
    """What the attention of a supported block reads of tokens (B, N, D): the tokens after the block's first norm.

    A block that normalises after its attention reads the tokens themselves.
    """
    if isinstance(block, ParallelScalingBlock):
        return block.in_norm(tokens)
    return tokens if isinstance(block, ResPostBlock) else block.norm1(tokens)


def mean_key_projection(block: Backbone) -> tuple[Tensor, Tensor]:
    """The projection to the mean over the heads of a block's attention keys.

    Returns:
        Weight (head_dim, D) and bias (head_dim), detached.
    """
    if isinstance(block, ParallelScalingBlock):
        heads, head_dim = block.num_heads, block.head_dim
        start = block.in_split[0] + heads * head_dim
        weight, bias = block.in_proj.weight, block.in_proj.bias
    else:
        heads, head_dim = block.attn.num_heads, block.attn.head_dim
        start = heads * head_dim
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    keys = slice(start, start + heads * head_dim)
    weight = weight[keys].unflatten(0, (heads, head_dim)).mean(0).detach().clone()
    if bias is None:
        return weight, weight.new_zeros(head_dim)
    return weight, bias[keys].unflatten(0, (heads, head_dim)).mean(0).detach().clone()


def key_dim(block: Backbone, embed_dim: int) -> int:
    """Width of the keys by which tokens of a block are compared: a head's, or less in a narrow model."""
    attention: Any = getattr(block, "attn", block)
    return min(attention.head_dim, max(1, embed_dim // 8))


def matching_projection(block: Backbone, embed_dim: int) -> tuple[Tensor, Tensor]:
    """The projection to the keys by which tokens of a block are compared.

    It is `mean_key_projection`, cut down to the `key_dim` directions in which that stretches tokens most.

    Returns:
        Weight (key_dim, D) and bias (key_dim), detached.
    """
    weight, bias = mean_key_projection(block)
    width = key_dim(block, embed_dim)
    if weight.is_meta or width == len(weight):
        return weight[:width], bias[:width]
    directions = torch.linalg.svd(weight.float(), full_matrices=False).U[:, :width].T.to(weight.dtype)
    return directions @ weight, directions @ bias


class AttentionTap(TorchFunctionMode):
    """Reads attention logits out of a block that runs unchanged.

    While the tap is open it sees each call of `scaled_dot_product_attention` and keeps its queries and keys: they
    are what the block attends with, after any normalisation or rotation. Fused attention stays on. Only where
    all query rows are asked for is the map computed in full, once, and used for the attention itself as well.

    It holds the state of one forward pass and lives no longer, works under `torch.compile` and `torch.export`
    without a graph break, and needs no knowledge of the block.

    Args:
        query_rows: Number of query rows M to read, or `"all"`.
        read: What is made of the scaled logits (B, H, M, N), detached. It is called as soon as they are there, so that
            they need not be kept while the rest of the block runs.
    """

    def __init__(self, query_rows: int | str, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.query_rows = query_rows
        self.read = read
        self.result: Tensor | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        scale = query.shape[-1] ** -0.5
        if num_query_rows(query.shape[2], self.query_rows) < query.shape[2]:
            rows = take_query_rows(query.detach(), self.query_rows)
            self.result = self.read((rows * scale) @ key.detach().transpose(-2, -1))
            return func(*args, **kwargs)
        logits = (query * scale) @ key.transpose(-2, -1)
        self.result = self.read(logits.detach())
        maps = F.dropout(logits.softmax(dim=-1), kwargs.get("dropout_p", 0.0))
        return maps @ value


def run_and_tap(
    block: nn.Module, tokens: Tensor, query_rows: int | str, read: Callable[[Tensor], Tensor] = lambda logits: logits
) -> tuple[Tensor, Tensor]:
    """Run a block and read its attention logits.

    Args:
        block: The block.
        tokens: Tokens (B, N, D).
        query_rows: Number of query rows M to read, or `"all"`.
        read: What is made of the scaled logits (B, H, M, N), detached; by default nothing.

    Returns:
        The block's output (B, N, D), and what `read` made of the logits.

    Raises:
        UnsupportedModelError: If the block does not use PyTorch's fused attention function.
    """
    tap = AttentionTap(query_rows, read)
    with tap:
        output = block(tokens)
    if tap.result is None:
        raise UnsupportedModelError(
            f"{type(block).__name__} ran without PyTorch's fused attention, so its logits cannot be read. "
            f"Unset TIMM_FUSED_ATTN, or build the model without exportable=True."
        )
    return output, tap.result


def run_block_per_head(block: Backbone, tokens: Tensor, keep_indices: Tensor) -> Tensor:
    """Run a block in which each head attends among its own selected tokens (paper Eq. 4).

    A head's skipped tokens get no output from that head; the output projection and the MLP see every token.

    Args:
        block: A timm `Block`.
        tokens: Tokens (B, N, D).
        keep_indices: Selected tokens of each head, (B, H, K).

    Returns:
        Tokens (B, N, D).
    """
    attention = block.attn
    attended = _attend_per_head(attention, block.norm1(tokens), keep_indices)
    attended = attention.proj_drop(attention.proj(attention.norm(attended)))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def _attend_per_head(attention: Attention, tokens: Tensor, keep_indices: Tensor) -> Tensor:
    """Attention output (B, N, H * head_dim) of normalised tokens (B, N, D), zero where a head skips a token."""
    batch, length, dim = tokens.shape
    heads, head_dim, kept = attention.num_heads, attention.head_dim, keep_indices.shape[-1]
    index = keep_indices.flatten(1).unsqueeze(-1)
    selected = tokens.gather(1, index.expand(-1, -1, dim)).view(batch, heads, kept, dim)
    # qkv's rows are ordered (3, H, head_dim); each head projects only the tokens it selected.
    weight = attention.qkv.weight.view(3, heads, head_dim, dim)
    query, key, value = torch.einsum("bhkd,xhed->xbhke", selected, weight)
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias.view(3, heads, 1, head_dim)
        query, key, value = query + bias[0], key + bias[1], value + bias[2]
    dropout = attention.attn_drop.p if attention.training else 0.0
    output = F.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value, dropout_p=dropout)
    empty = output.new_zeros(batch, heads, length, head_dim)
    output = empty.scatter(2, keep_indices.unsqueeze(-1).expand(-1, -1, -1, head_dim), output)
    return output.transpose(1, 2).reshape(batch, length, attention.attn_dim)


def _architecture(model: Backbone) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or "The model"


def _names(types: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in types)
