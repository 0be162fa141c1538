"""Features: the final tokens of the dense model, which any images teach, and which need no labels to measure."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.data.loading import Images
from tosa_cli.errors import ConfigError, InputError
from tosa_cli.hub.card import OWN_WEIGHTS, SOURCE
from tosa_cli.hub.measured import how_chosen
from tosa_cli.hub.original import dense_model
from tosa_cli.measure.evaluation import Measure
from tosa_cli.model.families import has_class_token
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.tasks.base import Column
from tosa_cli.tasks.tokens import TokensTask, dense_row
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.feature_loss import feature_loss
from tosa_cli.train.finetune import Learned
from tosa_cli.train.optimizer import finetuned_groups
from tosa_cli.train.weights import finetuned_parts

MAX_HELD_OUT = 200
"""Held-out images: they are measured often, and so many tell the cosines to the third decimal."""


class FeaturesObjective(nn.Module):
    """Label-free finetuning: match the final tokens of the dense model that the ToSA model came from.

    Selection stays as it is, and so does what needs no learning: up to the first ToSA layer the teacher's tokens are
    computed already, and a classification head, which reads the tokens, goes on fitting them.

    Args:
        model: The ToSA model.
        teacher: The dense model; it is frozen.
        feature_layers: Number of evenly spread layers before the last whose tokens are matched too.
    """

    def __init__(self, model: TosaViT, teacher: nn.Module, feature_layers: int = 0) -> None:
        super().__init__()
        self.model = model
        self.teacher: Any = teacher.requires_grad_(False)
        depth = len(model.blocks)
        self.indices = [depth * i // (feature_layers + 1) - 1 for i in range(1, feature_layers + 1)]
        self.num_prefix = model.num_prefix_tokens
        self.num_class = self.num_prefix - model.family.num_register_tokens(model)
        model.requires_grad_(False)
        later = nn.ModuleList([*model.blocks[min(model.keep_rates) - 1 :], model.norm, model.bypasses])
        parameters = list(later.requires_grad_(True).parameters())
        # Several processes need to know which weights no gradient reaches, as of a bypass that no token takes.
        images = torch.zeros(1, model.in_chans, *model.patch_embed.img_size, device=parameters[0].device)
        reached = torch.autograd.grad(self._tokens(model, images)[-1].sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, reached, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of images (B, C, height, width); `targets` are not read."""
        with torch.no_grad():
            expected = self._tokens(self.teacher, images)
        return feature_loss(self._tokens(self.model, images), expected, self.num_prefix, self.num_class)

    def train(self, mode: bool = True) -> "FeaturesObjective":
        """Dropout and the like stay off, as a model that only has to stay close to its teacher needs no noise."""
        return super().train(False)

    def _tokens(self, model: Any, images: Tensor) -> list[Tensor]:
        """Tokens (B, N, D) behind each of the other layers, then the final normalised ones."""
        if not self.indices:
            return [model.forward_features(images)]
        final, others = model.forward_intermediates(
            images, indices=self.indices, return_prefix_tokens=True, output_fmt="NLC"
        )
        if self.num_prefix:
            others = [torch.cat([prefix, patches], dim=1) for patches, prefix in others]
        return [*others, final]


@dataclass(frozen=True)
class Cosines:
    """Final tokens beside the dense model's.

    Attributes:
        patch_cosine: Mean cosine of patch tokens.
        class_cosine: Mean cosine of class tokens; None without one.
    """

    patch_cosine: float
    class_cosine: float | None


class CosineMeasure(Measure[Cosines]):
    """Mean cosines of the final tokens of the model `tosa` to those of the model `dense`.

    Args:
        model: The converted model.
    """

    def __init__(self, model: TosaViT) -> None:
        self.num_prefix = model.num_prefix_tokens
        self.has_class_token = has_class_token(model.backbone)
        self.patches = self.classes = 0.0
        self._scores: list[float] = []

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The final normalised tokens."""
        return model.forward_features  # type: ignore[return-value]

    def add(self, images: Any, targets: Any, outputs: Mapping[str, Tensor]) -> None:
        """Sum up the cosines of each image."""
        cosine = F.cosine_similarity(outputs["dense"].float(), outputs["tosa"].float(), dim=-1)
        patches, classes = cosine[:, self.num_prefix :].mean(dim=1), cosine[:, 0]
        self.patches += patches.sum().item()
        self.classes += classes.sum().item()
        self._scores += ((patches + classes) / 2 if self.has_class_token else patches).tolist()

    def scores(self) -> list[float]:
        """The mean of the cosines of each image."""
        return list(self._scores)

    def figures(self, samples: int) -> dict[str, Cosines]:
        """The means over the images."""
        return {"tosa": Cosines(self.patches / samples, self.classes / samples if self.has_class_token else None)}


class Features(TokensTask):
    """Cosines of final tokens to the dense model's."""

    name = "features"
    columns: ClassVar[Mapping[str, Column]] = {
        "patch_cosine": Column("patch cosine"),
        "class_cosine": Column("class cosine"),
    }
    measured = "Final tokens beside the dense model's"
    card_titles = ("patch tokens", "class token")
    keeps_best = True
    needs_dense = True
    max_held_out = MAX_HELD_OUT

    def teacher(self, model: TosaViT) -> nn.Module:
        """A copy of the dense model that a converted one came from.

        Raises:
            InputError: If it is needed from its source, which cannot be loaded any more.
        """
        try:
            dense = dense_model(model)
        except InputError as error:
            raise InputError(
                f"The objective features learns from the dense source {model.provenance.source or 'model'}, which "
                f"cannot be loaded: bring it back, or finetune a model that was not finetuned before. "
                f"{error.__cause__ or error}"
            ) from error
        if dense.lost:
            raise InputError(
                f"The objective features learns from the dense source, whose weights are lost. {dense.lost} Finetune "
                f"with labels, or take a model that was not finetuned before."
            )
        return copy.deepcopy(dense.model).eval()

    def objective(self, model: Any, images: Images, config: FinetuneConfig, teacher: Any) -> Learned:
        """The distance of the tokens."""
        if not isinstance(model, TosaViT):
            raise ConfigError(
                f"The objective features is for converted models, not for a {type(model).__name__}: use labels."
            )
        if teacher is None or getattr(teacher, "blocks", None) is model.blocks:
            raise ConfigError("The objective features needs a teacher: a copy of the dense model.")
        if config.feature_layers >= len(model.blocks):
            raise ConfigError(
                f"--feature-layers must be below {len(model.blocks)}, as the model has so many layers and the last is "
                f"matched anyway; not {config.feature_layers}."
            )
        objective = FeaturesObjective(model, teacher, config.feature_layers).train()
        groups = finetuned_groups(model, config.weight_decay, config.layer_decay)
        return Learned(objective, finetuned_parts(model), groups)

    def measure(self, model: TosaViT) -> CosineMeasure:
        """The cosines."""
        return CosineMeasure(model)

    def score(self, figures: Mapping[str, float]) -> float:
        """Their mean."""
        return sum(figures.values()) / len(figures)

    def next_words(self, config: Any) -> list[str]:
        """The same measurement."""
        return ["--task", "features"]

    def dense_figures(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """1 for itself, where there is something to measure."""
        return {key: None if report[key] is None else 1.0 for key in self.columns}

    def change_section(self, command: str, done: Mapping[str, Any], whose: str) -> str:
        """The cosines before and after."""
        kinds = [kind for kind in ("patch", "class") if done.get(f"{kind}_cosine_after") is not None]
        if not kinds:
            return ""
        rows = [
            f"| {when} | " + " | ".join(f"{done[f'{kind}_cosine_{when}']:.4f}" for kind in kinds) + " |"
            for when in ("before", "after")
        ]
        said = (
            f"Cosine of the final tokens to {whose} on {done['samples']} held-out images, before and after "
            f"`tosa {command}`. {how_chosen(done)}"
        )
        return f"{said.rstrip()}\n\n| | {' | '.join(kinds)} |\n|---{'|---' * len(kinds)}|\n" + "\n".join(rows)

    def measured_words(self, measured: Mapping[str, Any]) -> str:
        """Whose tokens they are compared with."""
        whose = SOURCE if dense_row(measured) == "source" else OWN_WEIGHTS
        return f" Mean cosine of the final tokens to {whose}."

    def dense_cells(self, measured: Mapping[str, Any]) -> list[str]:
        """1 for itself, where there is something to measure."""
        return ["-" if measured.get(key) is None else "1" for key in self.columns]
