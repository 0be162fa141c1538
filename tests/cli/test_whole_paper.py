"""The preset of the paper goes all the way with a whole model: its selectors are trained as an encoder's are."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as hf

from tests.cli.conftest import Tosa
from tests.export.conftest import look_up_once  # noqa: F401
from tests.model.whole_models import BACKBONE
from tests.sentences import fragments
from tests.train.tiny_runs import write_photos

TRAIN = "--data-dir photos -b 4 -j 0 --device cpu"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `photos`, and `whole`, a classifier with its processor."""
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    write_classifier(4)
    return tmp_path


def write_classifier(depth: int) -> None:
    torch.manual_seed(0)
    model = hf.Dinov2ForImageClassification(hf.Dinov2Config(**{**BACKBONE, "num_hidden_layers": depth}))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained("whole")
    hf.BitImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False).save_pretrained("whole")


def test_the_paper_goes_all_the_way(tosa: Tosa) -> None:
    write_classifier(12)
    told = tosa("convert whole --whole --preset paper --keep-rate 0.5 -o cheap")
    assert fragments.TOSA_DISTILL_DATA_DIR_PHOTOS in told.err
    done = tosa(f"distill cheap --preset paper {TRAIN} --json")
    found = done.json["held_out"]["layers"]
    assert [row["layer"] for row in found] == [2, 4, 6, 8, 10]
    assert sum(row["kl_after"] for row in found) < sum(row["kl_before"] for row in found)
    distilled = hf.AutoModelForImageClassification.from_pretrained("cheap").state_dict()
    done = tosa(f"finetune cheap --objective features --epochs 1 {TRAIN} --json")
    assert done.code == 0, done.err
    model = hf.AutoModelForImageClassification.from_pretrained("cheap").eval()
    changed = {name for name, value in model.state_dict().items() if not value.equal(distilled[name])}
    assert not any(".tosa." in name for name in changed)
    assert tosa("eval cheap --data-dir photos --max-samples 2 --json").json["samples"] == 2
    assert tosa("flops cheap --json").json["selector_gmacs"] > 0
    plan = tosa("push cheap me/cheap --dry-run").out
    assert "model.safetensors" in plan
    card = Path("cheap/README.md").read_text()
    assert fragments.TOSA_DISTILL in card and fragments.CHOSEN_BY_ATTENTION in card


def test_selectors_that_training_made_worse_are_told(tosa: Tosa) -> None:
    tosa("convert whole --whole --layers 2 --selector attention --bypass linear -o cheap")
    fine = tosa(f"distill cheap --epochs 1 {TRAIN} -o fine")
    card = Path("fine/README.md").read_text()
    assert fine.code == 0 and fragments.THE_SELECTORS_ARE_WORSE_THAN not in fine.err + card
    assert fragments.KL_DIVERGENCE_TO_THE_TRUE in card and fragments.THE_FIT_WAS in card
    worse = tosa(f"distill cheap --epochs 1 --lr 1e9 {TRAIN} -o worse")
    for told in (worse.err, Path("worse/README.md").read_text()):
        assert fragments.THE_SELECTORS_ARE_WORSE_THAN in told and fragments.WITH_A_SMALLER_LR in told


def test_a_trained_selector_is_in_the_exported_file(tosa: Tosa) -> None:
    tosa("convert whole --whole --layers 3 --keep-rate 0.5 -o cheap")
    tosa(f"distill cheap --epochs 1 {TRAIN}")
    report = json.loads(tosa("export cheap -o whole.onnx --json").out)
    assert report["difference"] < 1e-4
    model = hf.AutoModelForImageClassification.from_pretrained("cheap").eval()
    images = torch.randn(2, 3, 56, 56)
    (logits,) = onnxruntime.InferenceSession("whole.onnx").run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).logits.numpy(), atol=1e-4)


def test_finetuning_tells_of_selectors_that_were_not_trained(tosa: Tosa) -> None:
    tosa("convert whole --whole --layers 3 --keep-rate 0.5 -o cheap")
    finetune = f"finetune cheap --objective features --epochs 1 {TRAIN}"
    assert fragments.THE_SELECTORS_WERE_NOT_TRAINED_RUN in tosa(f"{finetune} -o early").err
    tosa(f"distill cheap --epochs 1 {TRAIN}")
    done = tosa(f"{finetune} -o late")
    assert done.code == 0 and fragments.NOT_TRAINED not in done.err
    refused = tosa(f"{finetune} -o one --max-samples 1")
    assert "1 image of photos would be read" in refused.err and not Path("one").exists()


def test_settings_that_a_whole_model_does_not_read_are_refused(tosa: Tosa) -> None:
    tosa("convert whole --whole --layers 3 -o cheap")
    Path("mine.yaml").write_text("name: mine\ndescription: mine\ndistill:\n  val_dir: photos\n")
    for options in ("--val-dir photos", "--recipe mine.yaml"):
        refused = tosa(f"distill cheap --data-dir photos {options}")
        assert refused.code == 2 and fragments.LEAVE_OUT_VAL_DIR in refused.err
    tosa("convert whole --whole --layers 3 --selector previous -o ready")
    assert fragments.NOTHING_TO_TRAIN in tosa("distill ready --data-dir photos").err
