"""Blocks that are not timm's are one new family: this file stands for it, and it is registered in one line."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tosa_cli.config import TosaConfig
from tosa_cli.errors import UnsupportedModelError
from tosa_cli.methods import Selection
from tosa_cli.model.convert import check_identity, insert_selectors
from tosa_cli.model.families import FAMILIES, attention_input, embed_with_places, family_of, mean_key_projection
from tosa_cli.model.families.base import BlockKind, Blocks
from tosa_cli.model.families.timm_common import mean_of_heads
from tosa_cli.model.families.timm_vit import TimmVit
from tosa_cli.model.flops import count_flops

from .family_runs import RunHidden, read_keys
from .tiny_models import make_images, make_tosa, randomize_

WIDTH, HEADS = 48, 4


class Layer(nn.Module):
    """A layer in the way of transformers: projections apart, keys first without a bias, and a mask of its own name.

    With a window it attends among so many tokens in a row.
    """

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.query, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.intermediate, self.projection = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        inputs = self.layernorm_before(hidden_states)
        if self.window is not None:
            length = inputs.shape[1]
            inputs = F.pad(inputs, (0, 0, 0, -length % self.window)).unflatten(1, (-1, self.window))
        heads = [
            part(inputs).unflatten(-1, (HEADS, -1)).transpose(-3, -2) for part in (self.query, self.key, self.value)
        ]
        attended = F.scaled_dot_product_attention(*heads, attn_mask=attention_mask).transpose(-3, -2).flatten(-2)
        if self.window is not None:
            attended = attended.flatten(1, 2)[:, :length]
        hidden_states = hidden_states + self.output(attended)
        return hidden_states + self.projection(F.gelu(self.intermediate(self.layernorm_after(hidden_states))))


class LayerKind(BlockKind):
    mask_name = "attention_mask"

    def why_ineligible(self, block: Any, selection: Selection) -> str | None:
        return None if block.window is None else "attends in windows, which a selection of its tokens does not fill."

    def attention_input(self, block: Any, tokens: Tensor) -> Tensor:
        return block.layernorm_before(tokens)

    def num_heads(self, block: Any) -> int:
        return HEADS

    def head_dim(self, block: Any) -> int:
        return WIDTH // HEADS

    def mean_key_projection(self, block: Any) -> tuple[Tensor, Tensor]:
        return mean_of_heads(block.key, 0, HEADS, WIDTH // HEADS)


class Encoder(VisionTransformer):
    """A model that is embedded as timm's are, of four such layers, the third of them with a window."""

    def __init__(self) -> None:
        super().__init__(img_size=64, patch_size=16, embed_dim=WIDTH, num_heads=HEADS, depth=4, num_classes=10)
        self.blocks = nn.Sequential(Layer(), Layer(), Layer(window=5), Layer())
        self.pretrained_cfg = {"architecture": "encoder"}


class EncoderFamily(TimmVit):
    models = (Encoder,)
    blocks: ClassVar[Blocks] = {Layer: LayerKind()}
    modules = short_names = ()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    FAMILIES.append(EncoderFamily())
    yield
    FAMILIES.pop()


def make_encoder() -> Any:
    return randomize_(Encoder(), 0).eval()


CONFIGS = (
    {"layers": (1, 2, 4), "selector": "similarity", "bypass": "nearest+affine"},
    {"layers": (1, 2), "selector": "probe", "bypass": "linear", "span": 2},
    {"layers": (2,), "selector": "attention"},
)


def test_the_model_is_of_the_new_family() -> None:
    assert isinstance(family_of(make_encoder()), EncoderFamily)


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
@torch.no_grad()
def test_it_converts_and_with_every_token_kept_equals_its_source(settings: dict[str, Any]) -> None:
    model = insert_selectors(make_encoder(), TosaConfig(**settings, keep_rate=0.5))
    assert 0 <= check_identity(model) < 1e-3
    assert model(make_images(size=64)).isfinite().all()


@torch.no_grad()
def test_below_it_equals_its_source_with_the_skipped_tokens_hidden() -> None:
    source, images = make_encoder(), make_images(3, 64)
    model = make_tosa(source, layers=(2,), keep_rate=0.6, selector="attention")
    keep, tokens = model.forward_selection(images), model.forward_features(images)
    dense = source.forward_features(images)
    RunHidden(source, keep)
    assert torch.allclose(tokens, source.forward_features(images), atol=1e-4)
    assert not torch.allclose(tokens, dense, atol=1e-2)


@torch.no_grad()
def test_sizes_go_in_by_the_name_that_its_blocks_know(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tosa(make_encoder(), layers=(1, 2, 4), keep_rate=0.5, selector="similarity", bypass="nearest")
    images = make_images(size=64)
    by_name = model(images)
    # Without a name they go in where the attention is computed, which any block allows.
    monkeypatch.setattr(LayerKind, "mask_name", None)
    assert torch.equal(model(images), by_name)
    monkeypatch.setattr("tosa_cli.model.tosa_layer.token_sizes", lambda length, partners, _: torch.ones(2, length))
    assert not torch.allclose(model(images), by_name, atol=1e-3)


@torch.no_grad()
def test_tokens_are_compared_by_the_mean_of_its_own_keys() -> None:
    model = make_encoder()
    tokens, _ = embed_with_places(model, make_images(size=64))
    with read_keys() as seen:
        model.blocks[1](tokens)
    keys = F.linear(attention_input(model.blocks[1], tokens), *mean_key_projection(model.blocks[1]))
    assert torch.allclose(keys, seen.found[0].mean(dim=1), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layers": (2, 3), "selector": "random"}, r"^Layer 3 of encoder .* 1,2,4\.$"),
        ({"layers": (4,)}, r"layer 4 .*layer 3 of encoder .* 2\.$"),
    ],
    ids=str,
)
def test_a_layer_that_cannot_select_is_refused_with_its_own_reason(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        insert_selectors(make_encoder(), TosaConfig(**settings))


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_its_layers_are_counted_as_they_run(settings: dict[str, Any]) -> None:
    model: Any = make_tosa(make_encoder(), **settings, keep_rate=0.6).to("meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 64, 64, device="meta"))
    assert counter.get_total_flops() // 2 == round(count_flops(model).gmacs * 1e9)


def test_it_is_compiled_as_one_graph() -> None:
    torch.compiler.reset()
    model = make_tosa(make_encoder(), layers=(1, 2, 4), keep_rate=0.5, selector="similarity", bypass="nearest+affine")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(make_images(size=64)), model(make_images(size=64)), atol=1e-5)
