"""An ONNX file in OpenVINO: run there, and compared with its model in float32 and in the precision that it picks."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tosa_cli.errors import ExportError, InputError
from tosa_cli.export.check import CheckReport, check_export
from tosa_cli.export.photos import sample_images
from tosa_cli.export.program import INPUT, read_outputs
from tosa_cli.model.tosa_vit import TosaViT

PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
"""OpenVINO's names of types of numbers, and PyTorch's."""

DEVICE = "CPU"


@dataclass(frozen=True)
class OpenVinoReport:
    """How an ONNX file compares with its model in OpenVINO, on the CPU.

    Attributes:
        runtime: OpenVINO with its version.
        check: In float32; None where that failed.
        default_precision: The type of numbers that it computes in on this CPU, unless it is told otherwise.
        cosine: In that type, the mean cosine of an output's rows to the model's, by the output's name.
        not_finite: Images, of those compared, some of whose outputs are not finite in that type.
        problem: What is wrong, in a sentence; None where nothing is.
    """

    runtime: str
    check: CheckReport | None
    default_precision: str
    cosine: dict[str, float]
    not_finite: int
    problem: str | None


def is_installed() -> bool:
    """Whether OpenVINO is there."""
    return find_spec("openvino") is not None


def check_openvino_installed() -> None:
    """Check before any long work that OpenVINO is installed.

    Raises:
        InputError: If it is not.
    """
    if not is_installed():
        raise InputError("OpenVINO is not installed: run `pip install 'tosa-cli[export,openvino]'`.")


def openvino_name() -> str:
    """OpenVINO with its version."""
    import openvino

    return f"openvino {openvino.__version__.split('-')[0]}"


def default_precision() -> str:
    """The type of numbers, by PyTorch's name, that OpenVINO computes in on this CPU."""
    import openvino

    name = openvino.Core().get_property(DEVICE, "INFERENCE_PRECISION_HINT").to_string()
    return name if name in PRECISIONS.values() else PRECISIONS.get(name, name)


class OpenVinoModule(nn.Module):
    """An ONNX file that is called as a module is, by OpenVINO on the CPU.

    Args:
        path: The file.
        precision: Type of numbers to compute in, by PyTorch's name; None leaves it to OpenVINO.
        threads: Threads to compute with; None takes PyTorch's number.

    Raises:
        ExportError: If OpenVINO does not take the file.
    """

    runs_elsewhere = True

    def __init__(self, path: Path, precision: str | None = None, threads: int | None = None) -> None:
        super().__init__()
        import openvino

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = {name: hint for hint, name in PRECISIONS.items()}[precision]
        try:
            self.compiled: Any = openvino.compile_model(str(path), DEVICE, settings)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"{openvino_name()} does not take the exported file ({reason}). Update it, or take ONNX Runtime."
            ) from error
        self.names = [output.get_any_name() for output in self.compiled.outputs]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name of images (B, C, height, width)."""
        values = self.compiled({INPUT: images.float().numpy()})
        return {name: torch.from_numpy(values[number].copy()) for number, name in enumerate(self.names)}


@torch.no_grad()
def check_openvino(
    model: TosaViT,
    exported: Path,
    with_choices: Path,
    outputs: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    atol: float,
) -> OpenVinoReport:
    """Run an ONNX file in OpenVINO and compare it with its model; the arguments are `check_export`'s, with files."""
    check, problems = None, []
    try:
        told = OpenVinoModule(with_choices, "float32")
        check = check_export(model, told, told, outputs, batch_sizes=batch_sizes, atol=atol)
    except ExportError as error:
        problems.append(f"In float32: {error}")
    precision = default_precision()
    cosines: dict[str, list[Tensor]] = {name: [] for name in outputs}
    not_finite = 0
    try:
        half = OpenVinoModule(exported)
        for images in sample_images(model, sum(batch_sizes)).split(list(batch_sizes)):
            expected, actual = read_outputs(model, model.forward_features(images), outputs), half(images)
            for name in outputs:
                cosines[name].append(F.cosine_similarity(expected[name], actual[name], dim=-1).flatten())
            finite = torch.stack([actual[name].isfinite().flatten(1).all(1) for name in outputs]).all(0)
            not_finite += int((~finite).sum())
    except ExportError as error:
        problems.append(str(error))
    if not_finite:
        problems.append(
            f"In {precision}, its default on this CPU, outputs of {not_finite} of {sum(batch_sizes)} images are not "
            f"finite: set INFERENCE_PRECISION_HINT to f32."
        )
    return OpenVinoReport(
        runtime=openvino_name(),
        check=check,
        default_precision=precision,
        cosine={name: torch.cat(values).mean().item() for name, values in cosines.items() if values},
        not_finite=not_finite,
        problem=" ".join(problems) or None,
    )
