"""Weights of a whole model by its own names: out of the dictionaries and names that training puts around them.

Unlike timm's models (`weight_sets`), whole ones have no tensor by which their names are known; but their parts are.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tosa_cli.errors import CheckpointError
from tosa_cli.hub.adapters import check_no_adapter_among
from tosa_cli.hub.weight_sets import PREFERRED, before_peft, flat_tensors, is_copy, without_wrappers

_FRONTS = ("module.", "base_model.model.")
"""What DDP, DeepSpeed and PEFT put before all names."""


def own_names(
    checkpoint: Mapping[Any, Any], parts: Collection[str] | None, shown: str
) -> dict[str, tuple[str, Tensor]]:
    """The tensors of one model by its own names.

    Args:
        checkpoint: What a file holds, or several.
        parts: First words of the model's names in a file, so that what else stands before most of them is taken off;
            None takes off only what is known to be no part of a name.
        shown: What to call it in an error.

    Returns:
        By the model's names, the names in the file, and the tensors.

    Raises:
        CheckpointError: If an adapter is not merged into the weights, or there are several sets of them.
    """
    found = list(flat_tensors(checkpoint))
    check_no_adapter_among((name for name, _, _ in found), shown)
    chosen = _place(Counter(place for _, place, _ in found), shown)
    named = {
        _without_fronts(without_wrappers(before_peft(name.removeprefix(place)))): (name, tensor)
        for name, place, tensor in found
        if place == chosen and not is_copy(name)
    }
    while parts is not None and (front := _front(named, parts)):
        named = {name.removeprefix(front): value for name, value in named.items()}
    return named


def _place(tensors: Counter[str], shown: str) -> str:
    """The dictionary that holds the weights, of those that hold so many tensors."""
    if not tensors or "" in tensors:
        return ""
    most = max(tensors.values())
    large = [place for place, count in tensors.items() if 2 * count > most]
    if len(large) > 1 and {place.rstrip(".") for place in large} & {*PREFERRED}:
        sets = " and ".join(repr(place.removesuffix(".")) for place in large)
        raise CheckpointError(
            f"The weights of {shown} are several, {sets}: save those that are meant by save_pretrained()."
        )
    return max(tensors, key=lambda place: tensors[place])


def _without_fronts(name: str) -> str:
    before = ""
    while name != before:
        before = name
        for front in _FRONTS:
            name = name.removeprefix(front)
    return name


def _front(names: Collection[str], parts: Collection[str]) -> str:
    """What stands before most names and is no part of the model, as the attribute of a module of Lightning."""
    words = [name.split(".") for name in names]
    if any(first in parts for first, *_ in words):
        return ""
    fronts = Counter(first for first, *rest in words if rest)
    return f"{fronts.most_common(1)[0][0]}." if fronts else ""
