"""The card of a converted whole model."""

from typing import Any

from huggingface_hub import ModelCardData

from tosa_cli.hub.measured import describe_search, describe_selectors, how_chosen
from tosa_cli.measure.agreement import AgreementReport
from tosa_cli.model.runs.find import converted_runs
from tosa_cli.model.runs.flops import WholeFlops
from tosa_cli.provenance import Provenance
from tosa_cli.recipe import command_lines

_TEXT = """---
{metadata}
---

# {name}

{source}, with a cheaper encoder: {selection} {macs}

With every token computed it equals its source, which was checked when it was converted. It was made by
[ToSA](https://arxiv.org/abs/2406.08816)'s `tosa-cli`.

## Use

```python
import tosa_cli  # pip install 'tosa-cli[transformers]'
from transformers import {kind}

model = {kind}.from_pretrained("{name}")
```

Without `import tosa_cli` transformers tells of weights named `tosa`, which it does not know, and computes every token.

## How it was made

```
{commands}
```
{measured}"""


def render_whole_card(model: Any, provenance: Provenance, name: str, flops: WholeFlops) -> str:
    """The card, in Markdown.

    Args:
        model: The converted model.
        provenance: What made it.
        name: Name of its folder or repository.
        flops: Its MACs.
    """
    run = converted_runs(model)[0].run
    assert run is not None
    rates = ", ".join(f"{layer}: {rate:g}" for layer, rate in run.config.keep_rates.items())
    selection = (
        f"its layers compute a share of the tokens (layer: share; {rates}), chosen by `{run.config.selector}`, and the "
        f"bypass `{run.config.bypass}` makes the others."
    )
    macs = (
        f"One image of {flops.img_size[0]}x{flops.img_size[1]} takes {flops.gmacs:.2f} GMACs, dense "
        f"{flops.dense_gmacs:.2f}: {flops.reduction:.1%} fewer in {flops.counted} with its head, "
        f"{flops.encoder_reduction:.1%} fewer in the layers of the encoder."
    )
    base: dict[str, Any] = {}
    if provenance.base_hub_id:
        base = {"base_model": provenance.base_hub_id, "base_model_relation": "finetune"}
    data = ModelCardData(library_name="transformers", tags=["tosa"], license=provenance.license, **base)
    measured = ""
    search = provenance.results.get("budget", {}).get("search")
    if search:
        measured += f"\n## How keep rates were found\n\n{describe_search(search)}\n"
    distilled: Any = provenance.results.get("distill") or {}
    parts = [describe_selectors(distilled) if "layers" in distilled else "", how_chosen(distilled)]
    if said := "\n\n".join(part for part in parts if part):
        measured += f"\n## What was trained and fitted\n\n{said}\n"
    agreement = provenance.results.get("eval")
    if agreement:
        rows = [
            f"| {output} | {figure} | {value:.4f} |"
            for output, figures in agreement["outputs"].items()
            for figure, value in figures.items()
        ]
        notes = [f"{note}\n" for note in AgreementReport(**agreement).notes]
        measured += f"\n## Agreement with the dense model, on {agreement['samples']} images\n\n" + "\n".join(
            ["| output | figure | mean |", "|---|---|---|", *rows, "", *notes]
        )
    return _TEXT.format(
        metadata=data.to_yaml(),
        name=name,
        source=provenance.base_model or type(model).__name__,
        selection=selection,
        macs=macs,
        kind=type(model).__name__,
        commands="\n".join(command_lines(provenance.steps)),
        measured=measured,
    )
