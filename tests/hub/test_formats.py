"""Every folder that a release wrote is loadable later, and computes what it did then."""

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import tosa_cli
from tests.fixtures.write_format import DATA, MODELS, run
from tosa_cli.provenance import FORMAT_VERSION

FOLDERS = sorted(path for path in DATA.glob("format_*") if path.is_dir())


def test_each_format_so_far_has_its_folders() -> None:
    wanted = {f"format_{version}_{name}" for version in range(1, FORMAT_VERSION + 1) for name in MODELS}
    missing = sorted(wanted - {folder.name for folder in FOLDERS})
    assert not missing, f"run `python -m tests.fixtures.write_format` and commit what it writes: {', '.join(missing)}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_of_any_format_loads_and_computes_what_it_did(folder: Path) -> None:
    expected = load_file(folder.with_suffix(".safetensors"))
    images = expected.pop("images")
    loaded = tosa_cli.load(folder)
    by_timm: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for model in (loaded, by_timm):
        outputs = run(model, images)
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            if value.is_floating_point():
                assert torch.allclose(outputs[name], value, atol=1e-4, rtol=1e-4), name
            else:
                assert torch.equal(outputs[name], value), name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_of_any_format_keeps_its_provenance_and_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    model = tosa_cli.load(folder)
    version = re.search(r"format_(\d+)_", folder.name)
    assert version is not None and model.provenance.format_version == int(version.group(1))
    assert model.provenance.stage == "distilled" and set(model.provenance.steps) == {"convert", "distill"}
    again = tosa_cli.load(tosa_cli.save(model, tmp_path / "again"))
    assert again.provenance.format_version == FORMAT_VERSION
    assert again.config == model.config and again.provenance.steps == model.provenance.steps
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
