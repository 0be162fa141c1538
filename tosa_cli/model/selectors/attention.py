"""The trained selector of the paper (section 2.2), which predicts the next attention maps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.config import Method
from tosa_cli.model.families import Backbone, num_heads
from tosa_cli.model.selection import column_sum, num_query_rows
from tosa_cli.model.selectors.previous import MapSelector, row_macs

EXPANSION = 4
"""Hidden channels of the selector, in heads: H -> 4H -> H."""


class AttentionSelector(MapSelector):
    """Predicts the attention maps of a ToSA layer from the attention logits of its feeding layer.

    Two 1-D convolutions with a ReLU between; the heads are the channels, the convolution runs along the keys, one
    query row at a time; then log-softmax over the keys. A new selector passes its input through, so before any
    training it selects what the feeding layer attends to, and training starts from there.

    Args:
        num_heads: Number of attention heads H.
        kernel_size: Kernel size along the keys; 1 works at every resolution.
    """

    meaning = "attention that a patch is predicted to receive (log)"

    def __init__(self, num_heads: int, kernel_size: int = 1) -> None:
        super().__init__()
        hidden, padding = EXPANSION * num_heads, kernel_size // 2
        self.conv1 = nn.Conv1d(num_heads, hidden, kernel_size, padding=padding)
        self.conv2 = nn.Conv1d(hidden, num_heads, kernel_size, padding=padding)
        self._init_as_identity(num_heads, kernel_size // 2)

    @classmethod
    def for_layer(cls, backbone: Backbone, layer: int, method: Method) -> "AttentionSelector":
        """The selector of a ToSA layer, which has the heads of the feeding layer."""
        return cls(num_heads(backbone.blocks[layer - 2]), method.selector_kernel)

    @staticmethod
    def macs(backbone: Backbone, layer: int, method: Method, tokens: int, kept: int) -> int:
        """Query rows of the feeding layer, and both convolutions over them."""
        heads, rows = num_heads(backbone.blocks[layer - 2]), num_query_rows(tokens, method.query_rows)
        convolutions = 2 * EXPANSION * heads**2 * method.selector_kernel * rows * tokens
        return row_macs(backbone, layer, method, tokens) + convolutions

    def forward(self, logits: Tensor) -> Tensor:
        """Predict the next maps.

        Args:
            logits: Scaled attention logits QK^T of the feeding layer, (B, H, M, N).

        Returns:
            Logarithm of the predicted maps, (B, H, M, N), in float32; its exponential sums to 1 over the keys.
        """
        logits = logits.to(self.conv1.weight.dtype)
        hidden = _convolve_along_keys(self.conv1, logits).relu()
        return F.log_softmax(_convolve_along_keys(self.conv2, hidden).float(), dim=-1)

    def read(self, logits: Tensor) -> Tensor:
        """Column sum of the predicted maps (paper 2.1), (B, H, N)."""
        return column_sum(self(logits).exp())

    @torch.no_grad()
    def _init_as_identity(self, num_heads: int, center: int) -> None:
        # x = relu(x) - relu(-x): the first 2H hidden channels carry the input through; the others keep their
        # random input weights and enter the output only as training gives them a weight.
        identity = torch.eye(num_heads)
        self.conv1.weight[: 2 * num_heads] = 0
        self.conv1.weight[:num_heads, :, center] = identity
        self.conv1.weight[num_heads : 2 * num_heads, :, center] = -identity
        self.conv2.weight.zero_()
        self.conv2.weight[:, :num_heads, center] = identity
        self.conv2.weight[:, num_heads : 2 * num_heads, center] = -identity
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]


def attention_kl(log_predicted: Tensor, logits: Tensor) -> Tensor:
    """KL divergence of the true attention maps from the predicted ones (paper Eq. 5).

    Summed over the heads, mean over batch and query rows.

    Args:
        log_predicted: Logarithm of the predicted maps, (B, H, M, N).
        logits: Scaled attention logits (B, H, M, N), whose softmax over the keys is the true map.

    Returns:
        A scalar, in nats.
    """
    target = F.log_softmax(logits.float(), dim=-1)
    divergence = target.exp() * (target - log_predicted)
    return divergence.sum(dim=(1, 3)).mean()


def _convolve_along_keys(conv: nn.Conv1d, maps: Tensor) -> Tensor:
    """Apply a 1-D convolution to each query row of maps (B, C, M, N)."""
    batch, _, rows, keys = maps.shape
    if conv.kernel_size == (1,):
        # The same as a matrix product, which is some fifty times faster than a convolution of so few channels.
        weight = conv.weight.squeeze(-1).expand(batch, -1, -1)
        bias: Tensor = conv.bias[:, None]  # type: ignore[index]
        return torch.baddbmm(bias, weight, maps.flatten(2)).unflatten(2, (rows, keys))
    output = conv(maps.transpose(1, 2).flatten(0, 1))
    return output.unflatten(0, (batch, rows)).transpose(1, 2)
