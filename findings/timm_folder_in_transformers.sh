#!/usr/bin/env bash
# timm 1.0.31 with transformers 5.24.0: a folder that timm's save_for_hf writes is refused by transformers' Auto classes.
# timm writes num_classes at the top of config.json and once more under model_args; transformers passes both to one call.
# Seen: TypeError: … got multiple values for keyword argument 'num_classes'. Without the second one it loads.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "timm==1.0.31" "transformers==5.24.0" "torch==2.14.1"
"$folder/venv/bin/python" - <<'PY'
import json
import tempfile
from pathlib import Path

import timm
from transformers import AutoModelForImageClassification

folder = tempfile.mkdtemp()
timm.models.save_for_hf(timm.create_model("test_vit", num_classes=5), folder, safe_serialization=True)
try:
    AutoModelForImageClassification.from_pretrained(folder)
    raise SystemExit("It loads: this has changed.")
except TypeError as error:
    assert "num_classes" in str(error), error
    print("Refused:", error)
path = Path(folder, "config.json")
config = json.loads(path.read_text())
assert config["num_classes"] == config["model_args"].pop("num_classes") == 5
path.write_text(json.dumps(config))
AutoModelForImageClassification.from_pretrained(folder)
print("Without num_classes under model_args it loads.")
PY
