"""Whatever is given, a sentence or a right result comes; long, as all options and all files that are read are tried.

The long form, `make properties`, adds what takes long: the demo, exports, and models with a decoder.
"""

import copy
import json
import math
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from timm.data import create_transform, resolve_data_config

from tests.cli.conftest import WARD, commands, run_tosa, write_whole
from tests.sentences import fragments
from tests.train.tiny_pairs import write_folder
from tests.train.tiny_runs import run_finetune, short_tosa, write_digits
from tosa_cli.api import load, save
from tosa_cli.cli.options import settings_from
from tosa_cli.config import SETTINGS_KEY, TosaConfig
from tosa_cli.convert_config import ConvertConfig
from tosa_cli.data.processed import ProcessedPhotos, norm_of
from tosa_cli.errors import TosaError
from tosa_cli.hub.whole import save_whole
from tosa_cli.measure import speed
from tosa_cli.measure.agreement import compare_outputs
from tosa_cli.recipe import SECTIONS
from tosa_cli.train import checkpoint as checkpoints
from tosa_cli.train.config import DistillConfig, FinetuneConfig
from tosa_cli.train.predictor_config import PredictorConfig
from tosa_cli.workflow.whole_folder import load_converted

LONG = os.environ.get("TOSA_PROPERTIES") == "long"

TYPED = ("-1", "0", "nan", "inf", "1000000000", "", "wrong")
"""What is typed as the value of every option."""

FEW: tuple[Any, ...] = (None, -1, math.nan, "wrong", "\ud800", [], {"a": 1})
WRITTEN: tuple[Any, ...] = (*FEW, True, 0, 5, 1e9, math.inf, "", [[]], {})
"""What stands under every key of a file; the few where each takes long."""

MISSING = object()

TRAIN = "-b 8 -j 0 --epochs 1 --device cpu --max-samples 9 -o out --overwrite"
COMMANDS = {
    "convert": "dense --layers 2 -o out --overwrite",
    "distill": f"dense-tosa --data-dir photos {TRAIN}",
    "finetune": f"dense-tosa --data-dir digits {TRAIN}",
    "finetune for depth": f"dense --task depth --data-dir scenes --decoder linear {TRAIN}",
    "eval": "dense-tosa --data-dir digits -j 0 --max-samples 4 --device cpu",
    "flops": "dense-tosa",
    "bench": "dense-tosa -b 1 --rounds 1 --device cpu",
    "inspect": "dense --data-dir photos --max-samples 2 -j 0 --device cpu",
    "list": "",
    "viz": "dense-tosa photos/000.jpg --no-compare --overwrite -o out.png",
    "push": "dense-tosa me/model --dry-run",
    "recipes": "",
    "convert a whole model": f"whole --whole {WARD} -o out --overwrite",
    "distill a whole model": "whole-tosa --data-dir photos --max-samples 2 -o out --overwrite",
    "eval a whole model": "whole-tosa --data-dir photos --max-samples 2",
    "flops a whole model": "whole-tosa",
    "inspect a whole model": "whole",
    "bench a whole model": "whole-tosa --rounds 1 --device cpu",
    "viz a whole model": "whole-tosa photos/000.jpg --no-compare --overwrite -o out.png",
    "push a whole model": "whole-tosa me/model --dry-run",
    **(
        {
            "export": "dense-tosa --format pt2 -o out.pt2 --overwrite",
            "export a whole model": "whole-tosa -o out.onnx --overwrite",
            "demo": "-o out --overwrite",
        }
        if LONG
        else {}
    ),
}
"""A command line for each command, which works."""


TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 30))
"""Of processor time and of a clock's: signal, timer, and how much longer it may take; others may want the processor."""


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Interrupt what runs longer, as Ctrl-C would, and refuse more memory than a small machine has."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number, _, _ in TIMERS]
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, memory[1]))
    for _, timer, longer in TIMERS:
        signal.setitimer(timer, longer * seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(TIMERS, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        torch.set_grad_enabled(True)  # an interrupt may come where PyTorch switches it


def options_of(command: Any) -> list[str]:
    """The options of a command that take a value."""
    parameters = command.params
    return [max(p.opts, key=len) for p in parameters if p.param_type_name == "option" and not p.is_flag]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_value_of_every_option_is_refused_in_a_sentence_or_works(
    short: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if "scenes" in COMMANDS[name]:
        write_folder(Path("scenes"), 10)
    if "whole" in name:
        write_whole()
    monkeypatch.setattr(speed, "_time", lambda *_: 3600.0)  # a turn is one batch
    command, kept = name.partition(" ")[0], set(os.listdir())
    wrong = []
    options = options_of(commands().commands[command])
    if "depth" in name and not LONG:
        options = [option for option in options if option[2:].replace("-", "_") not in FinetuneConfig.field_names()]
    for option in options:
        for value in TYPED:
            try:
                with limits(20 if LONG else 1):
                    done = run_tosa(f"{command} {COMMANDS[name]}", option, value)
            except KeyboardInterrupt:
                continue  # at the very end of it
            if done.code not in (0, 1, 2, 130) or fragments.FAULT_OF_TOSA in done.err or "Traceback" in done.err:
                wrong.append(f"{option} {value!r}: {done.code}: {done.err.splitlines()[-1][:200]}")
            elif done.code and not done.err.strip():
                wrong.append(f"{option} {value!r}: {done.code} without a word")
            for left in set(os.listdir()) - kept:
                shutil.rmtree(left) if Path(left).is_dir() else Path(left).unlink()
    assert not wrong, "\n".join(wrong)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key in nested objects."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(values: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The values with another one under a key, or without it."""
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return values


def use(folder: Path) -> None:
    """Do with a model what commands do, on little."""
    model: Any = load(folder)
    create_transform(**resolve_data_config(model=model))
    channels, *size = model.in_chans, *model.backbone.patch_embed.img_size
    with torch.no_grad():
        model(torch.zeros(1, channels, *size))
    save(model, folder.with_name("again"), overwrite=True)


@pytest.mark.parametrize("kind", ["converted", "distilled", *(["depth"] if LONG else [])])
def test_every_wrong_or_missing_value_of_config_json_is_told_or_harmless(short: Path, kind: str) -> None:
    folder = short
    if kind == "depth":
        write_folder(Path("scenes"), 10)
        assert run_tosa(f"finetune dense --task depth --data-dir scenes --decoder linear {TRAIN}").code == 0
        folder = Path("out")
    if kind == "distilled":
        assert run_tosa(f"distill dense-tosa --data-dir photos {TRAIN}").code == 0
        assert run_tosa("eval out --data-dir digits -j 0 --max-samples 4 --device cpu --update-card").code == 0
        folder = Path("out")
    config = json.loads((folder / "config.json").read_text())
    config["license"] = config["pretrained_cfg"]["license"] = "mit"
    config["label_names"] = [f"class {number}" for number in range(10)]
    use(folder)
    wrong = []
    paths = list(places(config))
    if kind == "distilled":
        paths = [path for path in paths if path[0] == "tosa"]
    for path in paths:
        for value in (MISSING, *(WRITTEN if LONG else FEW)):
            (folder / "config.json").write_text(json.dumps(changed(config, path, value)))
            try:
                with limits(5):
                    use(folder)
            except TosaError as error:
                assert str(error)
            except BaseException as error:
                shown = "missing" if value is MISSING else repr(value)
                wrong.append(f"{'.'.join(path)} {shown}: {error!r}"[:240])
    assert not wrong, "\n".join(wrong)


def test_every_wrong_or_missing_value_of_the_config_of_a_whole_model_is_told_or_harmless(work: Path) -> None:
    file, wrong = write_whole() / "config.json", []
    config = json.loads(file.read_text())
    paths = [path for path in places(config) if path[0] != "id2label"]
    if not LONG:  # the others are for transformers to judge, or as in every folder
        ours = ("tosa", SETTINGS_KEY, "architectures", "model_type")
        known = {*TosaConfig.field_names(), "steps"} - {"layers"}
        paths = [path for path in paths if path[0] in ours and known.isdisjoint(path)]
    for path in paths:
        for value in (MISSING, *(WRITTEN if LONG else FEW)):
            file.write_text(json.dumps(changed(config, path, value)))
            try:
                with limits(5):
                    whole = load_converted(str(file.parent))
                    whole.model(torch.zeros(1, 3, 56, 56))
                    save_whole(whole, Path("again"), overwrite=True)
            except TosaError as error:
                assert str(error)
            except BaseException as error:
                shown = "missing" if value is MISSING else repr(value)
                wrong.append(f"{'.'.join(path)} {shown}: {error!r}"[:240])
    assert not wrong, "\n".join(wrong)


def test_every_wrong_or_missing_value_of_a_processor_is_told_or_harmless(work: Path) -> None:
    file, wrong = write_whole() / "preprocessor_config.json", []
    config = json.loads(file.read_text())
    paths = list(places(config))
    if not LONG:
        paths = [path for path in paths if path[0] in ("size", "crop_size", "image_std", "image_processor_type")]
    few = (MISSING, "wrong", [], {"a": 1})
    texts = [changed(config, path, value) for path in paths for value in ((MISSING, *WRITTEN) if LONG else few)]
    texts += [{**config, "size": size} for size in (5, [1, 2], {"shortest_edge": 3}, {"height": 56, "width": 70})]
    texts += [{**config, name: [value] * 3} for name in ("image_mean", "image_std") for value in (0, 1e30, math.nan)]
    for values in (*texts, [], "x", None, 5):
        file.write_text(json.dumps(values))
        try:
            with limits(5):
                whole = load_converted(str(file.parent))
                photos = ProcessedPhotos("photos", whole.processor, max_samples=1)
                figures = compare_outputs(None, whole.model, photos).outputs["logits"]
                assert all(map(math.isfinite, figures.values()))
                norm_of(whole.processor)
        except TosaError as error:
            assert str(error)
        except BaseException as error:
            changes = {key: value for key, value in values.items() if config.get(key) != value} if values else values
            wrong.append(f"{changes}: {error!r}"[:240])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("section", "cls"), [("convert", ConvertConfig), ("distill", DistillConfig), ("finetune", None)]
)
def test_every_wrong_value_of_a_recipe_is_told_or_harmless(tmp_path: Path, section: str, cls: Any) -> None:
    recipe, wrong = tmp_path / "mine.yaml", []
    for key in SECTIONS[section]:
        for value in WRITTEN:
            content = {"source": "dense", "layers": [2, 4]} if section == "convert" else {}
            recipe.write_text(yaml.safe_dump({section: {**content, key: value}}))
            for kind in [cls] if cls else [FinetuneConfig, PredictorConfig]:
                if key not in kind.field_names():
                    continue
                try:
                    kind.from_dict(settings_from(section, str(recipe), {}))
                except TosaError as error:
                    assert str(error)
                except Exception as error:
                    wrong.append(f"{key} {value!r}: {error!r}"[:240])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text", ["a: [1", "[1]", "5", "a: !!python/object:os.x {}", "a: 1\na: 2", "convert:\n  span: 1\n  span: 2"]
)
def test_a_recipe_that_cannot_be_meant_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(TosaError):
        settings_from("convert", str(tmp_path / "mine.yaml"), {})


def test_every_wrong_or_missing_value_of_a_checkpoints_header_is_told_or_harmless(tmp_path: Path) -> None:
    digits, run, wrong = write_digits(tmp_path / "digits", 20), tmp_path / "run", []
    settings: dict[str, Any] = {"model_ema": True, "epochs": 1}
    run_finetune(short_tosa(), digits, run, **settings)
    with safe_open(run, framework="pt") as file:
        header = json.loads(file.metadata()["tosa"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    paths = [path for path in places(header) if path[0] != "settings" or len(path) == 1 or LONG]
    for path in paths:
        for value in (MISSING, *(WRITTEN if LONG else FEW)):
            checkpoints.save_file(tensors, run, metadata={"tosa": json.dumps(changed(header, path, value))})
            try:
                with limits(5):
                    run_finetune(short_tosa(), digits, run, resume=True, **settings)
            except TosaError as error:
                assert str(error)
            except BaseException as error:
                wrong.append(f"{'.'.join(map(str, path))} {value!r}: {error!r}"[:240])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("last", [None, 5, [], {}, "", "x" * 5000, "\ud800", "\0"])
def test_a_last_model_that_cannot_be_meant_is_told(work: Path, last: Any) -> None:
    Path(".tosa.json").write_text(json.dumps({"last_model": last}))
    done = run_tosa("flops")
    assert done.code == 2 and fragments.NO_MODEL_WAS_NAMED in done.err.splitlines()[-1]
