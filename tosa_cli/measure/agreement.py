"""How near the outputs of a converted model are to the dense model's, whatever they are: no labels are read."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.errors import ConfigError, DataError
from tosa_cli.model.runs import dense as dense_model
from tosa_cli.model.runs.calls import call_on

Figures = dict[str, Tensor]
"""Figures by name, one a sample, each (B,)."""

NEAR = 0.05
"""Keypoints are near each other within this share of the larger side of the map."""

SURE = 0.3
"""Boxes with at least this score are looked at, and the best one of each image."""

LEAST_DEPTH = 0.05
"""Depth below this share of an image's mean is left out of shares of it."""

SKIPPED = (
    "hidden_states", "attentions", "past_key_values", "text_embeds", "text_model_output", "conditional_embeddings",
    "pooled_output", "logits_per_text", "vision_model_output", "loss",
)  # fmt: skip
"""Outputs that are not compared: they are inner ones, those of the text, or others turned round."""


NOTHING_IN_COMMON = "The models have no output in common."

CHIEF = ("top1_agreement", "delta1", "keypoints_near", "iou", "matched_iou", "cosine")
"""The figures that say most of an output, 1 where it is the dense model's: of several outputs the first of these."""


@dataclass(frozen=True)
class AgreementReport:
    """How near the outputs of two models are.

    Attributes:
        samples: Number of images.
        outputs: For each output by its name the means of its figures.
    """

    samples: int
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"samples": self.samples, "outputs": self.outputs}


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
        DataError: If there is no batch, or an output holds values that are not numbers.
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
    outputs = {
        name: {key: torch.cat(parts).mean().item() for key, parts in keys.items()} for name, keys in sums.items()
    }
    for name, pairs in embeddings.items():
        if sum(len(pair[0]) for pair in pairs) > 2:
            outputs[name]["nearest_agreement"] = _nearest(*(torch.cat(side) for side in zip(*pairs, strict=True)))
    return AgreementReport(samples, outputs)


def compare_batch(expected: dict[str, Tensor], made: dict[str, Tensor]) -> dict[str, Figures]:
    """The figures of each output that two models have in common, one a sample.

    Args:
        expected: What `outputs_of` gives of the dense model.
        made: What it gives of the converted one.

    Raises:
        DataError: If an output holds values that are not numbers.
    """
    found = {}
    for name, value in expected.items():
        if name not in made or made[name].shape != value.shape:
            continue
        if value.isnan().any() or made[name].isnan().any():
            raise DataError(
                f"The output {name} holds values that are not numbers, so nothing can be said of it: take other "
                f"images, or a model from before its weights were spoilt."
            )
        found[name] = _figures(name, expected)(value, made[name], expected, made)
    return found


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


Compare = Callable[[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]], Figures]


def _figures(name: str, outputs: dict[str, Tensor]) -> Compare:
    """What compares an output, by its name and form."""
    value = outputs[name]
    if name == "predicted_depth":
        return compare_depth
    if name == "masks_queries_logits" and "class_queries_logits" in outputs:
        return compare_segments
    if name == "heatmaps":
        return compare_keypoints
    if name == "pred_boxes":
        return compare_boxes
    if name in ("logits", "logits_per_image") and value.ndim == 2:
        return compare_classes
    if name == "logits" and value.ndim == 4:
        return compare_pixels
    if name == "logits" and value.ndim == 3 and value.shape[1] == value.shape[2]:
        return compare_masks
    return compare_directions


def compare_depth(expected: Tensor, made: Tensor, *_: Any) -> Figures:
    """AbsRel, delta < 1.25 and correlation of depths (B, h, w), once scale and shift are fitted to the dense ones."""
    truth, depth = expected.flatten(1).double(), made.flatten(1).double()
    centred, off = depth - depth.mean(1, keepdim=True), truth - truth.mean(1, keepdim=True)
    spread = centred.square().sum(1).clamp_min(1e-12)
    scale = (centred * off).sum(1) / spread
    aligned = centred * scale[:, None] + truth.mean(1, keepdim=True)
    # Where the dense model says next to nothing, as of the sky, a share of it says nothing.
    low = truth.abs().mean(1, keepdim=True).clamp_min(1e-12) * LEAST_DEPTH
    told = (truth > low).double()
    count = told.sum(1).clamp_min(1)
    truth, aligned = truth.clamp_min(low), aligned.clamp_min(low)
    ratio = torch.maximum(truth / aligned, aligned / truth)
    correlation = (centred * off).sum(1) / (spread * off.square().sum(1).clamp_min(1e-12)).sqrt()
    return {
        "abs_rel": ((aligned - truth).abs() / truth * told).sum(1) / count,
        "delta1": ((ratio < 1.25) * told).sum(1) / count,
        "correlation": correlation,
    }


def compare_keypoints(expected: Tensor, made: Tensor, *_: Any) -> Figures:
    """Share of keypoints whose peaks in heat maps (B, K, h, w) are within 0.05 of the larger side of the map."""
    width = expected.shape[-1]
    places = [
        torch.stack([peak // width, peak % width], -1) for peak in (m.flatten(2).argmax(-1) for m in (expected, made))
    ]
    distance = (places[0] - places[1]).double().norm(dim=-1) / max(expected.shape[-2:])
    return {"keypoints_near": (distance <= NEAR).double().mean(1), "distance": distance.mean(1)}


def compare_classes(expected: Tensor, made: Tensor, *_: Any) -> Figures:
    """Agreement of the best class of logits (B, C), and KL of the dense model's probabilities to the others."""
    return {
        "top1_agreement": (expected.argmax(1) == made.argmax(1)).double(),
        "kl": F.kl_div(made.log_softmax(1), expected.log_softmax(1), reduction="none", log_target=True).sum(1),
    }


def compare_pixels(expected: Tensor, made: Tensor, *_: Any) -> Figures:
    """Agreement of the best class of each pixel of logits (B, C, h, w), and its IoU over the dense model's classes."""
    truth, found = expected.argmax(1), made.argmax(1)
    ious = []
    for one, other in zip(truth, found, strict=True):
        classes = one.unique()
        hit = [((one == c) & (other == c)).sum() / ((one == c) | (other == c)).sum() for c in classes]
        ious.append(torch.stack(hit).mean())
    return {"pixel_agreement": (truth == found).double().mean((1, 2)), "iou": torch.stack(ious)}


def compare_masks(expected: Tensor, made: Tensor, *_: Any) -> Figures:
    """IoU of the masks that logits (B, h, w) above 0 make, 1 where both are empty; and their correlation."""
    truth, found = (each.flatten(1) > 0 for each in (expected, made))
    union = (truth | found).double().sum(1)
    centred, off = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (expected, made))
    iou = torch.where(union > 0, (truth & found).double().sum(1) / union.clamp_min(1), 1.0)
    return {"iou": iou, "correlation": F.cosine_similarity(centred, off, dim=1).double()}


def compare_segments(expected: Tensor, made: Tensor, outputs: dict[str, Tensor], others: dict[str, Tensor]) -> Figures:
    """As `compare_pixels`, of what masks (B, Q, h, w) and the classes of each say together, as in MaskFormer."""
    maps = []
    for masks, each in ((expected, outputs), (made, others)):
        classes = each["class_queries_logits"].softmax(-1)[..., :-1]
        maps.append(torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid()))
    return compare_pixels(*maps)


def compare_boxes(expected: Tensor, made: Tensor, outputs: dict[str, Tensor], others: dict[str, Tensor]) -> Figures:
    """IoU of the sure boxes (B, Q, 4: centre, width, height) with the one that overlaps most, and their scores."""
    from torchvision.ops import box_convert, box_iou

    ious, differences = [], []
    scores, their_scores = (_scores(each, expected) for each in (outputs, others))
    for i in range(len(expected)):
        sure = scores[i] >= min(SURE, scores[i].max().item())
        one, other = (box_convert(boxes[i], "cxcywh", "xyxy") for boxes in (expected, made))
        best, match = box_iou(one[sure], other).max(1)
        ious.append(best.mean())
        differences.append((scores[i][sure] - their_scores[i][match]).abs().mean())
    return {"matched_iou": torch.stack(ious), "score_difference": torch.stack(differences)}


def _scores(outputs: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """The best score of each box (B, Q, 4): (B, Q)."""
    logits = outputs.get("logits")
    if logits is None or logits.shape[:2] != boxes.shape[:2]:
        return boxes.new_ones(boxes.shape[:2])
    return logits.sigmoid().amax(-1)


def compare_directions(expected: Tensor, made: Tensor, *_: Any) -> Figures:
    """Cosine of the last axis of outputs (B, ..., D), the mean of each sample."""
    if expected.ndim == 1:
        return {"difference": (expected - made).abs()}
    cosine = F.cosine_similarity(expected, made, dim=-1).double()
    return {"cosine": cosine.flatten(1).mean(1) if cosine.ndim > 1 else cosine}


def _nearest(expected: Tensor, made: Tensor) -> float:
    """Share of images (n, D) whose nearest other image is the same by both embeddings."""
    found = []
    for each in (expected, made):
        near = F.normalize(each, dim=-1)
        found.append((near @ near.T).fill_diagonal_(-2).argmax(1))
    return (found[0] == found[1]).double().mean().item()
