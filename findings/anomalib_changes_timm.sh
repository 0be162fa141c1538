#!/usr/bin/env bash
# anomalib 2.7.0: making a TimmFeatureExtractor for one ViT changes what timm's other ViTs compute in the same process.
# It puts another function in the place of timm's that resamples position embeddings, for all models and for good.
# Seen: logits of a ViT of timm, made before and never given to anomalib, differ on images of another size by 0.11 of 45.6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "anomalib==2.7.0" "timm==1.0.31" "torch==2.14.1"
"$folder/venv/bin/python" - <<'PY'
import timm
import torch
from anomalib.models.components.feature_extractors import TimmFeatureExtractor

torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", depth=2, dynamic_img_size=True).eval()
torch.nn.init.normal_(vit.pos_embed)
torch.nn.init.normal_(vit.head.weight)
images = torch.randn(1, 3, 160, 160)
with torch.no_grad():
    before = vit(images)
    assert torch.equal(vit(images), before)
    TimmFeatureExtractor("vit_tiny_patch16_224", layers=["blocks.1"], pre_trained=False)
    difference = (vit(images) - before).abs().max().item()
print("largest difference of logits:", difference, "of", before.abs().max().item())
assert difference > 0.01, "This has changed."
PY
