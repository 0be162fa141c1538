"""The commands, one after the other, on models whose blocks are told where tokens stand."""

from pathlib import Path

import pytest
from timm.models import save_for_hf

from tests.model.families import make_family

from .conftest import Tosa


@pytest.mark.parametrize("family", ["DINOv3", "EVA-02", "BEiT", "relative positions"])
def test_a_folder_goes_the_whole_way(family: str, work: Path, tosa: Tosa) -> None:
    patch = 14 if family == "EVA-02" else 16
    model = make_family(family, img_size=4 * patch, num_classes=10)
    save_for_hf(model, "source", safe_serialization=True)
    report = tosa("inspect source --json").json
    assert report["convertible"] and report["depth"] == len(model.blocks)
    convert = "convert source -o made --layers 2,4 --keep-rate 0.6 --selector similarity --bypass nearest+affine"
    assert tosa(convert).code == 0
    assert tosa("distill made --data-dir photos -b 8 -j 0").code == 0
    assert 0 < tosa("flops made --json").json["reduction"] < 0.5
    measured = tosa("eval made --data-dir digits/validation --compare --json -b 8 -j 0").json
    assert measured["samples"] == 33 and {"top1", "top5"} <= set(measured["dense"])
    assert tosa("finetune made -o tuned --data-dir digits/train --epochs 1 -b 8 -j 0").code == 0
