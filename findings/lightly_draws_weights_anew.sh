#!/usr/bin/env bash
# lightly 1.6.0: MaskedVisionTransformerTIMM draws the weights of the ViT that it is given anew unless two options say skip.
# A pretrained ViT loses its weights by being wrapped, in place, without a word.
# Seen: the tokens of the ViT itself differ after the wrapper was made; with both options at "skip" they do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "lightly==1.6.0" "timm==1.0.31" "torch==2.14.1"
"$folder/venv/bin/python" - <<'PY'
import timm
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM

torch.manual_seed(0)
images = torch.randn(1, 3, 160, 160)
for options in ({}, {"weight_initialization": "skip", "pos_embed_initialization": "skip"}):
    vit = timm.create_model("test_vit").eval()
    for weight in vit.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # as if it was trained
    with torch.no_grad():
        before = vit.forward_features(images)
        MaskedVisionTransformerTIMM(vit=vit, **options)
        changed = not torch.equal(vit.eval().forward_features(images), before)
    print(options, "changed" if changed else "the same")
    assert changed == (not options), "This has changed."
PY
