"""Every family that converts computes what its source would, were the skipped tokens hidden from it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.sentences import fragments
from tosa_cli import methods
from tosa_cli.config import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.hub.checkpoint import load
from tosa_cli.model.attention import run_and_tap
from tosa_cli.model.choice import Choice
from tosa_cli.model.convert import check_identity, insert_selectors
from tosa_cli.model.families import (
    attention_input,
    check_convertible,
    check_supported,
    embed_with_places,
    mean_key_projection,
)
from tosa_cli.model.places import Places, gather_bias, gather_rope
from tosa_cli.model.selection import choose_tokens
from tosa_cli.model.stream import Stream
from tosa_cli.model.tosa_layer import run_tosa_layer
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.train.finetune import set_drop_path
from tosa_cli.workflow.save import save

from .families import FAMILIES, MECHANISMS, make_family
from .test_timm_interface import flatten
from .tiny_models import make_images, make_tosa

LAYERS = (2, 4)
SELECTORS = ("attention", "similarity", "probe", "previous", "random")
BYPASSES = ("identity", "linear", "nearest", "nearest+affine", "nearest+linear")

TOLD_OF_PLACES = ("EVA-02", "mixed rotation", "BEiT, both biases")
"""One family for each way in which a block is told where its tokens stand."""


def convert_family(family: str, **settings: Any) -> TosaViT:
    """A ToSA model of a family, every other layer."""
    return make_tosa(make_family(family), **{"layers": LAYERS, "keep_rate": 0.6, **settings})


def convert_short(family: str, **settings: Any) -> TosaViT:
    """A ToSA layer of a family, behind a standard one where that feeds it: for compilers, which are slow."""
    depth = 2 if methods.SELECTORS[settings.get("selector", "attention")].reads_maps else 1
    return make_tosa(make_family(family, depth=depth), layers=(depth,), keep_rate=0.6, **settings)


def images_of(model: Any, batch: int = 2) -> Tensor:
    return make_images(batch, tuple(model.patch_embed.img_size))


class AddToLogits(TorchFunctionMode):
    """Adds something to the logits of every attention that is computed, whatever else is added to them."""

    def __init__(self, added: Tensor) -> None:
        super().__init__()
        self.added = added

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            bias = kwargs.get("attn_mask")
            kwargs["attn_mask"] = self.added if bias is None else bias + self.added
        return func(*args, **kwargs)


def hide_skipped(keep_indices: Tensor, length: int, sizes: Tensor | None = None) -> Tensor:
    """What is added to logits so that only selected tokens (B, K) are attended to: (B, 1, 1, N)."""
    values = torch.zeros(keep_indices.shape) if sizes is None else sizes.log()
    return torch.full((len(keep_indices), length), -torch.inf).scatter(1, keep_indices, values)[:, None, None]


class RunHidden:
    """Runs some blocks of a timm model as ToSA layers that compute every token, and throw away what is skipped."""

    def __init__(self, model: Any, keep_indices: dict[int, Tensor]) -> None:
        for layer, keep in keep_indices.items():
            model.blocks[layer - 1].register_forward_hook(self.replace(keep), with_kwargs=True)

    def replace(self, keep: Tensor) -> Any:
        def hook(block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            (tokens,) = args
            kwargs = {name: value for name, value in kwargs.items() if name != "is_causal"}
            with AddToLogits(hide_skipped(keep, tokens.shape[1])):
                computed = block.forward(tokens, **kwargs)
            is_kept = torch.zeros(tokens.shape[:2], dtype=torch.bool).scatter(1, keep, True)
            return torch.where(is_kept[..., None], computed, tokens)

        return hook


# ---------------------------------------------------------------------- the same as the source


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_every_token_kept_it_equals_its_source(family: str) -> None:
    source = make_family(family)
    images = images_of(source)
    model = make_tosa(source, layers=LAYERS, keep_rate=1.0)
    tokens, output = source.forward_features(images), source(images)
    assert tokens.std() > 0.1 and output.std() > 0
    assert torch.allclose(model.forward_features(images), tokens, atol=1e-4)
    assert torch.allclose(model(images), output, atol=1e-4)


@pytest.mark.parametrize("selector", ["attention", "random"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_below_it_equals_its_source_with_the_skipped_tokens_hidden(family: str, selector: str) -> None:
    source = make_family(family)
    images = images_of(source, 3)
    model = make_tosa(source, layers=LAYERS, keep_rate=0.6, selector=selector)
    torch.manual_seed(0)
    keep = model.forward_selection(images)
    torch.manual_seed(0)
    tokens = model.forward_features(images)
    assert all(len({tuple(row.tolist()) for row in rows}) == 3 for rows in keep.values())  # images differ in choice
    dense = source.forward_features(images)
    RunHidden(source, keep)
    assert torch.allclose(tokens, source.forward_features(images), atol=2e-4)
    assert not torch.allclose(tokens, dense, atol=1e-2)


@pytest.mark.parametrize("family", MECHANISMS)
@torch.no_grad()
def test_kept_tokens_count_for_those_they_stand_for_beside_any_bias(family: str) -> None:
    model = convert_family(family, selector="similarity", bypass="nearest")
    tokens, places = embed_with_places(model.backbone, images_of(model))
    choice = model.choose(2, Stream(tokens, places))
    assert choice.partners is not None and choice.weights is not None and choice.skip_indices is not None
    sizes = torch.ones(choice.keep_indices.shape)
    for image, token, k in torch.cartesian_prod(*(torch.arange(n) for n in choice.partners.shape)).tolist():
        sizes[image, choice.partners[image, token, k]] += choice.weights[image, token, k]
    with AddToLogits(hide_skipped(choice.keep_indices, tokens.shape[1], sizes)):
        computed = model.run_block(2, tokens, places)
    expected = computed.clone()
    for image, token in torch.cartesian_prod(*(torch.arange(n) for n in choice.skip_indices.shape)).tolist():
        partners = choice.keep_indices[image, choice.partners[image, token]]
        updates = computed[image, partners] - tokens[image, partners]
        skipped = choice.skip_indices[image, token]
        expected[image, skipped] = tokens[image, skipped] + choice.weights[image, token] @ updates
    output = run_tosa_layer(model.blocks[1], tokens, choice, model.bypass(2), places.of(2))
    assert torch.allclose(output, expected, atol=1e-4)
    assert sizes.max() > 1.5


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_checks_itself(family: str) -> None:
    model = insert_selectors(make_family(family), TosaConfig(layers=LAYERS, keep_rate=0.5))
    assert check_identity(model) < 1e-3


@pytest.mark.parametrize("family", MECHANISMS)
@pytest.mark.parametrize("selector", SELECTORS)
@torch.no_grad()
def test_every_selector_and_bypass_works(family: str, selector: str) -> None:
    source = make_family(family)
    images = images_of(source)
    expected = source.forward_features(images)
    for bypass in BYPASSES:
        model = make_tosa(source, layers=LAYERS, selector=selector, bypass=bypass, keep_rate=0.6)
        tokens = model.forward_features(images)
        assert tokens.shape == expected.shape and tokens.isfinite().all() and model(images).isfinite().all()


# ---------------------------------------------------------------------- what is read of a block


class ReadSoftmax(TorchFunctionMode):
    """Notes what goes into the softmax of attention that is not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.softmax:
            self.logits.append(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [5, "all"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_logits_read_are_those_that_the_softmax_sees(family: str, rows: int | str) -> None:
    model = make_family(family)
    tokens, places = embed_with_places(model, images_of(model))
    block: Any = model.blocks[1]
    output, logits = run_and_tap(block, tokens, rows, extras=places.of(2))
    assert torch.allclose(output, block(tokens, **places.of(2)), atol=1e-4)
    for module in block.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with ReadSoftmax() as seen:
        block(tokens, **places.of(2))
    whole = torch.cat(seen.logits, dim=1)
    if rows != "all":
        whole = whole[:, :, torch.linspace(0, tokens.shape[1] - 1, int(rows)).round().long()]
    assert logits.shape == whole.shape and torch.allclose(logits, whole, atol=1e-4)


class ReadKeys(TorchFunctionMode):
    """Notes the keys that are attended with."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.keys.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_are_compared_by_the_mean_of_their_attention_keys(family: str) -> None:
    model = make_family(family)
    tokens, places = embed_with_places(model, images_of(model))
    block: Any = model.blocks[1]
    for module in block.modules():
        if hasattr(module, "k_norm"):
            module.k_norm = nn.Identity()
    with ReadKeys() as seen:  # a block that is told of no places does not rotate its keys
        block(tokens, **{name: value for name, value in places.of(2).items() if name != "rope"})
    weight, bias = mean_key_projection(block)
    keys = F.linear(attention_input(block, tokens), weight, bias)
    assert torch.allclose(keys, seen.keys[0].mean(dim=1), atol=1e-4)


@torch.no_grad()
def test_parallel_attentions_are_read_together() -> None:
    model = convert_family("parallel attentions")
    assert model.selectors["2"].conv1.in_channels == 4  # two attentions of two heads
    tokens, places = embed_with_places(model.backbone, images_of(model))
    calls = []
    _, result = run_and_tap(
        model.blocks[0], tokens, 3, lambda logits: calls.append(logits.shape) or logits, extras=places.of(1)
    )
    assert calls == [(2, 4, 3, tokens.shape[1])] and result.shape == calls[0]


# ---------------------------------------------------------------------- places


def test_rotary_tables_are_gathered_for_each_image() -> None:
    indices = torch.tensor([[0, 3, 4], [5, 1, 2]])
    shared, by_head = torch.randn(6, 8), torch.randn(2, 6, 8)
    of_images = torch.randn(2, 1, 6, 8)
    for image in range(2):
        for place, patch in enumerate(indices[image].tolist()):
            assert gather_rope(shared, indices)[image, 0, place].equal(shared[patch])
            assert gather_rope(by_head, indices)[image, :, place].equal(by_head[:, patch])
            assert gather_rope(of_images, indices)[image, :, place].equal(of_images[image, :, patch])


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 2, 6, 6)], ids=str)
def test_a_bias_is_gathered_by_rows_and_columns(shape: tuple[int, ...]) -> None:
    indices = torch.tensor([[0, 3, 4], [5, 1, 2]])
    bias = torch.randn(shape)
    gathered, whole = gather_bias(bias, indices), bias.view(2, 6, 6)
    assert gathered.shape == (2, 2, 3, 3)
    for image, head, row, column in torch.cartesian_prod(*(torch.arange(n) for n in gathered.shape)).tolist():
        expected = whole[head, indices[image, row], indices[image, column]]
        assert gathered[image, head, row, column] == expected


def test_plain_blocks_are_told_nothing() -> None:
    for family in ("plain", "norm after", "attention beside MLP", "parallel attentions", "EVA", "relative positions"):
        model = make_family(family)
        _, places = embed_with_places(model, images_of(model))
        assert places == Places((4, 6)) and places.of(3) == {}


def test_mixed_tables_differ_from_layer_to_layer() -> None:
    model = make_family("mixed rotation")
    _, places = embed_with_places(model, images_of(model))
    assert not torch.allclose(places.of(1)["rope"], places.of(2)["rope"], atol=0.1)
    assert places.of(1)["rope"].shape == (2, 24, 48)


@pytest.mark.parametrize("family", ["EVA-02", "BEiT", "relative positions", "shared relative positions"])
@torch.no_grad()
def test_the_check_of_conversion_finds_places_that_are_not_gathered(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = convert_family(family)
    monkeypatch.setattr("tosa_cli.model.families.timm_eva.gather_rope", lambda rope, indices: rope)
    monkeypatch.setattr("tosa_cli.model.places.gather_bias", lambda bias, indices: bias)
    with pytest.raises(Exception, match="layer 2"):
        check_identity(model)


# ---------------------------------------------------------------------- timm's interface


@pytest.mark.parametrize("family", MECHANISMS)
@torch.no_grad()
def test_intermediates_have_the_sources_form(family: str) -> None:
    source = make_family(family)
    images = images_of(source)
    for options in ({}, {"indices": [1, 2], "output_fmt": "NLC", "norm": True}, {"indices": [2], "stop_early": True}):
        expected = flatten(source.forward_intermediates(images, **options))
        for keep_rate in (1.0, 0.5):
            model = make_tosa(source, layers=LAYERS, keep_rate=keep_rate)
            features = flatten(model.forward_intermediates(images, **options))
            assert [(place, t.shape) for place, t in features] == [(place, t.shape) for place, t in expected]
            same = [torch.allclose(a, b, atol=1e-3) for (_, a), (_, b) in zip(features, expected, strict=True)]
            assert all(same) == (keep_rate == 1.0)


@pytest.mark.parametrize("family", ["dynamic size", "mixed rotation, dynamic size", "DINOv3", "LingBot"])
@torch.no_grad()
def test_images_of_another_size_go_in_where_they_do_in_the_source(family: str) -> None:
    source = make_family(family, dynamic_img_size=True)
    model = make_tosa(source, layers=LAYERS, keep_rate=1.0)
    images = make_images(size=(96, 48))
    assert torch.allclose(model(images), source(images), atol=1e-4)
    assert model.forward_intermediates(images, 1, intermediates_only=True)[0].shape == (2, 48, 6, 3)
    model = make_tosa(source, layers=LAYERS, keep_rate=0.6)
    keep, tokens = model.forward_selection(images), model.forward_features(images)
    RunHidden(source, keep)
    assert torch.allclose(tokens, source.forward_features(images), atol=2e-4)


@pytest.mark.parametrize("family", MECHANISMS)
def test_a_folder_loads_and_gives_features(family: str, tmp_path: Path) -> None:
    model = convert_family(family, selector="similarity", bypass="nearest+affine")
    images = images_of(model)
    save(model, tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model")(images), model(images))
        source: Any = f"local-dir:{tmp_path / 'model'}"
        extractor = timm.create_model(source, pretrained=True, features_only=True, out_indices=[1, 3]).eval()
        expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(extractor(images), expected, strict=True))


@pytest.mark.parametrize(
    "family", ["EVA-02", "mixed rotation", "DINOv3", "BEiT, both biases", "shared relative positions"]
)
@torch.no_grad()
def test_another_image_size_is_taken_as_timm_takes_it(family: str, tmp_path: Path) -> None:
    patch = 14 if family == "EVA-02" else 16
    # What a table of BEiT was made for is not saved with it; timm takes it to have been a square.
    source = make_family(family, img_size=4 * patch)
    model = make_tosa(source, layers=LAYERS, keep_rate=1.0)
    save(model, tmp_path / "model")
    size = (5 * patch, 3 * patch)
    images = make_images(size=size)
    resized = load(tmp_path / "model", img_size=size)
    resized.keep_rates = dict.fromkeys(LAYERS, 1.0)
    source.set_input_size(size)
    assert torch.allclose(resized(images), source(images), atol=1e-4)
    built: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=size).eval()
    # timm resamples with other options while it loads than afterwards; where nothing is resampled it is the same.
    assert built(images).shape == source(images).shape
    assert family != "mixed rotation" or torch.allclose(built(images), source(images), atol=1e-4)


@pytest.mark.parametrize("family", MECHANISMS)
def test_timms_traits_are_those_of_the_source(family: str) -> None:
    source = make_family(family)
    model = make_tosa(source, layers=LAYERS)
    for trait in ("num_classes", "num_features", "embed_dim", "head_hidden_size", "in_chans", "num_prefix_tokens"):
        assert getattr(model, trait) == getattr(source, trait), trait
    assert model.no_weight_decay() == source.no_weight_decay()
    model.reset_classifier(3)
    assert model(images_of(model)).shape == (2, 3)
    model.prune_intermediate_layers([2])
    maps = model.forward_intermediates(images_of(model), indices=[2], intermediates_only=True)
    assert maps[0].shape == (2, model.embed_dim, 4, 6) and len(model.blocks) == 3


@pytest.mark.parametrize("family", MECHANISMS)
def test_gradients_reach_all_that_reaches_the_output(family: str) -> None:
    model = convert_family(family, bypass="nearest+affine")
    tables = [name for name, _ in model.backbone.named_parameters() if "rope" in name or "rel" in name]
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model.forward_features(images_of(model)).square().sum().backward()
        named = dict(model.backbone.named_parameters())
        assert all(named[name].grad.abs().sum() > 0 for name in tables)
        gradients.append(torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max())


@pytest.mark.parametrize("settings", [{}, {"selector": "similarity", "bypass": "nearest+affine"}], ids=str)
@pytest.mark.parametrize("family", [family for family in MECHANISMS if family != "plain"])
def test_a_compiled_model_is_one_graph_and_takes_another_number_of_images(
    family: str, settings: dict[str, Any]
) -> None:
    torch.compiler.reset()
    model = convert_short(family, **settings)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    several = (1, 2, 3) if settings and family in TOLD_OF_PLACES else (2,)  # the first two are compiled
    with torch.no_grad():
        for batch in several:
            images = images_of(model, batch)
            assert torch.allclose(compiled(images), model(images), atol=1e-4)


@pytest.mark.parametrize("family", ["EVA-02", "DINOv3", "BEiT, both biases", "shared relative positions"])
@torch.no_grad()
def test_it_runs_in_half_precision(family: str) -> None:
    model = convert_family(family, selector="similarity", bypass="nearest+affine")
    images = images_of(model)
    expected = model.forward_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.forward_features(images)
    whole = copy.deepcopy(model).to(torch.bfloat16).forward_features(images.bfloat16())
    assert whole.dtype == torch.bfloat16
    for tokens in (mixed, whole):
        assert F.cosine_similarity(tokens.float(), expected, dim=-1).mean() > 0.9


# ---------------------------------------------------------------------- stochastic depth


def drop_rates(model: nn.Module) -> dict[str, float]:
    """The rate of every place where a model drops a branch at random."""
    return {name: module.drop_prob for name, module in model.named_modules() if isinstance(module, DropPath)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_given_its_rate_of_stochastic_depth(family: str) -> None:
    expected = drop_rates(make_family(family, drop_path_rate=0.3))
    model = convert_family(family)
    set_drop_path(model, 0.3)
    assert drop_rates(model.backbone) == pytest.approx(expected) and len(expected) >= 3
    set_drop_path(model, 0.0)
    assert drop_rates(model.backbone) == {}


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("family", [family for family in MECHANISMS if family != "plain"])
def test_selection_by_head_is_for_plain_blocks(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=fragments.LAYER_1_PER_HEAD_BLOCK):
        check_supported(make_family(family), "per-head")


def test_a_bias_that_cannot_be_gathered_is_refused() -> None:
    for family in ("BEiT", "relative positions"):
        model: Any = make_family(family)
        model.blocks[2].attn.fused_attn = False
        with pytest.raises(UnsupportedModelError, match=fragments.LAYER_3_TIMM_FUSED_ATTN):
            check_convertible(model, TosaConfig(layers=(3,), selector="similarity"))
        for block in model.blocks:
            block.attn.fused_attn = False
        with pytest.raises(UnsupportedModelError, match=fragments.LAYER_1_TIMM_FUSED_ATTN):
            check_supported(model)


@torch.no_grad()
def test_a_table_without_fused_attention_is_gathered_too() -> None:
    model = convert_family("EVA-02", selector="similarity", bypass="nearest")
    images = images_of(model)
    expected = model(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    assert torch.allclose(model(images), expected, atol=1e-4)


def test_patches_dropped_in_training_take_their_rotation_with_them() -> None:
    for family in ("rotation, register", "mixed rotation"):
        source: Any = make_family(family, patch_drop_rate=0.5).train()
        model = make_tosa(source, layers=LAYERS, keep_rate=1.0, selector="random").train()
        outputs = []
        for one in (source, model):
            torch.manual_seed(3)
            outputs.append(one.forward_features(images_of(source)))
        assert outputs[0].shape[1] == 12 + source.num_prefix_tokens
        assert torch.allclose(*outputs, atol=1e-4)
        model.keep_rates = dict.fromkeys(LAYERS, 0.5)
        assert model(images_of(source)).isfinite().all()


def test_the_choice_of_a_layer_may_stand_in_any_order() -> None:
    # The check of conversion relies on it.
    keep = choose_tokens(torch.randn(2, 9), 5, 1).flip(1)
    assert torch.equal(gather_bias(torch.arange(81.0).view(1, 9, 9), keep)[:, 0, :, 0], keep * 9.0 + keep[:, :1])
    assert Choice(keep).partners is None
