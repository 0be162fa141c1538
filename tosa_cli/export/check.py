"""Does an exported model compute what its original does? Choices first, then the numbers given the choices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tosa_cli.errors import ExportError
from tosa_cli.export.photos import sample_images
from tosa_cli.export.program import read_outputs
from tosa_cli.export.replay import replay
from tosa_cli.methods import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT

TIE = 1e-3
"""Two scores that differ by a smaller share of a usual score are equal but for rounding, as another runtime rounds."""

Run = Callable[[Tensor], Mapping[str, Tensor]]
"""An exported model: from images (B, C, height, width) to its outputs by name."""


@dataclass(frozen=True)
class CheckReport:
    """How an exported model compares with its original.

    Differences are the largest of any output's, of one whose largest value is above 1 relative to that.

    Attributes:
        images: Images that were compared: pieces of photos.
        batch_sizes: Images a batch, in turn.
        atol: Largest accepted difference.
        same_choices: Images for which both selected the same tokens, and matched the same partners, in every layer.
        same_difference: Largest difference among these; None where there is none.
        tied_choices: Images for which they did not, although the original's scores leave it open.
        tied_margin: How much those scores differ at most, as a share of a usual score.
        tied_difference: Largest difference of these from the original that selects the same tokens.
        tied_difference_own: Largest difference of these from the original that selects for itself.
        random: Whether tokens are selected at random, so that choices are not comparable.
    """

    images: int
    batch_sizes: tuple[int, ...]
    atol: float
    same_choices: int
    same_difference: float | None
    tied_choices: int
    tied_margin: float | None
    tied_difference: float | None
    tied_difference_own: float | None
    random: bool


@torch.no_grad()
def check_export(
    model: TosaViT,
    exported: Run,
    with_choices: Run,
    outputs: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    atol: float,
) -> CheckReport:
    """Compare an exported model with its original on pieces of photos.

    Args:
        model: The original, in evaluation mode.
        exported: The exported model.
        with_choices: The same, which tells its choices as well, by the names of `name_choices`.
        outputs: Names of the outputs.
        batch_sizes: Images of each batch to compare on.
        atol: Largest accepted difference.

    Raises:
        ExportError: If outputs differ by more though the choices are the same, choices differ where the original's
            scores do not leave it open, or the two exported models differ.
    """
    random = SELECTORS[model.config.selector].is_random
    same, margins, differences, own_differences = [], [], [], []
    for images in sample_images(model, sum(batch_sizes)).split(list(batch_sizes)):
        told = with_choices(images)
        if not random:
            _check_twins(exported(images), told, outputs, atol)
        replayed = replay(model, images, told)
        own = read_outputs(model, model.forward_features(images), outputs)
        given = read_outputs(model, replayed.tokens, outputs)
        same.append(replayed.same)
        margins.append(replayed.margin)
        own_differences.append(difference(own, told, outputs))
        differences.append(torch.where(replayed.same, own_differences[-1], difference(given, told, outputs)))
    return _judge(
        torch.cat(same), torch.cat(margins), torch.cat(differences), torch.cat(own_differences),
        tuple(batch_sizes), atol, random,
    )  # fmt: skip


def difference(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], outputs: Sequence[str]) -> Tensor:
    """Largest difference of each image's outputs, (B,): absolute, or relative to its largest value if that is above 1.

    A value that is not finite makes it infinite.
    """
    largest = []
    for name in outputs:
        if expected[name].shape != actual[name].shape:
            raise ExportError(
                f"{name} should have the shape {tuple(expected[name].shape)}, but has {tuple(actual[name].shape)} once "
                f"exported. Nothing was written. Please report the model's name."
            )
        reference, value = expected[name].flatten(1).double(), actual[name].flatten(1).double()
        size = reference.abs().amax(1).clamp_min(1)
        largest.append(torch.nan_to_num((reference - value).abs().amax(1) / size, nan=torch.inf))
    return torch.stack(largest).amax(0)


def _check_twins(
    exported: Mapping[str, Tensor], told: Mapping[str, Tensor], outputs: Sequence[str], atol: float
) -> None:
    largest = difference(told, exported, outputs).max().item()
    if largest > atol:
        raise ExportError(
            f"The exported model and the same model with its choices as outputs should agree, but differ by "
            f"{largest:.2g}. Nothing was written. Please report the model's name."
        )


def _judge(
    same: Tensor,
    margin: Tensor,
    differences: Tensor,
    own_differences: Tensor,
    batch_sizes: tuple[int, ...],
    atol: float,
    random: bool,
) -> CheckReport:
    if (margin[~same] > TIE).any():
        raise ExportError(
            f"For {int((margin[~same] > TIE).sum())} of {len(same)} images the exported model selects other tokens "
            f"than the original, though the original's scores differ there by {margin[~same].max():.2g} of a usual "
            f"score, and a tie is below {TIE:g}. Nothing was written. Please report the model's name."
        )
    if (differences > atol).any():
        raise ExportError(
            f"With the same tokens selected, the exported model's outputs should equal the original's to within "
            f"{atol:g}, but differ by {differences.max():.2g}. Nothing was written: pass a greater --atol if that is "
            f"accurate enough for you."
        )
    tied = bool((~same).any())
    return CheckReport(
        images=len(same),
        batch_sizes=batch_sizes,
        atol=atol,
        same_choices=int(same.sum()),
        same_difference=differences[same].max().item() if same.any() else None,
        tied_choices=int((~same).sum()),
        tied_margin=margin[~same].max().item() if tied else None,
        tied_difference=differences[~same].max().item() if tied else None,
        tied_difference_own=own_differences[~same].max().item() if tied else None,
        random=random,
    )
