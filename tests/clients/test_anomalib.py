"""anomalib: its feature extractor on a converted folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tosa_cli.model.tosa_vit import TosaViT

extractors: Any = pytest.importorskip("anomalib.models.components.feature_extractors")


@torch.no_grad()
def test_its_feature_extractor_gives_the_models_features(folder: Path, model: TosaViT, images: Tensor) -> None:
    extractor = extractors.TimmFeatureExtractor(f"local-dir:{folder}", layers=[2, 4], output_fmt="NLC")
    features = extractor(images)
    expected = model.forward_intermediates(images, [2, 4], norm=True, output_fmt="NLC", intermediates_only=True)
    assert isinstance(extractor.feature_extractor, TosaViT) and len(features) == 2
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(features.values(), expected, strict=True))
