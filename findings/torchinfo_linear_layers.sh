#!/usr/bin/env bash
# torchinfo 1.8.0: multiply-adds of a linear layer are counted by the first dimension of its input alone.
# The same 100 rows count 100 times as much when they are given as (100, 64) as when they are given as (1, 100, 64), so
# that transformers, whose layers take (batch, tokens, width), come out far too small.
# Seen: 409600 for (100, 64), 4096 for (1, 100, 64), for a layer of 64 x 64 without a bias.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torchinfo==1.8.0" "torch==2.14.1" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PY'
import torch
import torchinfo

layer = torch.nn.Linear(64, 64, bias=False)
counts = {size: torchinfo.summary(layer, input_size=size, verbose=0).total_mult_adds for size in ((100, 64), (1, 100, 64))}
print(counts)
assert counts == {(100, 64): 409600, (1, 100, 64): 4096}, "This has changed."
PY
