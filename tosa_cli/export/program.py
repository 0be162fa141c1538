"""From a model to a program of `torch.export`: what goes in, what comes out, and what ONNX has no operation for."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_structure

from tosa_cli.export.quiet import quiet
from tosa_cli.model.choice import Choice
from tosa_cli.model.tosa_vit import TosaViT

INPUT = "pixel_values"
"""Name of the images (B, C, height, width), normalised as the model's source was trained. Optimum's name."""

BATCH = "batch"
"""Name of a free number of images."""

TRACED_BATCH = 2
"""Images of the pass that is traced where the batch is left open: PyTorch takes 0 and 1 for special numbers."""


class Exportable(nn.Module):
    """A model with its outputs by name, in the order asked for.

    Args:
        model: A ToSA model, or a dense timm ViT.
        outputs: Names from `OUTPUTS`.
        with_choices: Return what each ToSA layer selected as well, under the names of `choice_names`.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str], with_choices: bool = False) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.with_choices = with_choices

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Outputs by name of images (B, C, height, width)."""
        model: Any = self.model
        if not isinstance(model, TosaViT):
            return read_outputs(model, model.forward_features(pixel_values), self.outputs)
        layers = model.run_layers(*model.embed(pixel_values))
        named = read_outputs(model, model.norm(layers.tokens), self.outputs)
        if self.with_choices:
            named |= name_choices({layer: layers.choices[layer] for layer in choosing(model)})
        return named


def read_outputs(model: Any, tokens: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
    """What the model says about final normalised tokens (B, N, D), by name.

    `logits` (B, num_classes); `pooler_output`, the pooled features (B, D) before the classifier; `last_hidden_state`,
    the tokens themselves (B, N, D), prefix tokens first, then the patches row by row.
    """
    readers: dict[str, Callable[[], Tensor]] = {
        "logits": lambda: model.forward_head(tokens),
        "pooler_output": lambda: model.forward_head(tokens, pre_logits=True),
        "last_hidden_state": lambda: tokens,
    }
    return {name: readers[name]() for name in outputs}


def name_choices(choices: dict[int, Choice]) -> dict[str, Tensor]:
    """The choices of ToSA layers by name.

    `keep_indices_<layer>`, with `partners_<layer>` where tokens are matched, `groups_<layer>` where they are in groups.
    """
    named = {}
    for layer, choice in choices.items():
        named[f"keep_indices_{layer}"] = choice.keep_indices
        if choice.partners is not None:
            named[f"partners_{layer}"] = choice.partners
        if choice.groups is not None:
            named[f"groups_{layer}"] = choice.groups
    return named


def choice_names(model: TosaViT) -> list[str]:
    """Names of the choices of a model, in the order of `name_choices`."""
    kinds = ["keep_indices"]
    if model.config.matches_tokens:
        kinds.append("partners")
    if model.config.groups_tokens:
        kinds.append("groups")
    return [f"{kind}_{layer}" for layer in choosing(model) for kind in kinds]


def choosing(model: TosaViT) -> list[int]:
    """The ToSA layers that make a choice; the others share one of these."""
    return [layer for layer in model.keep_rates if model.chooses(layer)]


@torch.no_grad()
def trace(
    model: nn.Module, outputs: Sequence[str], images: Tensor, dynamic_batch: bool, with_choices: bool = False
) -> ExportedProgram:
    """Trace a model in evaluation mode.

    Args:
        model: A ToSA model, or a dense timm ViT.
        outputs: Names of what comes out.
        images: Images (B, C, height, width) to trace with; values do not matter.
        dynamic_batch: Whether the program takes any number of images, or B alone.
        with_choices: Let the program return what each ToSA layer selected as well.
    """
    shapes = {INPUT: {0: Dim(BATCH, min=1)}} if dynamic_batch else None
    with quiet():
        return torch.export.export(Exportable(model, outputs, with_choices), (images,), dynamic_shapes=shapes)


def keep_outputs(program: ExportedProgram, outputs: Sequence[str]) -> ExportedProgram:
    """A program with fewer outputs, which shares the weights; the one it is made from stays as it is.

    Args:
        program: What `trace` returned.
        outputs: Names of the outputs that stay: the first of the program's.
    """
    count = len(outputs)
    graph = copy.deepcopy(program.graph)
    output = graph.output_node()
    output.args = (output.args[0][:count],)
    graph.eliminate_dead_code()
    root, *others = program.module_call_graph
    assert root.signature is not None
    form = tree_structure(dict.fromkeys(outputs, 0))
    called = dataclasses.replace(root.signature, outputs=root.signature.outputs[:count], out_spec=form)
    signature = program.graph_signature
    return ExportedProgram(
        program.graph_module,
        graph,
        dataclasses.replace(signature, output_specs=signature.output_specs[:count]),
        program.state_dict,
        program.range_constraints,
        [dataclasses.replace(root, signature=called), *others],
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )


@torch.no_grad()
def decompose(program: ExportedProgram) -> ExportedProgram:
    """Say in plain operations what ONNX has no operation for; all else is left to PyTorch's own exporter.

    Returns:
        The program itself, changed in place.
    """
    table: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.embedding_bag.padding_idx: _weighted_sums,
        torch.ops.aten._embedding_bag_forward_only.default: _weighted_sums,
        torch.ops.aten._embedding_bag.default: _weighted_sums,
        torch.ops.aten.sort.stable: _stable_sort,
    }
    # Only these nodes are traced: PyTorch's `run_decompositions` goes through the whole program, as its exporter will.
    with quiet():
        for node in list(program.graph.nodes):
            if node.target in table:
                _spell_out(program.graph, node, table[node.target])
        program.graph_module.recompile()
    return program


def _spell_out(graph: fx.Graph, node: fx.Node, function: Callable[..., Any]) -> None:
    """Put the operations of a function that returns several tensors into the place of a call."""
    inputs = node.all_input_nodes

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        return function(*map_arg(node.args, given.__getitem__), **map_arg(node.kwargs, given.__getitem__))

    made = make_fx(call)(*(source.meta["val"] for source in inputs))
    with graph.inserting_before(node):
        known = dict(zip(made.graph.find_nodes(op="placeholder"), inputs, strict=True))
        outputs: Any = graph.graph_copy(made.graph, known)
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _weighted_sums(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # `mean_of_partners` is what calls it: each bag has the same number of rows, each row its share.
    if mode != 0 or per_sample_weights is None or include_last_offset or padding_idx not in (None, -1):
        raise NotImplementedError("Only weighted sums of bags of one size are translated.")
    rows = weight.index_select(0, indices) * per_sample_weights[:, None]
    unused = indices.new_empty(0)
    return rows.view(offsets.shape[0], -1, weight.shape[1]).sum(1), unused, unused, unused


def _stable_sort(
    values: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    # Sorting flags: the place of a flag, added as a fraction would be, makes all of them different.
    if values.dtype is not torch.uint8 or descending:
        raise NotImplementedError("Only flags are sorted in a stable order.")
    length = values.shape[dim]
    places = torch.arange(length, device=values.device, dtype=torch.int32)
    keys = values.transpose(dim, -1).to(torch.int32) * length + places
    order = keys.topk(length, dim=-1, largest=False, sorted=True).indices.transpose(dim, -1)
    return values.gather(dim, order), order
