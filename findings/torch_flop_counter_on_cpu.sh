#!/usr/bin/env bash
# torch 2.14.1: FlopCounterMode counts nothing for scaled_dot_product_attention on a CPU, without a word.
# On the meta device the same call is counted, so that one model has two figures.
# Seen: 0 on cpu, 640000 on meta, for queries, keys and values of (1, 4, 50, 16).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.14.1"
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

counts = {}
for device in ("cpu", "meta"):
    x = torch.empty(1, 4, 50, 16, device=device)
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(x, x, x)
    counts[device] = counter.get_total_flops()
print(counts)
assert counts == {"cpu": 0, "meta": 2 * 2 * 4 * 50 * 50 * 16}, "This has changed."
PY
