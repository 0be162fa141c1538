"""What measurements say, in sentences and tables, on model cards and on the console."""

from collections.abc import Mapping
from typing import Any

from tosa_cli.measure.agreement import WHY_SILENT
from tosa_cli.measure.selectors import describe_undone
from tosa_cli.progress import counted


def describe_conditions(measured: Mapping[str, Any]) -> str:
    """On what and how `tosa eval` measured, as a sentence."""
    total = measured.get("dataset_samples")
    part = f" of {total}" if total is not None and measured["samples"] != total else ""
    size = " at {}x{} pixels".format(*measured["img_size"]) if measured.get("img_size") else ""
    return (
        f"{measured['samples']}{part} images of {measured['dataset']}{size}, {measured['device']}, "
        f"batch size {measured['batch_size']}, {measured['dtype']}."
    )


def how_chosen(done: Mapping[str, Any]) -> str:
    """What the held-out images decided that give the figures of `tosa distill` or `tosa finetune`, as a sentence."""
    if done.get("fit_kept") is not None:
        return _why_kept(done["fit_kept"], done.get("fit_change"), done.get("fit_change_error"))
    if done.get("best_step") is not None:
        return (
            f"The weights are the best of {done.get('measurements', 'several')} measurements on these same "
            f"images, the start included: on others they may gain less."
        )
    return ""


def _why_kept(kept: bool, change: float | None, error: float | None) -> str:
    """Why a fit was kept or not, by what it changed image by image."""
    by_image = "" if change is None else f" Image by image the cosine changed by {change:+.4f} ± {error:.4f}."
    if not kept:
        return f"The fit was not kept, as it did no better on these images.{by_image}"
    if change is None or change > 0:
        return f"The fit was kept as it did better on these same images: on others it may gain less.{by_image}"
    return f"The fit was kept, as these images do not show that it does worse.{by_image}"


def describe_search(search: Mapping[str, Any]) -> str:
    """On what the keep rates were found, and what held-out images say of them, in sentences."""
    found = (
        f"Keep rates were found on {counted(search['images'], 'image')}, where 1 - cosine of the final tokens to the "
        f"source's is {search['error']:.4f}."
    )
    held: Any = search.get("held")
    if held is None:
        return found
    may_be = "a little more" if "drop" in held else "a little lower"
    return (
        f"{found} {describe_held(held)} How much is saved was decided on these same images: on others it may be "
        f"{may_be}."
    )


def describe_held(held: Mapping[str, Any]) -> str:
    """What held on held-out images, a drop or a nearness, and how sure that is, in a sentence."""
    return _describe_drop(held) if "drop" in held else _describe_nearness(held)


def _describe_nearness(held: Mapping[str, Any]) -> str:
    means = [
        f"of {kind} tokens {held[f'{kind}_cosine']:.4f} ± {held[f'{kind}_error']:.4f}"
        for kind in ("patch", "class")
        if held[f"{kind}_cosine"] is not None
    ]
    bound = held.get("sure")  # folders of before do not have it
    sure = "" if bound is None else f"; on other such images it is above {bound:.4f} with 95 % confidence"
    return f"Mean cosine on {counted(held['images'], 'held-out image')} {', '.join(means)} (± standard error){sure}."


def _describe_drop(held: Mapping[str, Any]) -> str:
    more = ""
    if left_out := held.get("left_out"):  # folders of before do not have it
        more = f" Left out: {counted(left_out, 'image')}, as {WHY_SILENT}."
    by_image = "" if held["lost"] is None else f", {held['lost']} of the images lost and {held['gained']} gained"
    bound = held.get("sure")
    if bound is None:
        sure = "each loses the same, so what other images lose they do not say"
    else:
        sure = f"on other such images it is less than {bound:.2f} with 95 % confidence"
    return (
        f"On {counted(held['images'], 'held-out image')} {held['measure']} is {held['converted']:.2f} %, and "
        f"{held['dense']:.2f} % dense: a drop of {held['drop']:.2f} ± {held['drop_error']:.2f} points (± standard "
        f"error, image by image{by_image}); {sure}.{more}"
    )


def selectors_undone(distilled: Mapping[str, Any]) -> str:
    """That selectors are of no use once they are trained, and what to do, in sentences; empty if they are of use.

    Args:
        distilled: What `tosa distill` measured on held-out images.
    """
    layers = distilled.get("layers", ())
    before, after = (sum(layer[f"kl_{when}"] for layer in layers) for when in ("before", "after"))
    level = [layer["layer"] for layer in layers if layer.get("is_level")]  # folders of before do not have it
    remedy = "Distill the model as it was before with a smaller --lr, or on more images."
    return describe_undone(before, after, level, "the held-out images", remedy)


def describe_selectors(distilled: Mapping[str, Any]) -> str:
    """How well trained selectors predict, as a table in Markdown, and what is told of a training that was of no use.

    Args:
        distilled: What `tosa distill` measured on held-out images.
    """
    rows = [
        f"| {layer['layer']} | {layer['kl_before']:.3f} | {layer['kl_after']:.3f} | {layer['found']:.1%} | "
        f"{layer['found_previous']:.1%} | {layer['found_random']:.1%} |"
        for layer in distilled["layers"]
    ]
    undone = selectors_undone(distilled)
    return (
        f"Selectors on {counted(distilled['samples'], 'held-out image')}: KL divergence to the true maps, and the "
        f"share of the truly most attended tokens that is selected; beside the feeding layer's own map, and chance."
        f"{undone and ' '}{undone}\n\n"
        "| layer | KL before | KL after | found | previous map | random |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
    )
