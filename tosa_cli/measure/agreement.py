"""How near the outputs of a converted model are to the dense model's, whatever they are: no labels are read."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.errors import ConfigError, DataError
from tosa_cli.measure.outputs import Figures, figures_of, nearest_agreement
from tosa_cli.model.runs import dense as dense_model
from tosa_cli.model.runs.calls import call_on
from tosa_cli.progress import counted

SKIPPED = (
    "hidden_states", "attentions", "past_key_values", "text_embeds", "text_model_output", "conditional_embeddings",
    "pooled_output", "logits_per_text", "vision_model_output", "loss",
)  # fmt: skip
"""Outputs that are not compared: they are inner ones, those of the text, or others turned round."""


WHY_SILENT = "the dense model predicts no depth there, or the same everywhere"

NOTHING_IN_COMMON = "The models have no output in common."

CHIEF = ("top1_agreement", "delta1", "keypoints_near", "iou", "matched_iou", "cosine")
"""The figures that say most of an output, 1 where it is the dense model's: of several outputs the first of these."""


@dataclass(frozen=True)
class AgreementReport:
    """How near the outputs of two models are.

    Attributes:
        samples: Number of images.
        outputs: For each output by its name the means of its figures, where there are any.
        left_out: How many images say nothing of an output, by its name: they are not in the means.
    """

    samples: int
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What was left out of the means and why, each a sentence."""
        return [
            f"Of {output} {count} of {counted(self.samples, 'image')} {'says' if count == 1 else 'say'} nothing and "
            f"{'is' if count == 1 else 'are'} left out: {WHY_SILENT}."
            for output, count in self.left_out.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"samples": self.samples, "outputs": self.outputs, "left_out": self.left_out}


@torch.no_grad()
def compare_outputs(dense: nn.Module | None, tosa: nn.Module, batches: Iterable[Any]) -> AgreementReport:
    """Compare the outputs of a converted model with the dense model's.

    Depth is compared after the usual alignment by scale and shift, heat maps by their keypoints, boxes by the one
    that overlaps most, classes and pixels by their best class, embeddings by cosine and by the nearest other image.

    Args:
        dense: The dense model; None takes the converted one with every token computed, which is the same where nothing
            was finetuned.
        tosa: The converted model.
        batches: What the models are called with: tensors, tuples or dictionaries.

    Raises:
        DataError: If there is no batch, or an output holds values that are no finite numbers.
        ConfigError: If the models have no output in common.
    """
    sums: dict[str, dict[str, list[Tensor]]] = {}
    embeddings: dict[str, list[tuple[Tensor, Tensor]]] = {}
    samples = batches_read = 0
    modes = [(model, model.training) for model in (dense, tosa) if model is not None]
    for model, _ in modes:
        model.eval()
    try:
        for batch in batches:
            batches_read += 1
            context = dense_model(tosa) if dense is None else contextlib.nullcontext()
            with context:
                expected = outputs_of(tosa if dense is None else dense, batch)
            made = outputs_of(tosa, batch)
            found = compare_batch(expected, made)
            for name, figures in found.items():
                for key, one in figures.items():
                    sums.setdefault(name, {}).setdefault(key, []).append(one.detach().double().cpu())
                if name.endswith("embeds") and expected[name].ndim == 2:
                    embeddings.setdefault(name, []).append((expected[name].cpu(), made[name].cpu()))
            samples += max((len(expected[name]) for name in found), default=0)
    finally:
        for model, mode in modes:
            model.train(mode)
    if not batches_read:
        raise DataError("There is no batch to compare on: pass an iterable of what the models are called with.")
    if not samples:
        raise ConfigError(NOTHING_IN_COMMON)
    outputs, left_out = {}, {}
    for name, keys in sums.items():
        values = torch.stack([torch.cat(parts) for parts in keys.values()])
        silent = is_silent(values)
        if silent.any():
            left_out[name] = int(silent.sum())
        if not silent.all():
            outputs[name] = dict(zip(keys, values[:, ~silent].mean(1).tolist(), strict=True))
    for name, pairs in embeddings.items():
        if sum(len(pair[0]) for pair in pairs) > 2:
            sides = (torch.cat(side) for side in zip(*pairs, strict=True))
            outputs[name]["nearest_agreement"] = nearest_agreement(*sides)
    return AgreementReport(samples, outputs, left_out)


def is_silent(figures: Tensor) -> Tensor:
    """Which samples (B,) say nothing of an output: none of its figures (F, B) is a number."""
    return figures.isnan().all(0)


def compare_batch(expected: dict[str, Tensor], made: dict[str, Tensor]) -> dict[str, Figures]:
    """The figures of each output that two models have in common, one a sample.

    Args:
        expected: What `outputs_of` gives of the dense model.
        made: What it gives of the converted one.

    Raises:
        DataError: If an output holds values that are no finite numbers, and figures would be none.
    """
    found = {}
    for name, value in expected.items():
        if name not in made or made[name].shape != value.shape:
            continue
        if value.isnan().any() or made[name].isnan().any():
            raise _no_numbers(name)
        found[name] = figures_of(name, expected)(value, made[name], expected, made)
        # What is masked may be infinite, and figures do not mind.
        infinite = value.isinf().any() or made[name].isinf().any()
        if infinite and not all(figure.isfinite().all() for figure in found[name].values()):
            raise _no_numbers(name)
    return found


def _no_numbers(output: str) -> DataError:
    return DataError(
        f"The output {output} holds values that are no finite numbers, so nothing can be said of it: take other "
        f"images, or a model from before its weights were spoilt."
    )


def chief_figure(figures: dict[str, Figures]) -> tuple[str, str]:
    """The output that says most of a model, and its figure: by what `compare_batch` gives.

    Raises:
        ConfigError: If there is none that is 1 where the models agree.
    """
    for figure in CHIEF:
        names = [name for name, found in figures.items() if figure in found]
        if names:  # embeddings are what is made to be compared
            return min(names, key=lambda name: not name.endswith("embeds")), figure
    if not figures:
        raise ConfigError(NOTHING_IN_COMMON)
    raise ConfigError(
        f"Of the model's {next(iter(figures))!r} no share is known that agrees with the dense model's, so no drop can "
        f"be held: hold the encoder's tokens with min_cosine."
    )


def outputs_of(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What a model gives of a batch and is compared, in float32.

    Raises:
        DataError: If it does not take the batch.
    """
    found = call_on(model, batch).outputs_or_why()
    return {
        name: value.float() for name, value in found.items() if name.partition(".")[0] not in SKIPPED and value.ndim > 0
    }
