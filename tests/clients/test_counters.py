"""torchinfo, fvcore and ptflops beside `tosa flops`: what each counts of a converted model and of a dense one."""

from typing import Any

import pytest
import torch

from tosa_cli.model.flops import count_flops
from tosa_cli.model.tosa_vit import TosaViT

SIZE = (3, 160, 160)


def test_torchinfo_counts_the_same_parameters(model: TosaViT) -> None:
    torchinfo = pytest.importorskip("torchinfo")
    found = torchinfo.summary(model, input_size=(1, *SIZE), verbose=0)
    # Those of a layer whose maps a selector reads are counted twice.
    twice = model.config.reads_maps
    assert found.total_params > count_flops(model).params if twice else found.total_params == count_flops(model).params


def _fvcore(model: Any) -> float:
    fvcore = pytest.importorskip("fvcore.nn")
    return fvcore.FlopCountAnalysis(model, torch.zeros(1, *SIZE)).unsupported_ops_warnings(False).total() / 1e9


def _ptflops(model: Any) -> float:
    ptflops = pytest.importorskip("ptflops")
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "aten", "verbose": False}
    return ptflops.get_model_complexity_info(model, SIZE, **options)[0] / 1e9


@pytest.mark.parametrize("count", [_fvcore, _ptflops], ids=["fvcore", "ptflops"])
def test_counters_see_the_saving(model: TosaViT, count: Any) -> None:
    report = count_flops(model)
    saved = 1 - count(model) / count(model.backbone)
    assert saved == pytest.approx(report.reduction, abs=0.06)
