"""How near one output is to another, by what it is: depth, heat maps, boxes, classes, pixels or embeddings."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Figures = dict[str, Tensor]
"""Figures by name, one a sample, each (B,)."""

NEAR = 0.05
"""Keypoints are near each other within this share of the larger side of the map."""

SURE = 0.3
"""Boxes with at least this score are looked at, and the best one of each image."""

LEAST_DEPTH = 0.05
"""Depth below this share of an image's mean is left out of shares of it."""

FLAT = 1e-6
"""A depth that varies by no more than this share of its largest value is the same everywhere."""

Compare = Callable[[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]], Figures]


def figures_of(name: str, outputs: dict[str, Tensor]) -> Compare:
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
    """AbsRel, delta < 1.25 and correlation of depths (B, h, w), once scale and shift are fitted to the dense ones.

    They are no numbers where the dense model predicts no depth, or the same everywhere: all is equal to that once
    fitted.
    """
    truth, depth = expected.flatten(1).double(), made.flatten(1).double()
    centred, off = depth - depth.mean(1, keepdim=True), truth - truth.mean(1, keepdim=True)
    spread = centred.square().sum(1).clamp_min(1e-12)
    scale = (centred * off).sum(1) / spread
    aligned = centred * scale[:, None] + truth.mean(1, keepdim=True)
    # Where the dense model says next to nothing, as of the sky, a share of it says nothing.
    low = truth.abs().mean(1, keepdim=True).clamp_min(1e-12) * LEAST_DEPTH
    told = (truth > low).double()
    flat = truth.amax(1) - truth.amin(1) <= FLAT * truth.abs().amax(1)
    count = told.sum(1)
    silent = flat | (count == 0)
    truth, aligned = truth.clamp_min(low), aligned.clamp_min(low)
    ratio = torch.maximum(truth / aligned, aligned / truth)
    correlation = (centred * off).sum(1) / (spread * off.square().sum(1).clamp_min(1e-12)).sqrt()
    figures = {
        "abs_rel": ((aligned - truth).abs() / truth * told).sum(1) / count,
        "delta1": ((ratio < 1.25) * told).sum(1) / count,
        "correlation": correlation,
    }
    return {name: figure.masked_fill(silent, math.nan) for name, figure in figures.items()}


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


def nearest_agreement(expected: Tensor, made: Tensor) -> float:
    """Share of images (n, D) whose nearest other image is the same by both embeddings."""
    found = []
    for each in (expected, made):
        near = F.normalize(each, dim=-1)
        found.append((near @ near.T).fill_diagonal_(-2).argmax(1))
    return (found[0] == found[1]).double().mean().item()
