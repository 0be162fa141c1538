"""Short keys by which tokens are compared."""

from torch import Tensor, nn
from torch.nn import functional as F


class MatchingKeys(nn.Module):
    """Short keys by which tokens are compared, from the keys of the layer's own attention.

    Frozen: finetuning changes what the layer computes, and not which tokens it selects.

    Args:
        weight: Projection (key_dim, D).
        bias: Its bias (key_dim).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Keys (B, N, key_dim) of what the layer's attention reads, (B, N, D)."""
        return F.linear(inputs.to(self.weight.dtype), self.weight, self.bias)
