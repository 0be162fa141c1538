#!/usr/bin/env bash
# onnx 1.23.2 with numpy 2.4.6: its reference evaluator reads GatherElements along rows of 64 numbers and more wrongly: it
# takes the first index of each row alone, and cannot bring what it found to the shape of the result.
# GatherND with batch_dims=1 says the same for rows of numbers, and is read rightly.
# Seen: right for 63 numbers a row, "cannot reshape array of size 2 into shape (2,64)" for 64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "onnx==1.23.2" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def gathered(count):
    values = np.arange(2 * count, dtype=np.float32).reshape(2, count)
    indices = np.tile(np.arange(count)[::-1], (2, 1)).astype(np.int64)
    graph = helper.make_graph(
        [helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, count]),
            helper.make_tensor_value_info("i", TensorProto.INT64, [2, count]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, count])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    try:
        (found,) = ReferenceEvaluator(model).run(None, {"x": values, "i": indices})
    except ValueError as error:
        return str(error)
    return bool((found == values[:, ::-1]).all())


results = {count: gathered(count) for count in (63, 64)}
print(results)
assert results[63] is True and "cannot reshape" in str(results[64]), "This has changed."
PY
