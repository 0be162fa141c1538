"""One verb: `export_model(model, path, config) -> ExportReport`. A file is whole and checked, or not there."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tosa_cli.errors import ConfigError, ExportError, OutputError
from tosa_cli.export.calibrated import calibration_batches
from tosa_cli.export.check import CheckReport, Run, check_export
from tosa_cli.export.config import ExportConfig
from tosa_cli.export.onnx_file import (
    OnnxModule,
    check_installed,
    data_file,
    metadata,
    runtime_name,
    write_onnx,
    write_view,
)
from tosa_cli.export.openvino_file import OpenVinoReport, check_openvino, is_installed
from tosa_cli.export.program import BATCH, INPUT, TRACED_BATCH, keep_outputs, trace
from tosa_cli.export.quantize import Quantization, QuantizeReport, measure_quantized, quantize_file
from tosa_cli.export.quiet import quiet
from tosa_cli.export.report import ExportReport
from tosa_cli.hub.writing import staging_folder
from tosa_cli.methods import SELECTORS
from tosa_cli.model.tosa_vit import TosaViT

CHECKED_BATCHES = (1, 3, 4)
"""Images a batch that a file for any number of them is checked with; none is the traced one."""

CHECKED_IMAGES = 8
"""Images that a file for a fixed number of them is checked with, in as many batches as that takes."""


def export_model(
    model: TosaViT,
    path: str | Path,
    config: ExportConfig | None = None,
    *,
    name: str = "",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Export a model, run what was exported, compare it with the model, and only then let the file appear.

    Args:
        model: The model, on the CPU in float32; it is exported as it evaluates.
        path: The file to write. Weights of an ONNX file beyond 2 GB go beside it, under its name and `.data`.
        config: What to write; None takes the defaults.
        name: Name of the model, which an ONNX file tells.
        overwrite: Replace a file that exists.
        say: Told what is being done.

    Raises:
        ConfigError: If the settings do not fit the model.
        InputError: If a package that the format needs is not installed.
        OutputError: If the file exists, or cannot be written.
        ExportError: If the model cannot be exported, or what was exported computes something else.
    """
    config, path = config or ExportConfig(), Path(path)
    outputs = check_outputs(model, config)
    if config.format == "onnx":
        check_installed()
    check_target(path, config.format, overwrite)
    size = [model.in_chans, *model.patch_embed.img_size]
    job = _Job(model, outputs, torch.zeros(config.batch_size or TRACED_BATCH, *size), config, name or path.stem, say)
    with _evaluating(model), staging_folder(path) as folder:
        export = _export_onnx if config.format == "onnx" else _export_pt2
        exported, check, quantized, openvino = export(job, folder / path.name)
        move_files(exported, path)
    beside = [file for file in _files(path)[1:] if file.exists()]
    return ExportReport(
        file=str(path),
        data_file=str(beside[0]) if beside else None,
        size_mb=_size(path) / 1e6,
        format=config.format,
        runtime=runtime_name() if config.format == "onnx" else f"torch {torch.__version__}",
        inputs={INPUT: [config.batch_size or BATCH, *size]},
        outputs=outputs,
        opset=config.opset if config.format == "onnx" else None,
        check=check,
        quantized=quantized,
        openvino=openvino,
    )


def check_outputs(model: TosaViT, config: ExportConfig) -> list[str]:
    """The outputs to export.

    Raises:
        ConfigError: If the model cannot give one, or is not as an export needs it.
    """
    parameter = next(model.parameters())
    if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
        raise ConfigError(
            f"The model is in {str(parameter.dtype).removeprefix('torch.')} on {parameter.device.type}, but is "
            f"exported in float32 on the CPU: call model.float().cpu() first."
        )
    if model.num_classes == 0 and "logits" in config.outputs:
        raise ConfigError(
            "The model has no head, so it has no logits: leave --outputs out, or choose among last_hidden_state and "
            "pooler_output."
        )
    return list(config.outputs or (("logits",) if model.num_classes else ("last_hidden_state", "pooler_output")))


def check_target(path: Path, format: str, overwrite: bool) -> None:
    """Check before any work that a file can be written.

    Raises:
        OutputError: If it exists and may not be overwritten, has the wrong ending, or its folder cannot be written to.
    """
    if path.suffix.lower() != f".{format}":
        raise OutputError(f"The format {format} is written to a .{format} file, but {path} is none: name another.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder, but a file is written: choose another name with -o.")
    for file in _files(path):
        if file.exists() and not overwrite:
            raise OutputError(f"{file} already exists. Choose another name with -o, or pass --overwrite.")
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {parent} is no folder that you can write to.")


@dataclass(frozen=True)
class _Job:
    """What is exported and how; `images` are those to trace with."""

    model: TosaViT
    outputs: list[str]
    images: Tensor
    config: ExportConfig
    name: str
    say: Callable[[str], None]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Images a batch to check with."""
        size = self.config.batch_size
        return CHECKED_BATCHES if size is None else (size,) * math.ceil(CHECKED_IMAGES / size)

    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return metadata(self.model, self.name, self.outputs, dynamic_batch=self.config.batch_size is None)

    def check(self, exported: Run, with_choices: Run) -> CheckReport:
        """Compare what was exported with the model."""
        self.say(f"Comparing it with the model on {sum(self.batch_sizes)} images ...")
        return check_export(
            self.model, exported, with_choices, self.outputs, batch_sizes=self.batch_sizes, atol=self.config.atol
        )

    def check_openvino(self, exported: Path, with_choices: Path) -> OpenVinoReport | None:
        """Compare what was exported with the model in OpenVINO, where that is installed."""
        # What is selected at random is compared once, and differs in half precision anyway.
        if not is_installed() or SELECTORS[self.model.config.selector].is_random:
            return None
        self.say("Comparing it in OpenVINO ...")
        return check_openvino(
            self.model, exported, with_choices, self.outputs, batch_sizes=self.batch_sizes, atol=self.config.atol
        )


_Exported = tuple[Path, CheckReport, QuantizeReport | None, OpenVinoReport | None]


def _export_onnx(job: _Job, path: Path) -> _Exported:
    config = job.config
    batches: list[Tensor] = []
    if config.quantize == "static":
        batches = calibration_batches(job.model, config.data_dir, config.max_samples, config.batch_size or 1)
    job.say("Writing the ONNX file ...")
    write_onnx(
        job.model, path, job.outputs, images=job.images, dynamic_batch=config.batch_size is None, opset=config.opset,
        with_choices=True,
    )  # fmt: skip
    exported = _without_choices(job, path)
    float32, told = OnnxModule(exported), OnnxModule(path)
    check = job.check(float32, told)
    openvino = job.check_openvino(exported, path)
    if config.quantize is None:
        return exported, check, None, openvino
    job.say("Quantising it to int8, and the dense model beside it ...")
    small = path.parent / "int8" / path.name
    small.parent.mkdir()
    quantize_file(path, small, batches)
    exported = _without_choices(job, small, quantization=f"int8, {'static' if batches else 'dynamic'}")
    dense = path.parent / "dense" / path.name
    dense.parent.mkdir()
    write_onnx(
        job.model.backbone, dense, job.outputs, images=job.images, dynamic_batch=config.batch_size is None,
        opset=config.opset,
    )  # fmt: skip
    dense_small = dense.with_name(f"int8-{path.name}")
    quantize_file(dense, dense_small, batches)
    report = measure_quantized(
        job.model,
        Quantization(
            float32, OnnxModule(exported), told, OnnxModule(small), OnnxModule(dense), OnnxModule(dense_small)
        ),
        job.outputs,
        batch_size=config.batch_size,
        sizes=(_size(path), _size(small)),
    )
    return exported, check, report, openvino


def _without_choices(job: _Job, path: Path, **more: str) -> Path:
    exported = path.with_name(f"exported-{path.name}")
    write_view(path, exported, job.outputs, job.metadata() | more)
    return exported


def _export_pt2(job: _Job, path: Path) -> _Exported:
    job.say("Tracing the model ...")
    dynamic = job.config.batch_size is None
    try:
        told = trace(job.model, job.outputs, job.images, dynamic, with_choices=True)
        with quiet():
            # Into memory first: the writer of PyTorch ends the process where a disk is full.
            content = io.BytesIO()
            program = keep_outputs(told, job.outputs)
            torch.export.save(program, content, extra_files={"metadata.json": _as_json(job)})
            path.write_bytes(content.getbuffer())
            loaded = torch.export.load(path)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"PyTorch {torch.__version__} could not export this model ({reason}). Please report the model's name."
        ) from error
    return path, job.check(loaded.module(), told.module()), None, None


def _as_json(job: _Job) -> str:
    return json.dumps(job.metadata(), indent=2)


def _files(path: Path) -> list[Path]:
    """The file, and the weights that an ONNX file may have beside it."""
    return [path, data_file(path)] if path.suffix.lower() == ".onnx" else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path) if file.exists())


@contextlib.contextmanager
def _evaluating(model: TosaViT) -> Iterator[None]:
    """Have a model evaluate, and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def move_files(exported: Path, path: Path) -> None:
    """Put an exported file, and the weights beside it, into their place, where another may stand."""
    # The file names the weights beside it, so they have their last name already. They come first, and an old file goes
    # before them: a file that is there is never without its weights, nor beside those of another.
    weights = exported.with_name(data_file(path).name)
    if weights.exists():
        path.unlink(missing_ok=True)
        os.replace(weights, data_file(path))
        os.replace(exported, path)
    else:
        os.replace(exported, path)
        for stale in _files(path)[1:]:
            stale.unlink(missing_ok=True)
