#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.14.1: a DINOv2 calls attention without a mask, but with a mask of every place while
# torch.export traces it. In ONNX that mask becomes a Where and an IsNaN a layer; on a CPU they took 150 of 545 ms of a
# Depth Anything Small at 518 pixels in ONNX Runtime.
# Seen: no mask in 2 of 2 calls as it runs, a mask in 2 of 2 as it is traced; IsNaN and Where 2 times each in the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "torch==2.14.1" "onnx==1.23.2" "onnxscript==0.7.2"
"$folder/venv/bin/python" - <<'PY'
import collections

import torch
from torch.nn import functional
from transformers import Dinov2Config, Dinov2Model

model = Dinov2Model(
    Dinov2Config(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, image_size=28, patch_size=14)
).eval()
images = torch.randn(1, 3, 28, 28)

attention, masks = functional.scaled_dot_product_attention, []


def noting(*args, **kwargs):
    masks.append(args[3] if len(args) > 3 else kwargs.get("attn_mask"))
    return attention(*args, **kwargs)


with torch.no_grad():
    functional.scaled_dot_product_attention = noting
    model(images)
    functional.scaled_dot_product_attention = attention
    program = torch.export.export(model, (images,), strict=False)
    written = torch.onnx.export(program, dynamo=True, verbose=False)
calls = [node for node in program.graph.nodes if "scaled_dot_product_attention" in str(node.target)]
traced = [node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask") for node in calls]
kinds = collections.Counter(node.op_type for node in written.model.graph)
print(f"no mask in {masks.count(None)} of {len(masks)} calls as it runs")
print(f"a mask in {sum(mask is not None for mask in traced)} of {len(traced)} as it is traced")
print({kind: kinds[kind] for kind in ("IsNaN", "Where")})
assert masks == [None, None] and len(traced) == 2 and None not in traced, "This has changed."
assert kinds["IsNaN"] == kinds["Where"] == 2, "This has changed."
PY
