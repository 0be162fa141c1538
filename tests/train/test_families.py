"""Training and fitting follow the source's own stream where blocks are told of places."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.model.families import make_family
from tests.model.family_runs import images_of, read_softmax
from tests.model.tiny_models import make_tosa
from tests.train.tiny_runs import fit_one, read, run_distill, write_photos
from tosa_cli.config import TosaConfig
from tosa_cli.fit.budget import measure_curves
from tosa_cli.measure.oracle import with_oracle
from tosa_cli.tasks.features import FeaturesObjective
from tosa_cli.train.config import DistillConfig, TrainConfig
from tosa_cli.train.processes import make_accelerator

TOLD = ("EVA-02", "mixed rotation", "DINOv3", "BEiT, both biases", "shared relative positions, norm after")
"""Families whose blocks are told where tokens stand, in each of the ways there are."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.mark.parametrize("family", [*TOLD, "relative positions", "parallel attentions"])
@torch.no_grad()
def test_the_maps_to_learn_from_are_those_of_the_source(family: str) -> None:
    source: Any = make_family(family)
    images = images_of(source)
    logits = make_tosa(source, layers=(2, 4)).dense_logits(images, (1, 3, 4), "all")
    for module in source.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with read_softmax() as seen:
        source.forward_features(images)
    side_by_side = len(seen.found) // len(source.blocks)
    assert list(logits) == [1, 3, 4]
    for layer, read_logits in logits.items():
        expected = torch.cat(seen.found[(layer - 1) * side_by_side : layer * side_by_side], dim=1)
        assert torch.allclose(read_logits, expected, atol=1e-4)


@pytest.mark.parametrize("family", TOLD)
def test_calibration_brings_the_final_tokens_nearer_to_the_dense_models(family: str, photos: Path) -> None:
    model = make_tosa(make_family(family), layers=(1, 2, 4), selector="similarity", bypass="nearest+linear")
    config = DistillConfig(batch_size=8, workers=0)
    images = torch.cat([batch.images for batch in read(model, photos, config, None).batches(True)])
    cosines = []
    with torch.no_grad():
        dense = model.backbone.forward_features(images)
        cosines.append(F.cosine_similarity(model.forward_features(images), dense, dim=-1).mean().item())
        report = fit_one(model, photos, make_accelerator(config))
        cosines.append(F.cosine_similarity(model.forward_features(images), dense, dim=-1).mean().item())
    assert 1 - cosines[1] < 0.8 * (1 - cosines[0])
    assert all(0 < error < 1 for error in report.errors.values())


@pytest.mark.parametrize("family", TOLD)
def test_a_layer_that_skips_nothing_has_no_error(family: str, photos: Path) -> None:
    # The curve is measured against the source's own tokens: blocks that are told nothing would be far from them.
    model = make_tosa(make_family(family), layers=(2,))
    config = TosaConfig(layers=(2,), selector="similarity", bypass="nearest")
    images = read(model, photos, DistillConfig(batch_size=8, workers=0), None)
    curves = measure_curves(make_accelerator(TrainConfig()), model.backbone, config, images, keep_rates=(1.0, 0.4))
    assert len(curves) == 4
    for curve in curves:
        assert curve.errors[0] < 1e-5 < 1e-3 < curve.errors[1]


@pytest.mark.parametrize("family", TOLD)
def test_selectors_learn(family: str, photos: Path, tmp_path: Path) -> None:
    model = make_tosa(make_family(family), layers=(2, 4))
    report = run_distill(model, photos, tmp_path / "checkpoint", epochs=3, lr=1e-2)
    assert report.last_loss < report.first_loss


@pytest.mark.parametrize("family", TOLD)
def test_the_oracle_reads_the_errors_of_the_bypass(family: str) -> None:
    model = make_tosa(make_family(family), layers=(2, 4), selector="similarity", bypass="nearest+affine")
    images = images_of(model)
    with torch.no_grad():
        assert with_oracle(model)(images).isfinite().all()


REGISTERS = {"DINOv3": 4, "rotation, register": 1, "LayerScale, registers, average pooling": 1}


@pytest.mark.parametrize("family", sorted({*TOLD, "relative positions", *REGISTERS}))
def test_the_features_to_match_are_all_tokens_but_registers(family: str) -> None:
    model = make_tosa(make_family(family), layers=(2, 4))
    objective = FeaturesObjective(model, copy.deepcopy(model.backbone)).train()
    assert objective.num_class == model.num_prefix_tokens - REGISTERS.get(family, 0)
    assert objective(images_of(model), torch.zeros(2)).isfinite()
