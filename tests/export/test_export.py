"""What is written runs elsewhere and computes what the model does."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from PIL import Image

from tests.model.families import make_family
from tests.model.tiny_models import make_images, make_tosa
from tests.model.whole_models import depth_anything
from tests.sentences import fragments
from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, DataError
from tosa_cli.export import export as export_module
from tosa_cli.export import onnx_file
from tosa_cli.export.check import CheckReport, Run, check_export
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.export import export_model
from tosa_cli.export.report import ExportReport
from tosa_cli.export.whole import write_whole
from tosa_cli.measure import speed
from tosa_cli.methods import BYPASSES, SELECTORS
from tosa_cli.model.tosa_vit import TosaViT

from .exported import images_of, run_onnx, trace_once
from .tiny import shortest_tosa, tiny_tosa

SETTINGS: list[dict[str, Any]] = [
    {},
    {"selection": "per-head", "query_rows": "all"},
    {"selector": "similarity", "bypass": "nearest+linear"},
    {"selector": "probe", "bypass": "linear", "source": "test_vit2"},
    {"selector": "ward", "bypass": "mean"},
]

EVALUATED: list[dict[str, Any]] = [
    {"selector": "ward", "bypass": "mean", "selection": "shared"},
    {"selector": "similarity", "bypass": "identity", "selection": "shared"},
]


def every_setting() -> list[dict[str, Any]]:
    """Selectors, bypasses and kinds of selection that go together."""
    found = []
    for selector in SELECTORS:
        for bypass in BYPASSES:
            for selection in ("shared", "per-head"):
                settings = {"selector": selector, "bypass": bypass, "selection": selection}
                try:
                    TosaConfig(layers=(2,), **settings)  # type: ignore[arg-type]
                except ConfigError:
                    continue
                found.append(settings)
    return found


def keep_runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The files that `export_model` reads back to compare them, each as it calls it: reading takes long too."""
    runs: list[Run] = []

    def check(model: TosaViT, exported: Run, *args: Any, **settings: Any) -> CheckReport:
        runs.append(exported)
        return check_export(model, exported, *args, **settings)

    monkeypatch.setattr(export_module, "check_export", check)
    return runs


# ---------------------------------------------------------------- ONNX


@torch.no_grad()
def test_an_onnx_file_computes_what_the_model_does_for_any_number_of_images(
    plain: tuple[TosaViT, Path, ExportReport],
) -> None:
    model, path, report = plain
    for count in (1, 2, 5):
        images = images_of(count)
        outputs, tokens = run_onnx(path, images), model.forward_features(images)
        assert list(outputs) == report.outputs == ["logits", "last_hidden_state", "pooler_output"]
        assert torch.allclose(outputs["logits"], model(images), atol=1e-4)
        assert torch.allclose(outputs["last_hidden_state"], tokens, atol=1e-4)
        assert torch.allclose(outputs["pooler_output"], model.forward_head(tokens, pre_logits=True), atol=1e-4)


def operations(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def test_attention_is_written_as_softmax_alone(plain: tuple[TosaViT, Path, ExportReport], tmp_path: Path) -> None:
    # A mask of every place, as transformers makes while a model is traced, costs more than the attention.
    _, path, _ = plain
    dense, whole = tmp_path / "dense.onnx", tmp_path / "whole.onnx"
    block = shortest_tosa(selector="probe").backbone
    onnx_file.write_onnx(block, dense, ["logits"], images=images_of(1), dynamic_batch=False, opset=20)
    depth = depth_anything().eval()
    write_whole(depth, whole, batch_size=1, opset=20, shape=(3, 56, 56))
    for file in (path, dense, whole):
        assert "Softmax" in operations(file) and not operations(file) & {"IsNaN", "Where"}, file.name


def test_an_onnx_file_says_where_it_comes_from_and_what_to_feed_it(plain: tuple[TosaViT, Path, ExportReport]) -> None:
    model, path, report = plain
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    props = {prop.key: prop.value for prop in proto.metadata_props}
    assert proto.producer_name == "tosa" and props["model_name"] == "tiny"
    assert json.loads(props["img_size"]) == [32, 32] and json.loads(props["mean"]) == list(model.pretrained_cfg["mean"])
    assert json.loads(props["class_names"])[3] == "class 3"
    assert props["crop_mode"] == "center" and json.loads(props["free_dimensions"]) == ["batch"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {"std", "interpolation", "crop_pct", "license"} - set(props) <= {"license"}
    assert TosaConfig.from_dict(json.loads(props["tosa_config"])) == model.config
    assert [node.name for node in proto.graph.input] == ["pixel_values"]
    assert report.inputs == {"pixel_values": ["batch", 3, 32, 32]} and report.opset == 20
    assert {entry.version for entry in proto.opset_import if not entry.domain} == {20}


def test_the_report_tells_on_what_the_file_was_compared(plain: tuple[TosaViT, Path, ExportReport]) -> None:
    check = plain[2].check
    assert check.images == 8 == check.same_choices + check.tied_choices and check.batch_sizes == (1, 3, 4)
    assert check.same_difference is not None and check.same_difference < check.atol == 1e-4
    assert list(plain[1].parent.iterdir()) == [plain[1]]
    assert plain[2].size_mb == plain[1].stat().st_size / 1e6


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_a_file_for_a_fixed_batch_takes_that_number_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, path = shortest_tosa(**settings), tmp_path / "model.onnx"
    report = export_model(model, path, ExportConfig(batch_size=3))
    assert report.inputs["pixel_values"][0] == 3 and report.check.batch_sizes == (3, 3, 3)
    assert torch.allclose(run_onnx(path, images_of(3))["logits"], model(images_of(3)), atol=1e-4)
    with pytest.raises(Exception, match=fragments.INVALID_DIMENSIONS):
        run_onnx(path, images_of(2))


@torch.no_grad()
@pytest.mark.parametrize("source", ["test_vit3", "test_vit4"])
def test_every_kind_of_test_model_exports_with_any_batch(tmp_path: Path, source: str) -> None:
    settings: dict[str, Any] = {"selector": "similarity", "bypass": "nearest+affine", "layers": (1, 2), "span": 2}
    model, path = tiny_tosa(source, **settings), tmp_path / "m.onnx"
    export_model(model, path)
    assert torch.allclose(run_onnx(path, images_of(5))["logits"], model(images_of(5)), atol=1e-4)


@pytest.mark.parametrize("family", ["EVA-02", "mixed rotation", "BEiT, both biases", "relative positions, class token"])
def test_families_that_are_told_of_places_export_with_any_batch(tmp_path: Path, family: str) -> None:
    model, path = make_tosa(make_family(family, num_classes=7, depth=2), layers=(2,)), tmp_path / "model.onnx"
    images = make_images(5, size=model.patch_embed.img_size)
    check = export_model(model, path).check
    assert check.images == check.same_choices + check.tied_choices
    assert run_onnx(path, images)["logits"].shape == model(images).shape


def test_a_model_without_a_head_gives_tokens_and_pooled_features(tmp_path: Path) -> None:
    model, path = shortest_tosa(num_classes=0, in_chans=1), tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="--outputs"):
        export_model(model, path, ExportConfig(outputs=("logits",)))
    report = export_model(model, path, ExportConfig(opset=18))
    assert report.outputs == ["last_hidden_state", "pooler_output"] and report.inputs["pixel_values"][1] == 1


@torch.no_grad()
@pytest.mark.parametrize("settings", every_setting(), ids=lambda settings: "-".join(settings.values()))
def test_every_selector_exports_with_every_bypass_and_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    model = shortest_tosa(**settings)
    trace_once(monkeypatch, model)
    runs = keep_runs(monkeypatch)
    for format in ("pt2", "onnx"):  # what ONNX has no operation for is changed in what was traced
        check = export_model(model, tmp_path / f"model.{format}", ExportConfig(format=format)).check  # type: ignore[arg-type]
        assert check.images == check.same_choices + check.tied_choices
        assert check.random == (settings["selector"] == "random")
        for count in () if check.random else (1, 5):
            assert torch.allclose(runs[-1](images_of(count))["logits"], model(images_of(count)), atol=1e-4)
    assert len(runs) == 2
    if settings in EVALUATED:  # onnx comes with an evaluator of its own
        found = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(["logits"], {"pixel_values": images_of(2).numpy()})
        assert torch.allclose(torch.from_numpy(found[0]), model(images_of(2)), atol=1e-4)


def test_random_selection_is_compared_given_the_tokens_it_selected(tmp_path: Path) -> None:
    check = export_model(shortest_tosa(selector="random"), tmp_path / "model.onnx").check
    assert check.random and check.tied_difference is not None and check.tied_difference < 1e-4
    assert check.tied_difference_own is not None and check.tied_difference_own > 1e-3


# ---------------------------------------------------------------- torch.export


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS[1], SETTINGS[3]], ids=str)
def test_a_pt2_file_loads_without_tosa_and_computes_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, path = shortest_tosa(**settings).train(), tmp_path / "model.pt2"
    report = export_model(model, path, ExportConfig(format="pt2"), name="tiny")
    assert model.training and report.runtime.startswith("torch ") and report.opset is None
    more = {"metadata.json": ""}
    loaded = torch.export.load(path, extra_files=more).module()
    for count in (1, 5):
        assert torch.allclose(loaded(images_of(count))["logits"], model.eval()(images_of(count)), atol=1e-4)
    assert json.loads(more["metadata.json"])["model_name"] == "tiny"


# ---------------------------------------------------------------- int8


@pytest.mark.usefixtures("translates_once")
def test_int8_is_smaller_and_tells_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    path = tmp_path / "model.onnx"
    report = export_model(tiny_tosa(), path, ExportConfig(quantize="int8")).quantized
    assert report is not None and report.size_mb < 0.6 * report.float32_size_mb
    assert report.size_mb == pytest.approx(path.stat().st_size / 1e6, rel=0.05)
    agreement = report.agreement
    assert 0.9 < agreement.cosine["logits"] < 1 and agreement.max_difference["logits"] > 1e-5
    assert agreement.top1 is not None and 0 <= agreement.top1 <= 1 and 0.5 < agreement.same_tokens <= 1
    assert report.speedup_min <= report.speedup <= report.speedup_max and report.images == 32
    proto = onnx.load(path)
    assert "MatMulInteger" in {node.op_type for node in proto.graph.node}
    assert {prop.key: prop.value for prop in proto.metadata_props}["quantization"] == "int8, dynamic"
    assert [output.name for output in proto.graph.output] == ["logits"]


@pytest.mark.parametrize("settings", [SETTINGS[2], SETTINGS[4]], ids=str)
def test_static_int8_takes_its_ranges_from_photos_and_chooses_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = torch.randint(0, 255, (40, 40, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{number}.png")
    model, path = tiny_tosa(**settings), tmp_path / "model.onnx"
    config = ExportConfig(quantize="static", data_dir=str(tmp_path / "photos"), max_samples=3)
    report = export_model(model, path, config).quantized
    assert report is not None and report.size_mb < 0.7 * report.float32_size_mb
    rows = {(row.tokens, row.dtype): row.cosine["logits"] for row in report.rows}
    assert rows["dense", "float32"] == pytest.approx(1, abs=1e-6) and 0.9 < rows["dense", "int8"] < 1
    assert rows["converted", "int8"] > 0.9 and rows["converted", "int8"] != rows["converted", "float32"]
    graph = onnx.load(path).graph
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    quantised = [
        node for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and made.get(node.input[1], node).op_type == "DequantizeLinear"
    ]  # fmt: skip
    # Of each block the projections of queries, keys and values and of the attention's output, and two of the MLP.
    assert len(quantised) >= 2 * 4
    assert all(weights.intersection(made[node.input[1]].input) for node in quantised)
    with pytest.raises(DataError, match=fragments.ONE_BATCH_IS_8):
        export_model(model, path, dataclasses.replace(config, batch_size=8), overwrite=True)
