"""ONNX files: written by PyTorch's exporter, run by ONNX Runtime."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.export import ExportedProgram

from tosa_cli import __version__
from tosa_cli.errors import ExportError, InputError
from tosa_cli.export.program import BATCH, INPUT, choice_names, decompose, trace
from tosa_cli.export.quiet import quiet
from tosa_cli.model.class_names import class_names
from tosa_cli.model.tosa_vit import TosaViT

SINGLE_FILE_BYTES = 1_900_000_000
"""Weights beyond this go into a file beside the model's: an ONNX file ends at 2 GB."""

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Check before any long work that what ONNX needs is installed.

    Raises:
        InputError: If a package is missing.
    """
    from importlib.util import find_spec

    for name in NEEDED:
        if find_spec(name) is None:
            raise InputError(
                f"ONNX needs {name}, which is not installed: run `pip install 'tosa-cli[export]'`, or pass "
                f"--format pt2."
            )


def runtime_name() -> str:
    """ONNX Runtime with its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def write_onnx(
    model: nn.Module,
    path: Path,
    outputs: Sequence[str],
    *,
    images: Tensor,
    dynamic_batch: bool,
    opset: int,
    with_choices: bool = False,
) -> None:
    """Write a model as an ONNX file; weights that do not fit into it go beside it, under its name and `.data`.

    Args:
        model: A ToSA model, or a dense timm ViT, in evaluation mode.
        path: The file.
        outputs: Names of the outputs.
        images: Images (B, C, height, width) to trace with; values do not matter.
        dynamic_batch: Whether the file takes any number of images, or B alone.
        opset: Opset of the file.
        with_choices: Add what each ToSA layer selected to the outputs.

    Raises:
        ExportError: If PyTorch's exporter cannot say the model in ONNX.
    """
    choices = choice_names(model) if with_choices and isinstance(model, TosaViT) else []
    try:
        program = trace(model, outputs, images, dynamic_batch, with_choices)
        table = {torch.ops.aten.gather.default: _gather}
        write_program(program, path, [*outputs, *choices], opset=opset, translations=table)
    except OSError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise ExportError(
            f"PyTorch {torch.__version__} could not say this model in ONNX ({type(cause).__name__}: {reason}). "
            f"Try --format pt2."
        ) from error


@torch.no_grad()
def write_program(
    program: ExportedProgram,
    path: Path,
    outputs: Sequence[str],
    *,
    opset: int,
    translations: dict[Any, Callable[..., Any]] | None = None,
) -> None:
    """Write a program as an ONNX file; weights that do not fit into it go beside it, under its name and `.data`.

    Args:
        program: The program, which is changed in place.
        path: The file.
        outputs: Names of the outputs.
        opset: Opset of the file.
        translations: How operations are said in ONNX that PyTorch's exporter would say otherwise.
    """
    with quiet(), _in_one_go():
        written: Any = torch.onnx.export(
            decompose(program),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=outputs,
            custom_translation_table=translations,
        )
        weights = sum(value.const_value.nbytes for value in written.model.graph.initializers.values())
        written.save(path, external_data=weights > SINGLE_FILE_BYTES)


@contextmanager
def _in_one_go() -> Iterator[None]:
    """Leave out the rule by which onnxscript goes through a whole graph once for each of its nodes.

    It makes one operation of two that each take one half of a tensor. Runtimes do well without, and most of what
    simplifying the graph of a ViT-S takes is looking for such pairs.
    """
    from onnxscript.rewriter.rules.common import slice_split_rule as rule

    rule.try_rewrite = lambda *_, **__: None
    try:
        yield
    finally:
        del rule.try_rewrite


def _gather(values: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    """`torch.gather`; of rows of numbers as `GatherND`, as onnx's own evaluator misreads the other in long rows."""
    from onnxscript import opset18

    if len(values.shape) == 2 and dim in (1, -1):
        last: Any = opset18.Constant(value_ints=[-1])
        return opset18.GatherND(values, opset18.Unsqueeze(index, last), batch_dims=1)
    return opset18.GatherElements(values, index, axis=dim)


def data_file(path: Path) -> Path:
    """Where the weights of an ONNX file stand that do not fit into it."""
    return path.with_name(f"{path.name}.data")


def write_view(path: Path, target: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Write a graph again with fewer outputs, and with metadata; weights beside it are shared.

    Args:
        path: The ONNX file to read.
        target: The file to write, in the same folder.
        outputs: Names of the outputs that stay.
        metadata: What the file says of itself.
    """
    import onnx

    proto = onnx.load(path, load_external_data=False)
    kept = [output for output in proto.graph.output if output.name in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    _name_batch(proto.graph)
    proto.producer_name, proto.producer_version = "tosa", __version__
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.save(proto, target)


def _name_batch(graph: Any) -> None:
    """Give the free number of images its name wherever a shape speaks of it; PyTorch's exporter numbers it."""
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not free:
        return
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for extent in value.type.tensor_type.shape.dim:
            if extent.dim_param:
                extent.dim_param = re.sub(rf"\b{re.escape(free)}\b", BATCH, extent.dim_param)


def metadata(model: TosaViT, name: str, outputs: Sequence[str], dynamic_batch: bool = True) -> dict[str, str]:
    """What an exported file says of itself: where it comes from, and what it wants to be fed."""
    config = resolve_data_config({}, model=model)
    values: dict[str, Any] = {
        "model_name": name,
        "base_model": model.provenance.base_model,
        "license": model.provenance.license,
        "img_size": list(model.patch_embed.img_size),
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "free_dimensions": [BATCH] if dynamic_batch else [],
        "num_classes": model.num_classes,
        "class_names": class_names(model) or None,
        "num_prefix_tokens": model.num_prefix_tokens,
        "outputs": list(outputs),
        "tosa_config": model.config.to_dict(),
        "torch": torch.__version__,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }


class OnnxModule(nn.Module):
    """An ONNX file that is called as a module is, on the CPU.

    Args:
        path: The file.
        threads: Threads to compute with; None takes PyTorch's number.

    Raises:
        ExportError: If ONNX Runtime does not take the file.
    """

    runs_elsewhere = True

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"ONNX Runtime {onnxruntime.__version__} does not take the exported file ({reason}). Try another "
                f"--opset."
            ) from error
        self.names = [output.name for output in self.session.get_outputs()]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name of images (B, C, height, width)."""
        values = self.session.run(self.names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(self.names, values, strict=True)}
