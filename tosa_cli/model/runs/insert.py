"""Converts the runs of a model in place: check first, then insert, then prove that nothing else changed."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tosa_cli.config import TosaConfig
from tosa_cli.errors import ConfigError, IdentityError, TosaError, UnsupportedModelError
from tosa_cli.model.choice import Choice
from tosa_cli.model.convert import IDENTITY_TOLERANCE
from tosa_cli.model.families import kind_of
from tosa_cli.model.families.transformers_vit import parameters
from tosa_cli.model.runs.block import TosaBlock
from tosa_cli.model.runs.calls import Call, example_call
from tosa_cli.model.runs.find import ADDED, ImageRun, check_runs, converted_runs
from tosa_cli.model.runs.run import Patches, Run
from tosa_cli.model.selection import gather_tokens, scatter_tokens
from tosa_cli.model.tosa_layer import run_selected


@torch.no_grad()
def convert_runs(model: nn.Module, config: TosaConfig, example: Any = None) -> list[ImageRun]:
    """Convert every run of a model that images go through, in place, and check that keep-all equals the source.

    Args:
        model: A model of transformers, or any module with a run of blocks that are known.
        config: Where and how tokens are selected; layers are counted in each run.
        example: A batch that the model takes: images (B, C, height, width), a tuple or a dictionary; None makes one of
            random images of the model's own size.

    Returns:
        The runs.

    Raises:
        UnsupportedModelError: If it has no run in which tokens can be selected, or a layer cannot: a sentence that says
            why.
        ConfigError: If a run does not have the layers asked for, or the model does not take the example.
        IdentityError: If with every token kept the model does not equal its source; it is left as it was.
    """
    if converted_runs(model):
        raise ConfigError("The model is converted already: load its source, and convert that.")
    if config.selection == "per-head":
        raise UnsupportedModelError("A whole model is not converted with per-head selection: use --selection shared.")
    runs = check_runs(model)
    for found in runs:
        _check_layers(found, config)
    mode = model.training
    model.eval()
    try:
        for found in runs:
            call = example_call(model, found, example)
            patches = measure_patches(found, call)
            expected = call.outputs()
            insert_run(found, config, patches)
            try:
                check_keep_all(found, call, expected)
            except TosaError:
                remove_run(found)
                raise
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                remove_run(found)
                words = " ".join(str(error).split())[:200]
                raise UnsupportedModelError(
                    f"The {type(found.blocks[0]).__name__} of {found.path} was not run on selected tokens ({words}): "
                    f"update the library that it is of. The model is as it was."
                ) from error
    finally:
        model.train(mode)
    return runs


def insert_run(found: ImageRun, config: TosaConfig, patches: Patches) -> Run:
    """Put the parts of a conversion into a model, without a check; weights that they have are as after a conversion."""
    blocks = found.blocks
    run = Run(blocks, config, patches, found.patches.out_channels)
    for index, block in enumerate(blocks):
        found.layers[index] = TosaBlock(block, run, index + 1)
    found.owner.add_module(ADDED, run)
    found.patches.register_forward_hook(run.see_patches)
    run.train(found.owner.training)
    return run


def remove_run(found: ImageRun) -> None:
    """Undo `insert_run`."""
    run = found.run
    for index, layer in enumerate(found.layers):
        if isinstance(layer, TosaBlock):
            found.layers[index] = layer.restore()
    delattr(found.owner, ADDED)
    hooks = found.patches._forward_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is run]:
        del hooks[key]


@contextlib.contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Within this context a converted model computes every token, as its source does."""
    runs = [found.run for found in converted_runs(model)]
    before = [run.enabled for run in runs if run is not None]
    for run in runs:
        if run is not None:
            run.enabled = False
    try:
        yield
    finally:
        for run, enabled in zip(runs, before, strict=True):
            if run is not None:
                run.enabled = enabled


def dense_copy(model: nn.Module) -> nn.Module:
    """The source of a converted model: a copy without what the conversion added, which shares its weights."""
    source = shared_copy(model)
    for found in converted_runs(source):
        remove_run(found)
    return source


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a model, converted or not, that shares its weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def measure_patches(found: ImageRun, call: Call) -> Patches:
    """Find out what tokens enter a run: the grid of the patches, and how many come before and behind them.

    Raises:
        UnsupportedModelError: If there are fewer tokens than patches.
    """
    seen: dict[str, Tensor] = {}

    def see_patches(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.update(images=args[0], patches=output)

    def see_tokens(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen["tokens"] = args[0] if args else kwargs[parameters(type(module))[0]]

    handles = [
        found.patches.register_forward_hook(see_patches),
        found.layers[0].register_forward_pre_hook(see_tokens, with_kwargs=True),
    ]
    try:
        call.outputs()
    finally:
        for handle in handles:
            handle.remove()
    if set(seen) != {"images", "patches", "tokens"} or seen["tokens"].ndim != 3:
        raise UnsupportedModelError(f"The blocks in {found.path} are not given tokens (B, N, D) of the patches.")
    height, width = seen["images"].shape[-2:]
    rows, columns = seen["patches"].shape[-2:]
    last = getattr(kind_of(found.blocks[0]), "num_last_tokens", lambda _: 0)(found.blocks[0])
    prefix = seen["tokens"].shape[1] - rows * columns - last
    if prefix < 0 or seen["tokens"].shape[0] != seen["patches"].shape[0]:
        raise UnsupportedModelError(
            f"The blocks in {found.path} are given {seen['tokens'].shape[1]} tokens of {rows * columns} patches: they "
            f"are not all of an image's."
        )
    return Patches((height, width), (rows, columns), prefix, last)


@torch.no_grad()
def check_keep_all(found: ImageRun, call: Call, expected: dict[str, Tensor]) -> float:
    """Check on a real forward pass that selection alone changes nothing, as `model.convert.check_identity` does.

    Args:
        found: The converted run.
        call: A call of the model, or of the part of it that the run is in.
        expected: What it gave before the conversion.

    Returns:
        Largest difference, as a share of the largest value.

    Raises:
        IdentityError: If a difference is beyond rounding, or a value is not finite.
    """
    run = found.run
    assert run is not None
    given: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def see(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = parameters(type(module.block))
        extras = dict(zip(names, args, strict=False)) | dict(kwargs)
        given[int(module.layer)] = extras.pop(names[0]), extras

    rates = run.keep_rates
    run.keep_rates = dict.fromkeys(rates, 1.0)
    handles = [found.layers[layer - 1].register_forward_pre_hook(see, with_kwargs=True) for layer in rates]
    try:
        outputs = call.outputs()
    finally:
        run.keep_rates = rates
        for handle in handles:
            handle.remove()
    worst = max(_compare(name, expected[name], outputs.get(name)) for name in expected)
    generator = torch.Generator().manual_seed(0)
    for layer, (shown, extras) in given.items():
        tokens, block = run.enter(shown), run.blocks[layer - 1]
        order = _shuffled(tokens, run.num_prefix_tokens, generator)
        computed = run_selected(block, gather_tokens(tokens, order), Choice(order), extras)
        whole = kind_of(block).run(block, tokens, extras)
        worst = max(
            worst, _compare(f"layer {layer} on shuffled tokens", whole, scatter_tokens(tokens, order, computed))
        )
    return worst


def _shuffled(tokens: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """Indices (B, N) of tokens (B, N, D) with all but the first ones in an order of their own."""
    batch, length, _ = tokens.shape
    order = [torch.randperm(length - first, generator=generator) + first for _ in range(batch)]
    return torch.cat([torch.arange(first).expand(batch, -1), torch.stack(order)], dim=1).to(tokens.device)


def _compare(what: str, expected: Tensor, actual: Tensor | None) -> float:
    if actual is None or actual.shape != expected.shape:
        shape = None if actual is None else tuple(actual.shape)
        raise IdentityError(f"{what} should be of the shape {tuple(expected.shape)}, but is {shape}.")
    if not expected.numel():
        return 0.0
    difference = (expected.float() - actual.float()).abs().max().item()
    scale = max(1.0, expected.float().abs().max().item())
    tolerance = IDENTITY_TOLERANCE if expected.dtype == torch.float32 else 100 * IDENTITY_TOLERANCE
    if not difference <= tolerance * scale:
        raise IdentityError(
            f"With every token kept, {what} should equal the source model's, but differs by {difference:.2g}. "
            f"Nothing was changed. Please report the model's name."
        )
    return difference / scale


def _check_layers(found: ImageRun, config: TosaConfig) -> None:
    """Check that a run has the layers asked for, and that they can be ToSA layers.

    Raises:
        UnsupportedModelError: If one cannot.
        ConfigError: If there is no such layer.
    """
    config.check_depth(len(found.blocks))
    for layer in config.layers:
        reason = found.why_ineligible(layer, config.selection)
        if reason is not None:
            raise UnsupportedModelError(f"Layer {layer} of {found.path} {reason}")
