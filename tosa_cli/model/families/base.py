"""What a family of backbones says about its models and their blocks: all that the rest of the package knows of them.

A new family is one file: a `Family` for its types of models, a `BlockKind` for each type of block, and one line in
`registry.py`. Models and blocks are called as they are, never copied.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from timm.layers import DropPath
from torch import Tensor, nn

from tosa_cli.config import Selection
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.model.families.macs import linear_macs
from tosa_cli.model.places import Extras, Places, SelectedBias


class BlockKind(ABC):
    """How blocks of one type are called, and where their parts are.

    A kind has no state of a block: each method is given the block. What is `Any` here is the type that the kind is for.

    Attributes:
        selections: How tokens can be selected in such a block.
        how_to_fuse: A sentence that says how such a block comes to attend by PyTorch's fused attention, where it does
            not.
        mask_name: The block's own name of what is added to its attention logits, (B, 1, 1, K). None if it takes no
            such thing, or makes a bias for all tokens itself: then it must attend by PyTorch's fused attention, where
            what is added goes in.
    """

    selections: tuple[Selection, ...] = ("shared",)
    how_to_fuse: str = "Unset TIMM_FUSED_ATTN, or build the model without exportable=True."
    mask_name: str | None = None

    def why_ineligible(self, block: Any, selection: Selection) -> str | None:
        """Why a block of this type cannot select tokens, in words that follow "Layer 3"; None if it can."""
        return None

    @abstractmethod
    def attention_input(self, block: Any, tokens: Tensor) -> Tensor:
        """What the attention of a block reads of tokens (B, N, D): (B, N, D)."""

    @abstractmethod
    def num_heads(self, block: Any) -> int:
        """Number of attention heads, those of parallel attentions together."""

    @abstractmethod
    def head_dim(self, block: Any) -> int:
        """Width of a head."""

    @abstractmethod
    def mean_key_projection(self, block: Any) -> tuple[Tensor, Tensor]:
        """The projection to the mean over the heads of the attention's keys, before any norm or rotation of them.

        Returns:
            Weight (head_dim, D) and bias (head_dim), detached.
        """

    def num_attentions(self, block: Any) -> int:
        """How many attentions a block has side by side."""
        return 1

    def run(self, block: Any, tokens: Tensor, extras: Extras) -> Tensor:
        """Run a block on tokens (B, N, D), with what it is given beside them, from `Places`: tokens (B, N, D)."""
        return block(tokens, **extras)

    def run_within(self, block: Any, run: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Do what runs a block on tokens (B, N, D) within a context, which the block needs each time that it runs.

        A block that computes itself again in the backward pass leaves that to `run`, context and all.
        """
        return run(tokens)

    def run_selected(
        self,
        block: Any,
        selected: Tensor,
        keep_indices: Tensor,
        extras: Extras,
        size_bias: Tensor | None = None,
    ) -> Tensor:
        """Run a block on selected tokens.

        Args:
            block: The block.
            selected: Selected tokens (B, K, D).
            keep_indices: Which they are, (B, K), in any order.
            extras: What the block is given beside all tokens.
            size_bias: What is added to the logits for the sizes of the tokens, (B, 1, 1, K); None adds nothing.

        Returns:
            Tokens (B, K, D).
        """
        extras = self.gather_extras(block, extras, keep_indices)
        if self.mask_name is None:
            with SelectedBias(keep_indices, size_bias):
                return self.run(block, selected, extras)
        if size_bias is not None:
            extras = {**extras, self.mask_name: size_bias}
        return self.run(block, selected, extras)

    def gather_extras(self, block: Any, extras: Extras, keep_indices: Tensor) -> Extras:
        """What a block is given beside the selected tokens (B, K); a bias for pairs of tokens is left as it is."""
        return extras

    def macs(self, block: Any, tokens: int) -> int:
        """MACs of a block on so many tokens, as PyTorch counts them: products of matrices and convolutions."""
        return tokens * linear_macs(block) + 2 * tokens * tokens * self.num_heads(block) * self.head_dim(block)

    def set_drop_path(self, block: Any, rate: float) -> None:
        """Set the rate of stochastic depth in each of a block's branches, which timm calls `drop_path...`."""
        for module in block.modules():
            for name, _ in list(module.named_children()):
                if name.startswith("drop_path"):
                    setattr(module, name, DropPath(rate) if rate > 0 else nn.Identity())


class OpaqueBlock(BlockKind):
    """A block of which no more is known than how it is called: it runs on all tokens.

    Args:
        reason: Why it cannot select tokens, in words that follow "Layer 3"; None where its type is not known.
    """

    selections = ()

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason

    def why_ineligible(self, block: Any, selection: Selection) -> str | None:
        """Say what is known."""
        return self.reason

    def attention_input(self, block: Any, tokens: Tensor) -> Tensor:
        """Refuse."""
        raise _opaque(block)

    def num_heads(self, block: Any) -> int:
        """Refuse."""
        raise _opaque(block)

    def head_dim(self, block: Any) -> int:
        """Refuse."""
        raise _opaque(block)

    def mean_key_projection(self, block: Any) -> tuple[Tensor, Tensor]:
        """Refuse."""
        raise _opaque(block)


def _opaque(block: Any) -> UnsupportedModelError:
    return UnsupportedModelError(f"What the attention of a {type(block).__name__} is made of is not known.")


Blocks = Mapping[type[nn.Module], BlockKind]
"""What is known of each type of block."""


class Family(ABC):
    """Types of models that are embedded in one way, and the types of blocks that they are built of.

    What is `Any` here is one of the types of models.

    Attributes:
        models: The types of models. They must match exactly: a subclass may compute something else.
        blocks: What is known of each type of block.
        modules: timm's files with such models, whose names are proposed for one that is misspelt.
        short_names: How a short name such as `deit_tiny` is completed to one of timm's, in this order.
    """

    models: ClassVar[tuple[type[nn.Module], ...]]
    blocks: ClassVar[Blocks]
    modules: ClassVar[tuple[str, ...]] = ()
    short_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def embed(self, model: Any, images: Tensor) -> tuple[Tensor, Places]:
        """Turn images (B, C, height, width) into the tokens (B, N, D) that enter layer 1, and say where they stand."""

    @abstractmethod
    def has_class_token(self, model: Any) -> bool:
        """Whether the first token of a model is a class token."""

    def num_register_tokens(self, model: Any) -> int:
        """How many of a model's prefix tokens, the last of them, are registers."""
        return 0

    @abstractmethod
    def check_img_size(self, model: Any, img_size: int | tuple[int, int]) -> None:
        """Check that a model takes images of a size in pixels, one number or (height, width).

        Raises:
            ConfigError: If it does not; it names the nearest sizes that it takes.
        """

    @abstractmethod
    def fit_checkpoint(
        self, state: dict[str, Tensor], model: Any, adapt_layer_scale: bool = False, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Bring a foreign state dict into a model's names and sizes.

        Args:
            state: Weights.
            model: The model they are for.
            adapt_layer_scale: Rename LayerScale's weights of DeiT III checkpoints.
            antialias: Whether a position embedding that is made smaller is smoothed, which timm does.
        """

    def shared_macs(self, model: Any) -> int:
        """MACs of what is made once for all layers besides embedding and head, as a bias for pairs of positions."""
        return 0


def names_of(types: Iterable[type]) -> str:
    """The names of types, as a list in a sentence."""
    return ", ".join(kind.__name__ for kind in types)
