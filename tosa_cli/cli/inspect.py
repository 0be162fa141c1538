"""`tosa inspect`."""

from typing import Annotated, Any, get_args

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import ImgSizeOption, JsonOption, parse_img_size
from tosa_cli.config import Selection, TosaConfig

KEEP_RATES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def inspect(
    source: Annotated[str, typer.Argument(help="timm name, Hub id, folder or weights file.")],
    img_size: ImgSizeOption = None,
    json: JsonOption = False,
) -> None:
    """Tell whether a model can be converted, which layers it has, and what each setting would save."""
    size = parse_img_size(img_size)

    from tosa_cli.hub.source import load_source
    from tosa_cli.measure.flops import count_flops
    from tosa_cli.model.backbone import is_supported

    loaded = load_source(source, pretrained=False, img_size=size)
    model: Any = loaded.model
    depth = len(model.blocks)
    block = model.blocks[0]
    dense = count_flops(model, name=loaded.name)
    choices = {
        "every other layer": tuple(range(2, depth, 2)),
        "every other layer of the second half": tuple(range(depth // 2 // 2 * 2 + 2, depth, 2)),
    }
    choices = {name: layers for name, layers in choices.items() if layers}
    selections: list[Selection] = [selection for selection in get_args(Selection) if is_supported(model, selection)]
    savings = [
        {
            "layers": list(layers),
            "selection": selection,
            "keep_rate": rate,
            "reduction": count_flops(model, TosaConfig(layers=layers, keep_rate=rate, selection=selection)).reduction,
        }
        for layers in choices.values()
        for selection in selections
        for rate in KEEP_RATES
    ]
    report = {
        "model": loaded.name,
        "convertible": True,
        "architecture": type(model).__name__,
        "block": type(block).__name__,
        "depth": depth,
        "embed_dim": model.embed_dim,
        "num_heads": getattr(block, "attn", block).num_heads,
        "num_prefix_tokens": model.num_prefix_tokens,
        "tokens": dense.layers[0].tokens,
        "img_size": list(dense.img_size),
        "num_classes": model.num_classes,
        "dense_gmacs": dense.gmacs,
        "params": dense.params,
        "savings": savings,
    }
    if json:
        console.print_json(report)
        return
    console.print_line(
        f"{loaded.name} can be converted: {depth} layers of {report['block']}, "
        f"{report['tokens']} tokens ({report['num_prefix_tokens']} of them prefix tokens) of width "
        f"{report['embed_dim']}, {report['num_heads']} heads, {dense.gmacs:.3f} GMACs at "
        f"{dense.img_size[0]}x{dense.img_size[1]}."
    )
    rows = [
        [
            ",".join(map(str, layers)),
            selection,
            *(f"{s['reduction']:.1%}" for s in savings if s["layers"] == list(layers) and s["selection"] == selection),
        ]
        for layers in choices.values()
        for selection in selections
    ]
    console.print_table(
        "MACs saved, selectors included, by keep rate",
        ["layers", "selection", *(str(rate) for rate in KEEP_RATES)],
        rows,
    )
    console.next_command(f"tosa convert {source} --layers {','.join(map(str, next(iter(choices.values()))))}")
