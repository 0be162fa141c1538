"""The dense model that a converted one is set beside: its source, as long as something has its weights."""

from dataclasses import dataclass
from typing import cast

from torch import nn

from tosa_cli.errors import InputError, SourceError
from tosa_cli.hub.source import load_source
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import Provenance


@dataclass(frozen=True)
class DenseModel:
    """A dense model to set a converted one beside.

    Attributes:
        model: The dense model. It may be the converted one's own backbone.
        lost: Why its weights are not the source's but the converted model's own, with every token computed: a sentence
            about the source. Empty if they are the source's.
    """

    model: nn.Module
    lost: str = ""

    @property
    def weights(self) -> str:
        """Whose weights it has: those of the `source`, or the converted model's `own`."""
        return "own" if self.lost else "source"

    @property
    def note(self) -> str:
        """What to say of the comparison where it is not with the source; empty otherwise."""
        if not self.lost:
            return ""
        return f"{self.lost} So the model is compared with its own weights and every token computed."


def has_random_source(provenance: Provenance) -> bool:
    """Whether a model was converted from an architecture alone, whose weights were random."""
    return not provenance.steps.get("convert", {}).get("pretrained", True)


def dense_model(converted: TosaViT, img_size: int | tuple[int, int] | None = None, *, head: bool = False) -> DenseModel:
    """The dense model that a converted one came from.

    Until it is finetuned the backbone has the source's weights, and is the source. After that the source is loaded
    again; where nothing has its weights any more, the converted model's own take their place.

    Args:
        converted: The converted model.
        img_size: Image size in pixels, one number or (height, width); None takes the converted model's.
        head: Whether its guesses are needed, so that a source without such a head will not do.

    Raises:
        InputError: If the source of a finetuned model cannot be loaded.
    """
    provenance, own = converted.provenance, cast(nn.Module, converted.backbone)
    if not provenance.is_finetuned:
        return DenseModel(own)
    if not provenance.source:
        return DenseModel(own, "The model was converted in Python from a model that no name was given.")
    if has_random_source(provenance):
        return DenseModel(own, "The model was finetuned from a source whose weights were random.")
    how = provenance.steps.get("convert", {})
    try:
        source = load_source(
            _exact_source(provenance),
            img_size=img_size or tuple(converted.patch_embed.img_size),  # type: ignore[arg-type]
            num_classes=converted.num_classes,
            architecture=how.get("architecture"),
            weights_key=how.get("weights_key"),
        )
    except InputError as error:
        raise SourceError(
            f"The dense source {provenance.source} cannot be loaded: bring it back, or leave the comparison out. "
            f"{error}"
        ) from error
    if head and source.has_new_head:
        return DenseModel(own, f"The source has no head of {converted.num_classes} classes.")
    return DenseModel(cast(nn.Module, source.model))


def _exact_source(provenance: Provenance) -> str:
    """The source of a model by a name that does not move: of a repository on the Hub, the commit that was read."""
    named = provenance.source.removeprefix("hf-hub:").partition("@")[0]
    if named == provenance.base_hub_id and provenance.base_revision:
        return f"hf-hub:{named}@{provenance.base_revision}"
    return provenance.source
