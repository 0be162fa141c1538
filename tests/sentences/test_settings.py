"""What is said of a wrong value of a setting, word for word, in one long table: a row a value."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tosa_cli.config import TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.errors import TosaError
from tosa_cli.export.config import ExportConfig
from tosa_cli.measure.config import EvalConfig
from tosa_cli.recipe import load_recipe
from tosa_cli.settings import Settings, check_keys
from tosa_cli.task import TaskConfig
from tosa_cli.train.config import FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig

SETTINGS: list[tuple[type[Settings], dict[str, Any], str]] = [
    (TosaConfig, {"layers": ()}, "No ToSA layer was given: name at least one, as in --layers 2,4,6."),
    (TosaConfig, {"layers": (0,)}, "Layer 0 was given, but layers are whole numbers from 1 up."),
    (TosaConfig, {"layers": (-2,)}, "Layer -2 was given, but layers are whole numbers from 1 up."),
    (TosaConfig, {"layers": (2.0,)}, "Layer 2.0 was given, but layers are whole numbers from 1 up."),
    (TosaConfig, {"layers": (True,)}, "Layer True was given, but layers are whole numbers from 1 up."),
    (TosaConfig, {"layers": ("2",)}, "Layer '2' was given, but layers are whole numbers from 1 up."),
    (
        TosaConfig,
        {"layers": (1, 3)},
        "Layer 1 cannot be a ToSA layer: its selector needs a standard layer before it. Start at layer 2.",
    ),
    (
        TosaConfig,
        {"layers": (2, 3)},
        "Layers 2 and 3 are adjacent, but a ToSA layer needs a standard layer before it. Leave one of them out.",
    ),
    (
        TosaConfig,
        {"layers": (2, 4, 5, 8)},
        "Layers 4 and 5 are adjacent, but a ToSA layer needs a standard layer before it. Leave one of them out.",
    ),
    (TosaConfig, {"layers": (2, 4, 4)}, "Layer 4 was given twice: name each ToSA layer once."),
    (TosaConfig, {"layers": (4, 2)}, "Layers must be in rising order, not 4,2."),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": 0},
        "The keep rate of layer 2 is 0, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": -0.5},
        "The keep rate of layer 2 is -0.5, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": 1.01},
        "The keep rate of layer 2 is 1.01, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": 80},
        "The keep rate of layer 2 is 80, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": math.nan},
        "The keep rate of layer 2 is nan, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": math.inf},
        "The keep rate of layer 2 is inf, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": True},
        "The keep rate of layer 2 is True, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": (0.5, 1.5)},
        "The keep rate of layer 4 is 1.5, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": (0.5, "0.5")},
        "The keep rate of layer 4 is '0.5', but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": (0.5, 0.5, 0.5)},
        "3 keep rates were given for 2 ToSA layers: give one for all, or one a layer.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": (0.5,)},
        "1 keep rates were given for 2 ToSA layers: give one for all, or one a layer.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "keep_rate": ()},
        "0 keep rates were given for 2 ToSA layers: give one for all, or one a layer.",
    ),
    (TosaConfig, {"layers": [2, 4], "query_rows": 0}, "query_rows must be 'all' or a number from 1 up, not 0."),
    (TosaConfig, {"layers": [2, 4], "query_rows": -1}, "query_rows must be 'all' or a number from 1 up, not -1."),
    (TosaConfig, {"layers": [2, 4], "query_rows": 1.5}, "query_rows must be 'all' or a number from 1 up, not 1.5."),
    (TosaConfig, {"layers": [2, 4], "query_rows": True}, "query_rows must be 'all' or a number from 1 up, not True."),
    (
        TosaConfig,
        {"layers": [2, 4], "query_rows": "some"},
        "query_rows must be 'all' or a number from 1 up, not 'some'.",
    ),
    (TosaConfig, {"layers": [2, 4], "query_rows": None}, "query_rows must be 'all' or a number from 1 up, not None."),
    (TosaConfig, {"layers": [2, 4], "neighbors": 0}, "neighbors must be 1 or more, not 0."),
    (TosaConfig, {"layers": [2, 4], "neighbors": -3}, "neighbors must be 1 or more, not -3."),
    (TosaConfig, {"layers": [2, 4], "neighbors": 1.5}, "neighbors must be a whole number, not 1.5."),
    (TosaConfig, {"layers": [2, 4], "neighbors": True}, "neighbors must be a whole number, not True."),
    (TosaConfig, {"layers": [2, 4], "neighbors": None}, "neighbors must be a whole number, not None."),
    (TosaConfig, {"layers": [2, 4], "span": 0}, "span must be 1 or more, not 0."),
    (TosaConfig, {"layers": [2, 4], "span": 2.0}, "span must be a whole number, not 2.0."),
    (
        TosaConfig,
        {"layers": [2, 4], "span": 2},
        "The selector 'attention' chooses anew in each ToSA layer, so no layers share a choice: leave out "
        "--span, or use --selector similarity.",
    ),
    (
        TosaConfig,
        {"layers": (1, 2), "selector": "similarity", "span": 2, "keep_rate": (0.9, 0.8)},
        "Layers 1 and 2 share one choice of tokens (span 2), so they need one keep rate, not 0.9 and 0.8.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selector_kernel": 2},
        "selector_kernel must be odd and positive (1, 3, 5, ...), not 2.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selector_kernel": 0},
        "selector_kernel must be odd and positive (1, 3, 5, ...), not 0.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selector_kernel": -1},
        "selector_kernel must be odd and positive (1, 3, 5, ...), not -1.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selector_kernel": 3.0},
        "selector_kernel must be odd and positive (1, 3, 5, ...), not 3.0.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selector": "atention"},
        "selector must be one of: attention, similarity, ward, probe, previous, random; not 'atention'.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selection": "per_head"},
        "selection must be one of: shared, per-head; not 'per_head'.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "bypass": "zero"},
        "bypass must be one of: identity, linear, nearest, nearest+affine, nearest+linear, mean; not 'zero'.",
    ),
    (
        TosaConfig,
        {"layers": [2, 4], "selector": None},
        "selector must be one of: attention, similarity, ward, probe, previous, random; not None.",
    ),
    (
        TosaConfig,
        {"layers": [2], "keep_rat": 0.5},
        "Unknown setting 'keep_rat'. Did you mean 'keep_rate'? Valid: bypass, keep_rate, layers, "
        "neighbors, query_rows, selection, selector, selector_kernel, span.",
    ),
    (
        TosaConfig,
        {"layers": [2], "colour": "red"},
        "Unknown setting 'colour'. Valid: bypass, keep_rate, layers, neighbors, query_rows, selection, "
        "selector, selector_kernel, span.",
    ),
    (
        TosaConfig,
        {"keep_rate": 0.5},
        "The setting 'layers' is missing: it must be a list of layer numbers such as [2, 4, 6].",
    ),
    (TosaConfig, {"layers": "2,4"}, "layers must be a list of layer numbers such as [2, 4, 6], not '2,4'."),
    (TosaConfig, {"layers": 2}, "layers must be a list of layer numbers such as [2, 4, 6], not 2."),
    (TosaConfig, {"layers": None}, "layers must be a list of layer numbers such as [2, 4, 6], not None."),
    (TosaConfig, {"layers": ["2", "4"]}, "Layer '2' was given, but layers are whole numbers from 1 up."),
    (TosaConfig, {"layers": [[2]]}, "Layer [2] was given, but layers are whole numbers from 1 up."),
    (TosaConfig, {"layers": [2], "keep_rate": "0.5"}, "keep_rate must be a number or a list of numbers, not '0.5'."),
    (TosaConfig, {"layers": [2], "keep_rate": None}, "keep_rate must be a number or a list of numbers, not None."),
    (
        TosaConfig,
        {"layers": [2], "keep_rate": True},
        "The keep rate of layer 2 is True, but must be above 0 and at most 1.",
    ),
    (
        TosaConfig,
        {"layers": [2], "keep_rate": [True]},
        "The keep rate of layer 2 is True, but must be above 0 and at most 1.",
    ),
    (TosaConfig, {"layers": [2], "query_rows": "16"}, "query_rows must be 'all' or a number from 1 up, not '16'."),
    (
        TosaConfig,
        {"layers": [2], "selector": ["random"]},
        "selector must be one of: attention, similarity, ward, probe, previous, random; not ['random'].",
    ),
    (TosaConfig, {"layers": 5}, "layers must be a list of layer numbers such as [2, 4, 6], not 5."),
    (TosaConfig, {"layers": [2, 4], "keep_rate": None}, "keep_rate must be a number or a list of numbers, not None."),
    (
        TosaConfig,
        {"layers": [2], "selector": "attention", "selection": "per-head", "bypass": "linear"},
        "Per-head selection skips a token in some heads only, so it has no bypass 'linear': leave out "
        "--bypass, or use --selection shared.",
    ),
    (
        TosaConfig,
        {"layers": [2], "selector": "similarity", "selection": "per-head"},
        "The selector 'similarity' has one score a token, not one a head: use --selection shared, or one "
        "of the selectors attention, previous, random.",
    ),
    (
        TosaConfig,
        {"layers": [2], "selector": "probe", "selection": "per-head"},
        "The selector 'probe' has one score a token, not one a head: use --selection shared, or one of the "
        "selectors attention, previous, random.",
    ),
    (FinetuneConfig, {"epochs": "five"}, "--epochs must be a whole number, not 'five'."),
    (FinetuneConfig, {"epochs": 1.5}, "--epochs must be a whole number, not 1.5."),
    (FinetuneConfig, {"epochs": True}, "--epochs must be a whole number, not True."),
    (FinetuneConfig, {"epochs": None}, "--epochs must be a whole number, not None."),
    (FinetuneConfig, {"epochs": 0}, "--epochs must be 1 or more, not 0."),
    (FinetuneConfig, {"lr": "fast"}, "--lr must be a number, not 'fast'."),
    (FinetuneConfig, {"lr": [1]}, "--lr must be a number, not [1]."),
    (FinetuneConfig, {"lr": "nan"}, "--lr must be a number, not 'nan'."),
    (FinetuneConfig, {"lr": 0}, "--lr must be above 0, not 0."),
    (FinetuneConfig, {"strict": "yes please"}, "--strict must be true or false, not 'yes please'."),
    (FinetuneConfig, {"opt": 3}, "--opt must be a text, not 3."),
    (FinetuneConfig, {"data_dir": "a\0b"}, r"--data-dir must be a text, not 'a\x00b'."),
    (FinetuneConfig, {"data_dir": "\ud800"}, r"--data-dir must be a text, not '\ud800'."),
    (FinetuneConfig, {"amp": "fp8"}, "--amp must be one of: no, bf16, fp16; not 'fp8'."),
    (FinetuneConfig, {"device": "tpu"}, "--device must be one of: auto, cpu, cuda; not 'tpu'."),
    (FinetuneConfig, {"batch_size": -1}, "--batch-size must be 1 or more, not -1."),
    (FinetuneConfig, {"workers": -1}, "--workers must be 0 or more, not -1."),
    (FinetuneConfig, {"max_samples": 0}, "--max-samples must be 1 or more, not 0."),
    (FinetuneConfig, {"warmup_epochs": 31}, "--warmup-epochs (31.0) cannot be more than --epochs (30)."),
    (
        FinetuneConfig,
        {"learning_rate": 1},
        "Unknown setting 'learning_rate'. Valid: amp, auto_augment, batch_size, checkpoint_every, "
        "class_map, clip_grad, color_jitter, crop_scale, cutmix, data_dir, dataset, device, drop_path, epochs, "
        "eval_every, feature_layers, grad_accum_steps, grad_checkpointing, hflip, image_column, label_column, "
        "layer_decay, log_with, lr, max_minutes, max_samples, min_lr, mixup, model_ema, model_ema_decay, objective, "
        "opt, reprob, sched, seed, smoothing, split, strict, val_dir, val_split, warmup_epochs, weight_decay, workers.",
    ),
    (
        FinetuneConfig,
        {"objective": "features", "mixup": 0.8},
        "--mixup (0.8) needs labels, and the objective features reads none: leave it out.",
    ),
    (
        FinetuneConfig,
        {"objective": "features", "cutmix": 1.0},
        "--cutmix (1.0) needs labels, and the objective features reads none: leave it out.",
    ),
    (
        FinetuneConfig,
        {"objective": "features", "smoothing": 0.1},
        "--smoothing (0.1) needs labels, and the objective features reads none: leave it out.",
    ),
    (
        FinetuneConfig,
        {"objective": "features", "color_jitter": 0.4},
        "--color-jitter (0.4) does not go with the objective features, which crops and flips images and "
        "changes nothing else: leave it out.",
    ),
    (
        FinetuneConfig,
        {"objective": "features", "drop_path": 0.1},
        "--drop-path (0.1) does not go with the objective features, which crops and flips images and "
        "changes nothing else: leave it out.",
    ),
    (FinetuneConfig, {"objective": "features", "max_minutes": 0}, "--max-minutes must be above 0, not 0."),
    (FinetuneConfig, {"objective": "features", "eval_every": -1}, "--eval-every must be 0 or more, not -1."),
    (FinetuneConfig, {"objective": "features", "feature_layers": -1}, "--feature-layers must be 0 or more, not -1."),
    (FinetuneConfig, {"objective": "tokens"}, "--objective must be one of: labels, features; not 'tokens'."),
    (
        FinetuneConfig,
        {"objective": "labels", "feature_layers": 2},
        "--feature-layers needs the objective features: add --objective features, or leave it out.",
    ),
    (PredictorConfig, {"decoder": "mlp"}, "--decoder must be one of: linear, dpt, newcrfs; not 'mlp'."),
    (PredictorConfig, {"data_format": "scannet"}, "--data-format must be one of: folder, nyu, kitti; not 'scannet'."),
    (PredictorConfig, {"img_size": "0"}, "--img-size must be a number of pixels, or height,width; not '0'."),
    (PredictorConfig, {"decoder_dim": 12}, "--decoder-dim must be 0 or a multiple of 8, not 12."),
    (PredictorConfig, {"min_depth": 20.0}, "min_depth (20.0) must be above 0 and below max_depth (10.0)."),
    (PredictorConfig, {"crop_scale": 0.0}, "--crop-scale must be above 0 and at most 1, not 0.0."),
    (PredictorConfig, {"task": "segmentation", "num_labels": 256}, "--num-labels must be from 0 to 255, not 256."),
    (PredictorConfig, {"rotation": -1.0}, "--rotation must be 0 or more, not -1.0."),
    (
        PredictorConfig,
        {"dataset": "hfds/photos"},
        "--dataset (hfds/photos) has no maps: depth and segmentation read --data-format, leave it out.",
    ),
    (
        PredictorConfig,
        {"task": "segmentation", "num_labels": 1},
        "num_labels must be 2 or more for segmentation, not 1.",
    ),
    (PredictorConfig, {"num_labels": -1}, "--num-labels must be from 0 to 255, not -1."),
    (
        PredictorConfig,
        {"task": "classification"},
        "--task must be one of: depth, segmentation; not 'classification'.",
    ),
    (FinetuneConfig, {"seed": -1}, "--seed must be from 0 to 4294967295, not -1."),
    (FinetuneConfig, {"reprob": 2}, "--reprob must be from 0 to 1, not 2."),
    (FinetuneConfig, {"crop_scale": 0}, "--crop-scale must be above 0 and at most 1, not 0."),
    (FinetuneConfig, {"drop_path": 1}, "--drop-path must be 0 or more and below 1, not 1."),
    (FinetuneConfig, {"model_ema": 1}, "--model-ema must be true or false, not 1."),
    (ExportConfig, {"format": "tflite"}, "--format must be one of: onnx, pt2; not 'tflite'."),
    (
        ExportConfig,
        {"outputs": ("logits", "tokens")},
        "--outputs must be one of: logits, pooler_output, last_hidden_state; not 'tokens'.",
    ),
    (ExportConfig, {"outputs": ("logits", "logits")}, "--outputs names one twice, in logits,logits: name each once."),
    (ExportConfig, {"batch_size": 0}, "--batch-size must be 1 or more, not 0."),
    (ExportConfig, {"opset": 17}, "--opset must be from 18 to 23, not 17."),
    (ExportConfig, {"atol": 0.0}, "--atol must be above 0, not 0.0."),
    (ExportConfig, {"quantize": "int4"}, "--quantize must be one of: int8, static; not 'int4'."),
    (
        ExportConfig,
        {"quantize": "static"},
        "--quantize static needs photos: name a folder with --data-dir, or pass --quantize int8.",
    ),
    (
        ExportConfig,
        {"data_dir": "photos"},
        "--data-dir is for --quantize static: add that, or leave it out.",
    ),
    (
        ExportConfig,
        {"format": "pt2", "quantize": "int8"},
        "--quantize is for ONNX files: leave it out, or choose the format onnx.",
    ),
    (TaskConfig, {"task": "pose"}, "task must be one of: depth, segmentation; not 'pose'."),
    (TaskConfig, {"decoder_dim": 12}, "decoder_dim must be 0 or a multiple of 8, not 12."),
    (TaskConfig, {"max_depth": 0}, "min_depth (0.001) must be above 0 and below max_depth (0.0)."),
    (TaskConfig, {"task": "segmentation"}, "num_labels must be 2 or more for segmentation, not 0."),
    (
        TaskConfig,
        {"tusk": "depth"},
        "Unknown setting of the task: 'tusk'. Did you mean 'task'? Valid: decoder, decoder_dim, max_depth, "
        "min_depth, num_labels, task.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny"},
        "The setting 'layers' is missing: it must be layer numbers with commas, as in 2,4,6, or auto.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "two"},
        "--layers must be layer numbers with commas, as in 2,4,6, or auto, not 'two'.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "0"},
        "Layer 0 was given, but layers are whole numbers from 1 up.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "auto", "data_dir": "photos"},
        "With --layers auto the share of the MACs to save is missing: pass --target-reduction 0.25, and no "
        "--keep-rate.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "keep_rate": "most"},
        "--keep-rate must be a number, or one a layer as in 0.9,0.8, not 'most'.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "keep_rate": "1.5"},
        "The keep rate of layer 2 is 1.5, but must be above 0 and at most 1.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "query_rows": "some"},
        "--query-rows must be 'all' or a number from 1 up, not 'some'.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "num_classes": -3},
        "--num-classes must be 0 or more, not -3.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "num_classes": "ten"},
        "--num-classes must be a whole number, not 'ten'.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "max_samples": 0},
        "--max-samples must be 1 or more, not 0.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "img_size": "big"},
        "--img-size must be a number of pixels, or height,width; not 'big'.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "target_reduction": 1},
        "--target-reduction must be above 0 and below 1, not 1.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "selector": "best"},
        "--selector must be one of: attention, similarity, ward, probe, previous, random; not 'best'.",
    ),
    (
        ConvertConfig,
        {"source": "deit_tiny", "layers": "2", "pretrained": "yes"},
        "--pretrained must be true or false, not 'yes'.",
    ),
    (EvalConfig, {"max_samples": 0}, "--max-samples must be 1 or more, not 0."),
    (EvalConfig, {"selector": "best"}, "--selector must be one of: own, oracle; not 'best'."),
    (EvalConfig, {"flip": "twice"}, "--flip must be true or false, not 'twice'."),
]
"""What values are refused, by which settings."""

RECIPES = [
    (
        "convrt:\n  layers: [2]\n",
        "Unknown recipe section 'convrt'. Did you mean 'convert'? Valid: command, convert, description, distill, "
        "expected, finetune, name, versions.",
    ),
    ("convert: 3\n", "The section convert of the recipe mine.yaml should hold settings, one a line."),
    ("- convert\n", "The recipe mine.yaml should hold sections such as convert: and distill:."),
]
"""What recipes are refused."""

CALLS: list[tuple[str, Callable[[], Any], str]] = [
    (
        "a layer that is not there",
        lambda: TosaConfig(layers=(2, 13)).check_depth(12),
        "Layer 13 was asked for, but the model has layers 1 to 12: choose among these.",
    ),
    (
        "a key like a valid one",
        lambda: check_keys({"top": 1, "botom": 2}, ("top", "bottom"), "key"),
        "Unknown key 'botom'. Did you mean 'bottom'? Valid: bottom, top.",
    ),
    (
        "a key like no valid one",
        lambda: check_keys({7: 1}, ("top", "bottom"), "key"),  # type: ignore[dict-item]
        "Unknown key 7. Valid: bottom, top.",
    ),
]
"""What else is refused."""


@pytest.mark.parametrize(("kind", "values", "sentence"), SETTINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_setting(kind: type[Settings], values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TosaError) as failure:
        kind.from_dict(values)
    assert str(failure.value) == sentence


@pytest.mark.parametrize(("text", "sentence"), RECIPES)
def test_a_wrong_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TosaError) as failure:
        load_recipe("mine.yaml")
    assert str(failure.value) == sentence


@pytest.mark.parametrize(
    ("call", "sentence"), [pytest.param(call, sentence, id=name) for name, call, sentence in CALLS]
)
def test_a_wrong_call(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(TosaError) as failure:
        call()
    assert str(failure.value) == sentence
