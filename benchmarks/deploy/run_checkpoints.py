"""What converts, and how well: timm architectures and repositories in transformers' format, one row each.

    python -m benchmarks.deploy.run_checkpoints [--only NAME ...]
    python -m benchmarks.deploy.run_checkpoints --render

Weights are random, of a trained model's size, so nothing is downloaded: what is shown is that the converted model
computes what its source computes, what it saves, and that its ONNX file agrees. Of the repositories the published
configuration is built with transformers, saved as the Hub has it, and converted from there. The script writes
benchmarks/results/checkpoints.json after each row and goes on where it stopped; benchmarks/CHECKPOINTS.md is made from
that file alone.
"""

import argparse
import gc
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lab import FIGURES, FIVE, HERE
from benchmarks.writer import table, write_json

RESULTS = FIGURES / "checkpoints.json"
ATOL = 1e-3

ARCHITECTURES = (
    "beit_base_patch16_224",
    "beitv2_base_patch16_224",
    "deit3_base_patch16_224",
    "deit3_small_patch16_224",
    "deit_base_patch16_224",
    "deit_small_distilled_patch16_224",
    "deit_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit_tiny_patch16_224",
    "eva02_base_patch16_clip_224",
    "eva02_small_patch14_224",
    "eva02_tiny_patch14_224",
    "flexivit_small",
    "vit_base_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_plus_clip_240",
    "vit_base_patch16_rope_224",
    "vit_base_patch16_rope_reg1_gap_256",
    "vit_base_patch16_rpn_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_xp_224",
    "vit_base_patch32_clip_256",
    "vit_little_patch16_reg1_gap_256",
    "vit_little_patch16_reg4_gap_256",
    "vit_medium_patch16_gap_240",
    "vit_medium_patch16_reg4_gap_256",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_relpos_small_patch16_224",
    "vit_relpos_small_patch16_rpn_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_224",
    "vit_small_patch16_384",
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_ape_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_small_patch32_224",
    "vit_small_plus_patch16_dinov3",
    "vit_srelpos_small_patch16_224",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_wee_patch16_reg1_gap_256",
    "vit_xsmall_patch16_clip_224",
)
SIZES = {"vit_small_patch14_dinov2": 224, "vit_small_patch14_reg4_dinov2": 224}
"""Image sizes in pixels other than the architecture's own."""


def main() -> None:
    """Measure the rows that are not there yet, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="measure these rows only")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if not args.render:
        # The published configurations lie with the tests.
        from tests.hub.transformers_models import NAMES
        from tosa_cli.errors import TosaError

        rows = {name: partial(from_timm, name) for name in ARCHITECTURES}
        rows |= {name: partial(from_transformers, name) for name in NAMES}
        for name, run in rows.items():
            if name in results or (args.only and name not in args.only):
                continue
            try:
                results[name] = run()
            except TosaError as error:
                # A row that fails belongs into the page as well.
                results[name] = {"error": str(error)}
            gc.collect()
            write_json(RESULTS, results)
            print(name, results[name], flush=True)
    (HERE / "CHECKPOINTS.md").write_text(render(results), encoding="utf-8")


def from_timm(name: str) -> dict[str, Any]:
    """Measure one of timm's architectures."""
    import timm

    from tests.model.tiny_models import randomize_

    size = {"img_size": SIZES[name]} if name in SIZES else {}
    model: Any = randomize_(timm.create_model(name, **size), seed=0).eval()
    if "_rpn_" in name:
        # Branches that end in a norm are all as large as it says: with random weights the model would be chaotic.
        for block in model.blocks:
            block.norm1.weight.data *= 0.2
            block.norm2.weight.data *= 0.2
    return measure(model)


def from_transformers(name: str) -> dict[str, Any]:
    """Measure a repository in transformers' format, built from its published configuration."""
    import torch

    from tests.hub.transformers_models import build, make_pixels, output_of, published, save
    from tests.model.tiny_models import randomize_
    from tosa_cli.hub.source import load_source

    original = randomize_(build(published(name)), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = save(original, Path(folder, "model"), published(name, "preprocessor_config.json"))
        source = load_source(str(path))
    images = make_pixels(original)
    with torch.no_grad():
        expected, found = output_of(original, images), source.model(images)
    difference = ((expected - found).abs().max() / expected.abs().max()).item()
    del original
    return {"timm": source.name, "difference_from_transformers": difference, **measure(source.model)}


def measure(dense: Any) -> dict[str, Any]:
    """Convert a dense model, and compare: with its source, in MACs, and with its ONNX file."""
    from tosa_cli.config import TosaConfig
    from tosa_cli.errors import ExportError
    from tosa_cli.export.config import ExportConfig
    from tosa_cli.export.export import export_model
    from tosa_cli.model.convert import check_identity
    from tosa_cli.model.flops import count_flops
    from tosa_cli.model.tosa_vit import TosaViT

    reduction = {
        str(rate): count_flops(dense, TosaConfig(layers=FIVE, keep_rate=rate)).reduction for rate in (0.8, 0.5)
    }
    model = TosaViT(dense, TosaConfig(layers=FIVE)).eval()
    row: dict[str, Any] = {
        "img_size": list(model.patch_embed.img_size),
        "params": sum(parameter.numel() for parameter in dense.parameters()),
        "identity": check_identity(model),
        "reduction": reduction,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            check = export_model(model, Path(folder, "model.onnx"), ExportConfig(atol=ATOL)).check
        except ExportError as error:
            return {**row, "onnx": {"error": str(error)}}
    return {**row, "onnx": {name: getattr(check, name) for name in ("images", "same_choices", "same_difference")}}


def render(results: dict[str, Any]) -> str:
    """The page."""
    head = (
        "# What converts\n\n"
        "Made by `python -m benchmarks.deploy.run_checkpoints` from `results/checkpoints.json`; nothing here is typed "
        "by hand. Weights are random, of a trained model's size: the Hub is not needed, and every layer matters. "
        "Layers 2,4,6,8,10, selector `attention` with 16 query rows.\n\n"
        "- **identity**: largest difference of final tokens and output from the source with every token kept, and of "
        "each ToSA layer on shuffled tokens. `convert` refuses a model at 1e-4 of its largest value.\n"
        "- **saves**: share of the MACs, selectors counted.\n"
        "- **ONNX**: images for which ONNX Runtime selects the same tokens in every layer, and the largest difference "
        "of the output for these, where it is above 1 relative to the largest value. A choice among scores that are "
        "equal but for rounding may fall either way; any other difference would be an error.\n\n"
        "`tosa list` says of each of timm's architectures whether it converts, and why not."
    )
    own = {name: row for name, row in results.items() if "difference_from_transformers" not in row}
    foreign = {name: row for name, row in results.items() if name not in own}
    parts = [head, "## timm architectures", _table(["architecture"], [([name], own[name]) for name in sorted(own)])]
    if foreign:
        rows = [
            ([name, row["timm"], f"{row['difference_from_transformers']:.1e}"], row)
            for name, row in sorted(foreign.items())
        ]
        parts += [
            "## Repositories in transformers' format",
            "Built with transformers from the published configuration, with random weights. The difference from "
            "transformers is that of the output, relative to its largest value.",
            _table(["repository", "becomes", "difference from transformers"], rows),
        ]
    return "\n\n".join(parts) + "\n"


def _table(first: list[str], rows: list[tuple[list[str], dict[str, Any]]]) -> str:
    head = [*first, "image", "parameters", "identity", "saves at 0.8", "at 0.5", "ONNX: same tokens", "difference"]
    lines: list[list[str]] = []
    for names, row in rows:
        if "error" in row:
            lines.append([*names, row["error"], *[""] * (len(head) - len(names) - 1)])
            continue
        onnx = row["onnx"]
        if "error" in onnx:
            agreement = ["error", onnx["error"]]
        else:
            difference = onnx["same_difference"]
            agreement = [
                f"{onnx['same_choices']} of {onnx['images']}",
                "-" if difference is None else f"{difference:.1e}",
            ]
        cells = [
            "x".join(map(str, row["img_size"])),
            f"{row['params'] / 1e6:.1f} M",
            f"{row['identity']:.1e}",
            f"{row['reduction']['0.8']:.1%}",
            f"{row['reduction']['0.5']:.1%}",
        ]
        lines.append([*names, *cells, *agreement])
    return table(head, lines)


if __name__ == "__main__":
    main()
