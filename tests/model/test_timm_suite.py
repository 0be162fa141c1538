"""timm's own tests of all models, run on converted ones: they pass what dense ones pass, but for what `APART` names.

The tests are those of the installed timm, from its source distribution in the package index.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import timm
from timm.models import save_for_hf

from tosa_cli.workflow.save import save

from .families import make_family
from .tiny_models import make_tosa

FAMILIES = {
    "vit": "plain",
    "eva": "EVA-02",
    "beit": "BEiT, both biases",
    "relpos": "relative positions, class token",
}
"""One model of each family that converts."""

SETTINGS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "paper": {"layers": (2,), "keep_rate": 0.6},
    "matched": {
        "layers": (1, 2, 3),
        "keep_rate": 0.6,
        "selector": "similarity",
        "bypass": "nearest+affine",
        "neighbors": 4,
        "span": 2,
    },
    "calibrated": {"layers": (2, 3), "keep_rate": (0.9, 0.5), "selector": "ward", "bypass": "mean"},
}
"""The presets, for three layers: standard ones before and behind ToSA layers, a span of two, two in a row."""

TESTS = {
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_default_cfgs_non_std",
    "test_model_forward_features",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_torchscript",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
    "test_model_inference",
    "test_model_load_pretrained",
    "test_model_features_pretrained",
    "test_model_features_space2depth_reduction",
}
"""timm's tests of all models. Its others are for models that they name, none of which converts."""


class Apart(NamedTuple):
    """A test that is not run on some models, or fails on them."""

    settings: frozenset[str]
    says: str
    why: str


ALL, CONVERTED = frozenset(SETTINGS), frozenset(SETTINGS) - {"dense"}
NOT_RUN = "NOTSET"
NO_SCRIPT = "which tokens are computed is decided on the way, which TorchScript cannot read; `torch.jit.trace` can"
FROZEN = "selectors are frozen: only `distill` trains them"
NOT_OF_VITS = "timm leaves ViTs out"

APART = {
    "test_model_forward_torchscript": Apart(CONVERTED, "torch.jit.frontend.NotSupportedError", NO_SCRIPT),
    "test_model_forward_fx_torchscript": Apart(CONVERTED, "RuntimeError", NO_SCRIPT),
    "test_model_backward": Apart(frozenset({"paper"}), "No gradient for selectors", FROZEN),
    "test_model_backward_fx": Apart(frozenset({"paper"}), "No gradient for selectors", FROZEN),
    "test_model_inference": Apart(ALL, NOT_RUN, "compares with what lies on the Hub, of models that timm names"),
    "test_model_default_cfgs": Apart(ALL, NOT_RUN, f"{NOT_OF_VITS}: their form of it is `..._non_std`"),
    "test_model_forward_features": Apart(ALL, NOT_RUN, f"{NOT_OF_VITS}: theirs is `..._intermediates_features`"),
    "test_model_features_pretrained": Apart(ALL, NOT_RUN, f"{NOT_OF_VITS}: `test_model_load_pretrained` is run"),
    "test_model_features_space2depth_reduction": Apart(ALL, NOT_RUN, "of EfficientNets alone"),
}
"""What is not run, or fails, on which models, and why. All else has to pass."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with timm's file of tests."""
    folder = tmp_path_factory.mktemp("timm")
    package = f"timm=={timm.__version__}"
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "timm", package, "-d", str(folder)]
    fetch += ["--retries", "0", "--timeout", "15"]
    # pip asks the package for its metadata, with its build backend: one that is here is asked many times faster.
    for more in (["--no-build-isolation"], []):
        done = subprocess.run([*fetch, *more], capture_output=True, text=True)
        if done.returncode == 0:
            break
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        pytest.skip(f"offline: the source distribution of {package} cannot be had: {done.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith("/tests/test_models.py"))
        text = archive.extractfile(name)
        assert text is not None
        (folder / "suite").mkdir()
        (folder / "suite" / "test_models.py").write_bytes(text.read())
    return folder / "suite"


@pytest.fixture(scope="module")
def said(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What timm's tests say of models of all families and settings that do not pass, by test and model."""
    folders = tmp_path_factory.mktemp("folders")
    for setting, settings in SETTINGS.items():
        for name, family in FAMILIES.items():
            source, folder = make_family(family, num_classes=10, depth=3), folders / folder_name(setting, name)
            if settings is None:
                save_for_hf(source, folder, safe_serialization=True)
            else:
                save(make_tosa(source, **settings), folder)
    return run_suite(suite, folders, folders.with_name("report.xml"))


def folder_name(setting: str, family: str) -> str:
    return f"vit_our_{setting}_{family}"


def run_suite(suite: Path, folders: Path, report: Path) -> dict[tuple[str, str], str]:
    """Run timm's tests on folders: what each says that did not pass, by test and model; of the others nothing."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TIMM_SUITE_FOLDERS": str(folders)}
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.model.timm_suite_plugin", "-p", "no:cacheprovider",
         "-W", "ignore", "--tb", "native", "-c", os.devnull, "--rootdir", str(suite), "--junitxml", str(report),
         str(suite / "test_models.py")],
        env=environment, cwd=suite, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    said = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, parameters = case.attrib["name"].rstrip("]").partition("[")
        model = parameters.split("-")[-1]
        said[test, model] = NOT_RUN if model == NOT_RUN else "".join(child.get("message", "") for child in case)
    return said


@pytest.mark.parametrize("setting", SETTINGS)
def test_timms_tests_of_all_models_pass_but_for_those_apart(said: dict[tuple[str, str], str], setting: str) -> None:
    expected = {test: APART[test].says for test in TESTS if test in APART and setting in APART[test].settings}
    models = {folder_name(setting, name) for name in FAMILIES}
    of_these = {place: message for place, message in said.items() if place[1] in (NOT_RUN, *models)}
    assert set(of_these) == {
        (test, model) for test in TESTS for model in ({NOT_RUN} if expected.get(test) == NOT_RUN else models)
    }
    wrong = {
        place: message
        for place, message in of_these.items()
        if (not message or expected[place[0]] not in message if place[0] in expected else message)
    }
    assert not wrong
