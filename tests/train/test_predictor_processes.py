"""Two processes on the CPU train one dense model together."""

from pathlib import Path

import pytest
from timm.models import save_for_hf

from tests.model.tiny_models import make_tosa, make_vit
from tests.train.test_processes import run_tosa
from tests.train.tiny_pairs import write_folder
from tosa_cli import save
from tosa_cli.hub.predictor import load_predictor

# Each leaves other weights without a gradient: the final norm, the class token's last steps, the whole encoder.
RUNS = ("--decoder dpt --model-ema", "--decoder newcrfs --eval-every 2", "--decoder linear --freeze-encoder")


@pytest.mark.parametrize("options", RUNS)
def test_two_processes_train_one_dense_model(tmp_path: Path, options: str) -> None:
    source = make_vit("test_vit", img_size=32, patch_size=8)
    save_for_hf(source, str(tmp_path / "dense"), safe_serialization=True)
    save(make_tosa(source, selector="similarity", bypass="nearest+affine"), tmp_path / "tosa")
    write_folder(tmp_path / "scenes", 20)
    command = f"finetune tosa --task depth {options} --data-dir scenes --decoder-dim 16 --epochs 2 -o depth --json"
    done = run_tosa(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"updates": 4') == 1  # 18 images, two processes of 4 a step, two epochs
    assert load_predictor(tmp_path / "depth").provenance.stage == "finetuned"
