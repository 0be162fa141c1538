"""What users are told, word for word, in one long table: a sentence that is reworded changes in no other test."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Tosa, converted, converted_once, material, tosa, work  # noqa: F401
from tests.cli.test_errors import contents
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

COMMANDS = [
    ("convert deit_tny --layers 2", "timm knows no model 'deit_tny'. Did you mean deit_tiny or …?"),
    ("convert dense --layers 0", "Layer 0 was given, but layers are whole numbers from 1 up."),
    ("convert dense --layers 7", "Layer 7 was asked for, but the model has layers 1 to 6: choose among these."),
    (
        "convert deit_tiny --layers 2,13 --no-pretrained",
        "Layer 13 was asked for, but the model has layers 1 to 12: choose among these.",
    ),
    (
        "convert dense --layers 1,3",
        "Layer 1 cannot be a ToSA layer: its selector needs a standard layer before it. Start at layer 2.",
    ),
    (
        "convert dense --layers 2,3",
        "Layers 2 and 3 are adjacent, but a ToSA layer needs a standard layer before it. Leave one of them out.",
    ),
    ("convert dense --layers 2,4,4", "Layer 4 was given twice: name each ToSA layer once."),
    ("convert dense --layers 4,2", "Layers must be in rising order, not 4,2."),
    ("convert dense --layers two", "--layers must be layer numbers with commas, as in 2,4,6, or auto, not 'two'."),
    (
        "convert dense",
        "Nothing says which layers become ToSA layers: pass --layers, as 2,4,6,8,10, or a preset that finds them on "
        "your photos, as --preset calibrated --data-dir PHOTOS.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 0",
        "The keep rate of layer 2 is 0.0, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 1.5",
        "The keep rate of layer 2 is 1.5, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate=-1",
        "The keep rate of layer 2 is -1.0, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 0.5,2",
        "The keep rate of layer 4 is 2.0, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate 0.5,0.5,0.5",
        "3 keep rates were given for 2 ToSA layers: give one for all, or one a layer.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate most",
        "--keep-rate must be a number, or one a layer as in 0.9,0.8, not 'most'.",
    ),
    (
        "convert dense --layers 2,4 --keep-rate nan",
        "The keep rate of layer 2 is nan, but must be above 0 and at most 1.",
    ),
    (
        "convert dense --layers 2 --target-reduction 0.9",
        "The target reduction 90.0% cannot be reached: with layers 2 at most 13.6% is saved. Name more layers.",
    ),
    (
        "convert dense --layers 2 --target-reduction 0.1 --keep-rate 0.5",
        "Both --keep-rate and --target-reduction were given: pass one of them.",
    ),
    ("convert dense --layers 2 --query-rows some", "--query-rows must be 'all' or a number from 1 up, not 'some'."),
    (
        "convert dense --layers 2 --selector best",
        "--selector must be one of: attention, similarity, ward, probe, previous, random; not 'best'.",
    ),
    ("convert dense --layers 2 --img-size big", "--img-size must be a number of pixels, or height,width; not 'big'."),
    (
        "convert dense --layers 2 --img-size 65",
        "An image of 65x65 pixels is no whole number of patches of 8x8: use 64x64 or 72x72.",
    ),
    (
        "convert deit_tiny --layers 2 --img-size 200,224 --no-pretrained",
        "An image of 200x224 pixels is no whole number of patches of 16x16: use 192x224 or 208x224.",
    ),
    (
        "convert dense --layers 2 --architecture vit_tiny_patch16_224",
        "dense is no weights file, so its architecture is known: leave out --architecture vit_tiny_patch16_224.",
    ),
    (
        "convert dense --layers 2 --neighbors 9",
        "--neighbors changes nothing, as the bypass 'identity' takes nothing from other tokens: leave it out.",
    ),
    (
        "convert dense --layers 2 --selector similarity --query-rows 4",
        "--query-rows changes nothing, as the selector 'similarity' reads no attention logits: leave it out.",
    ),
    (
        "convert dense --layers 2 --selector previous --selector-kernel 3",
        "--selector-kernel changes nothing, as the selector 'previous' has no convolutions: leave it out.",
    ),
    (
        "convert resnet18 --layers 2 --no-pretrained",
        "resnet18 is a ResNet, which cannot be converted: it is not built of transformer blocks that all "
        "work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "convert swin_tiny_patch4_window7_224 --layers 2 --no-pretrained",
        "swin_tiny_patch4_window7_224 is a SwinTransformer, which cannot be converted: its attention runs "
        "in windows of the image, which a selection of its tokens does not fill. Type `tosa list` to see "
        "what can be.",
    ),
    (
        "convert test_resnet --layers 2 --no-pretrained",
        "test_resnet is a ResNet, which cannot be converted: it is not built of transformer blocks that "
        "all work on one grid of tokens. Type `tosa list` to see what can be.",
    ),
    (
        "convert no/such/folder --layers 2",
        "There is no folder or file no/such/folder. Check the path, or name a timm model such as deit_tiny.",
    ),
    (
        "convert dense/config.json --layers 2",
        "dense/config.json is not a weights file: expected one of .safetensors, .pth, .pt, .ckpt, .bin, .tar.",
    ),
    ("convert dense\udcff --layers 2", "The name dense\ufffd is no text in UTF-8: rename what it stands for."),
    ("convert --layers 2", "No model was named: run `tosa convert deit_tiny --layers 2,4,6,8,10`, or pass --recipe."),
    (
        "convert --recipe calibrated --data-dir photos",
        "No model was named, and --recipe calibrated names none: run `tosa convert deit_tiny --recipe calibrated`.",
    ),
    (
        "convert --preset paper",
        "No model was named, and --preset paper names none: run `tosa convert deit_tiny --preset paper`.",
    ),
    (
        "convert dense --recipe nope",
        "There is no recipe 'nope'. Known: calibrated, deit_tiny_imagenet_matched, "
        "deit_tiny_imagenet_paper, dinov2_small_photos, kitti_newcrfs, matched, nyu_newcrfs, paper; or give the "
        "path of a .yaml file.",
    ),
    ("distill dense-tosa --epochs 0", "--epochs must be 1 or more, not 0."),
    ("distill dense-tosa --lr 0", "--lr must be above 0, not 0.0."),
    ("finetune dense-tosa --warmup-epochs 99", "--warmup-epochs (99.0) cannot be more than --epochs (30)."),
    ("finetune dense-tosa --clip-grad=-1", "--clip-grad must be 0 or more, not -1.0."),
    ("finetune dense-tosa --smoothing 1", "--smoothing must be 0 or more and below 1, not 1.0."),
    ("finetune dense-tosa --task depth --hflip 2", "--hflip must be from 0 to 1, not 2.0."),
    ("distill dense-tosa --crop-scale 3", "--crop-scale must be above 0 and at most 1, not 3.0."),
    ("distill dense-tosa --seed=-1", "--seed must be from 0 to 4294967295, not -1."),
    (
        "distill dense-tosa --data-dir photos --opt nope -j 0",
        "--opt 'nope' cannot be used (…): try adamw, sgd or lamb.",
    ),
    ("distill dense-tosa --data-dir photos --sched nope -j 0", "--sched must be one of none, cosine, …; not 'nope'."),
    (
        "distill dense-tosa --data-dir photos --log-with nope -j 0",
        "Training cannot be set up like this: Unsupported logging capability: nope. …",
    ),
    (
        "distill dense-tosa --data-dir photos -b 100 -j 0",
        "22 images are too few for one step of 100 images in each of 1 processes, 1 times. Pass a smaller "
        "--batch-size.",
    ),
    ("finetune dense-tosa --data-dir digits -b 7 --mixup 1 -j 0", "Mixup and CutMix need an even batch size, not 7."),
    (
        "distill dense-tosa --data-dir photos --resume -j 0",
        "There is nothing to resume: …dense-tosa.distill-checkpoint.safetensors does not exist. Leave out "
        "--resume to start anew.",
    ),
    ("distill me/model --data-dir photos", "me/model is on the Hub: name the folder to write with -o."),
    (
        "distill dense --data-dir photos",
        "dense holds test_vit, which is not converted yet: run `tosa convert dense --layers 2,4,6,8,10` first.",
    ),
    (
        "eval dense --data-dir digits",
        "dense holds test_vit, which is not converted yet: run `tosa convert dense --layers 2,4,6,8,10` first.",
    ),
    (
        "eval nowhere --data-dir digits",
        "There is no model folder nowhere. Make one with `tosa convert`, or name a Hub repository.",
    ),
    (
        "distill nowhere --data-dir photos",
        "There is no model folder nowhere. Make one with `tosa convert`, or check the path.",
    ),
    (
        "eval dense-tosa --data-dir digits --device cuda",
        "There is no CUDA device here: pass --device cpu, or leave --device out.",
    ),
    (
        "eval dense-tosa --data-dir digits -j 0 --flip --depth-scale 5 --split-file none.txt --data-format kitti "
        "--depth-dir none",
        "dense-tosa has no decoder, so no maps are read: leave out --data-format and --split-file and "
        "--depth-dir and --depth-scale and --flip, or train a decoder with `tosa finetune dense-tosa "
        "--task depth`.",
    ),
    (
        "eval dense-tosa --data-dir digits -j 0 --flip",
        "dense-tosa has no decoder, so no maps are read: leave out --flip, or train a decoder with `tosa "
        "finetune dense-tosa --task depth`.",
    ),
    (
        "convert dense --preset calibrated",
        "The layers are chosen by measurement, which needs images: pass --data-dir PHOTOS, or name the "
        "layers as in --layers 2,4,6,8,10.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --target-reduction 0.2 --min-cosine 0.9",
        "Both --target-reduction and --min-cosine were given: pass one of them.",
    ),
    (
        "convert dense --preset matched --data-dir photos --min-cosine 0.9",
        "--min-cosine is for methods that put tokens into groups, for which `convert` leaves nothing to fit: pass "
        "--selector ward --bypass mean, or --target-reduction 0.25 for the selector 'similarity'.",
    ),
    (
        "convert dense --layers 2,4 --min-cosine 0.9",
        "--min-cosine chooses the layers too: pass --layers auto, or leave it out.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --min-cosine 0.9 --max-drop 1",
        "Both --min-cosine and --max-drop were given: pass one of them.",
    ),
    (
        "convert dense --preset matched --data-dir photos --max-drop 1",
        "--max-drop is for methods that put tokens into groups, for which `convert` leaves nothing to fit: pass "
        "--selector ward --bypass mean, or --target-reduction 0.25 for the selector 'similarity'.",
    ),
    (
        "convert dense --layers 2,4 --max-drop 1",
        "--max-drop chooses the layers too: pass --layers auto, or leave it out.",
    ),
    (
        "convert dense --preset calibrated --data-dir digits --max-drop 1 --num-classes 5",
        "--num-classes gives the model a new head, which is not trained and has no accuracy to lose: leave out "
        "--num-classes, or hold the tokens with --min-cosine 0.99.",
    ),
    (
        "convert dense --preset calibrated --data-dir digits --class-map names.txt",
        "--class-map is about labels, which are read for --max-drop alone: leave it out.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --max-drop 1",
        "photos has no class folders, or one, and --max-drop goes by labels: point --data-dir at one folder a class, "
        "or hold the tokens with --min-cosine 0.99, which needs none.",
    ),
    (
        "convert dense --preset calibrated --data-dir digits --max-drop 1 --max-samples 2",
        "2 images of digits would be read, and --max-drop needs 3, of which two are held out: add images, or pass a "
        "larger --max-samples.",
    ),
    (
        "convert dense --preset calibrated --data-dir photos --min-cosine 0.9 --max-samples 1",
        "1 image of photos would be read, and --min-cosine needs 3, of which two are held out: add images, or pass a "
        "larger --max-samples.",
    ),
    (
        "convert dense --preset calibrated --layers 2,4 --data-dir digits --max-drop 1",
        "No images are read without --layers auto: pass that, or leave out --data-dir.",
    ),
    (
        "convert dense --layers auto --data-dir photos",
        "With --layers auto the share of the MACs to save is missing: pass --target-reduction 0.25, and no "
        "--keep-rate.",
    ),
    ("convert dense --preset mine", "--preset must be paper, calibrated or matched, not 'mine'."),
    (
        "convert dense --preset paper --recipe deit_tiny_imagenet_paper",
        "Both --preset and --recipe were given: pass one of them.",
    ),
    (
        "convert dense --layers auto --selector similarity --data-dir nowhere --target-reduction 0.2",
        "There is no folder nowhere. Pass a folder of images with --data-dir.",
    ),
    (
        "convert dense --layers auto --selector attention --data-dir photos --target-reduction 0.2",
        "The selector 'attention' says nothing before it is trained, so what each layer can spare cannot "
        "be measured with it: use --selector similarity, or name the layers as in --layers 2,4,6,8,10.",
    ),
    (
        "convert dense --layers 2,4 --selector similarity --selection per-head",
        "The selector 'similarity' has one score a token, not one a head: use --selection shared, or one "
        "of the selectors attention, previous, random.",
    ),
    (
        "convert dense --layers 2,4 --dataset wds/photos --split train",
        "No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out "
        "--dataset and --split.",
    ),
    (
        "convert dense --preset calibrated --layers 2,4 --data-dir photos",
        "No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out --data-dir.",
    ),
    (
        "convert dense --layers 2,4 --max-samples 3",
        "No images are read without --layers auto: pass that with --target-reduction 0.25, or leave out --max-samples.",
    ),
    ("bench --peers --sweep", "--peers and --sweep were given together: run `tosa bench` once with each."),
    ("bench --data-dir photos", "--data-dir was given without --peers: add --peers, or leave --data-dir out."),
    (
        "bench --sweep --data-dir photos",
        "--data-dir was given without --peers: add --peers, or leave --data-dir out.",
    ),
    (
        "bench --peers --max-samples 3",
        "--max-samples was given without --data-dir: name the folder of photos with --data-dir.",
    ),
    ("bench --keep-rates 0.5", "--keep-rates was given without --sweep: add --sweep, or leave --keep-rates out."),
    (
        "bench --peers --batch-sizes 1",
        "--batch-sizes was given without --sweep: add --sweep, or leave --batch-sizes out.",
    ),
    ("bench --plot a.png", "--plot was given without --sweep: add --sweep, or leave --plot out."),
    ("bench --sweep --keep-rates half", "--keep-rates should be shares of tokens, as in 0.9,0.8; not 'half'."),
    ("bench --sweep --keep-rates 0.5,0", "--keep-rates should be above 0 and at most 1, as in 0.9,0.8; not '0.5,0'."),
    ("bench --sweep --keep-rates 1.5", "--keep-rates should be above 0 and at most 1, as in 0.9,0.8; not '1.5'."),
    ("bench --sweep --batch-sizes 1,,2", "--batch-sizes should be numbers of images, as in 1,8,16; not '1,,2'."),
    ("bench --sweep --batch-sizes 0", "--batch-sizes should be numbers from 1 up, as in 1,8,16; not '0'."),
    (
        "bench --sweep --img-sizes 224,axb",
        "--img-sizes should be sizes in pixels, as in 224,336 or 224x320; not '224,axb'.",
    ),
    ("bench --sweep --img-sizes 0", "--img-sizes should be sizes in pixels, as in 224,336 or 224x320; not '0'."),
    (
        "bench --sweep --img-size 32 --img-sizes 48",
        "--img-size and --img-sizes were given together: give one of them.",
    ),
    ("bench --peers --data-dir nowhere", "There is no folder nowhere. Pass a folder of images with --data-dir."),
    (
        "export dense-tosa --outputs tokens",
        "--outputs must be one of: logits, pooler_output, last_hidden_state; not 'tokens'.",
    ),
    ("export dense-tosa --opset 9", "--opset must be from 18 to 23, not 9."),
    (
        "export dense-tosa -o model.txt",
        "The format onnx is written to a .onnx file, but model.txt is none: name another.",
    ),
    (
        "export dense-tosa -o model.pt2 --quantize int8",
        "--quantize is for ONNX files: leave it out, or choose the format onnx.",
    ),
    (
        "export dense-tosa -o nowhere/model.onnx",
        "nowhere/model.onnx cannot be written: …nowhere is no folder that you can write to.",
    ),
    ("viz dense-tosa", "No image was named: pass images or a folder of them, as in `tosa viz dense-tosa cat.jpg`."),
    ("viz photos/nothing.jpg", "There is no image or folder photos/nothing.jpg. Check the path."),
    ("viz photos/000.jpg --layers 3", "Layer 3 is not a ToSA layer of this model: choose among 2,4,6."),
    ("viz photos/000.jpg --layers two", "--layers should be layer numbers with commas, as in 2,6,10; not 'two'."),
    ("viz photos -o all.png", "all.png is one picture, but there are several images: name a folder with -o."),
    (
        "viz photos -o photos/001.jpg",
        "photos/001.jpg is a file, but a folder is written: choose another name with -o.",
    ),
    (
        "viz photos/000.jpg -o photos/001.jpg",
        "photos/001.jpg is a file, but a folder is written: choose another name with -o.",
    ),
    (
        "viz photos/000.jpg -o photos/000.jpg/cat.png",
        "…photos/000.jpg cannot be written to: choose another place with -o.",
    ),
    (
        "viz nowhere photos",
        "There is no model folder nowhere. Make one with `tosa convert`, or name a Hub repository.",
    ),
]
"""What commands refuse; "…" stands for what timm, accelerate or the place say."""


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


@pytest.mark.parametrize(("command", "sentence"), COMMANDS)
def test_a_wrong_command(
    work: Path,  # noqa: F811
    tosa: Tosa,  # noqa: F811
    request: pytest.FixtureRequest,
    command: str,
    sentence: str,
) -> None:
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    if not command.startswith("convert "):
        request.getfixturevalue("converted")
    before = contents(work)
    done = tosa(command)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err, done.err
    told = done.err.splitlines()[-1].removeprefix("Error: ")
    start, varies, end = sentence.partition("…")
    assert (told.startswith(start) and told.endswith(end)) if varies else told == sentence
    assert done.err.count("\n") == 1 or not command.startswith("convert ")
    assert contents(work) == before
