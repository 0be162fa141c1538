"""Models and files that give their final tokens, whatever they compute in."""

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """A model, or an exported file of one, that gives final tokens in float32.

    Args:
        run: A model with `forward_features`, or a module that runs a file and gives outputs by name.
        dtype: Type of numbers of a model's weights.
    """

    num_prefix_tokens = 1

    def __init__(self, run: nn.Module, dtype: torch.dtype = torch.float32) -> None:  # noqa: D107
        super().__init__()
        self.run, self.dtype = run, dtype
        self.runs_elsewhere = getattr(run, "runs_elsewhere", False)

    def forward(self, images: Tensor) -> Tensor:
        """Final tokens (B, N, D) of images (B, 3, height, width)."""
        if self.runs_elsewhere:
            return self.run(images)["last_hidden_state"]
        return self.run.forward_features(images.to(self.dtype)).float()  # type: ignore[operator]

    def forward_features(self, images: Tensor) -> Tensor:
        """The same of any number of images, one at a time, as a file for one image takes them."""
        return torch.cat([self(image[None]) for image in images])
