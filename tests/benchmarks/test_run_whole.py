"""The benchmark of whole models: the encoder that is put in, and that the page says what was measured."""

import json

import timm
import torch

from benchmarks.whole import depth_model, run_whole
from benchmarks.whole.render_whole import render


def test_an_encoder_of_timm_computes_the_same_by_transformers_names() -> None:
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source = timm.create_model("vit_small_patch14_dinov2", **sizes).eval()
    config = hf.Dinov2Config(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, image_size=56, patch_size=14)
    model = hf.Dinov2Model(config).eval()
    found = model.load_state_dict(dict(depth_model.renamed(source.state_dict())), strict=False)
    assert (found.unexpected_keys, found.missing_keys) == ([], ["embeddings.mask_token"])
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(model(images).last_hidden_state, source.forward_features(images))


def test_the_loss_forgives_most_of_a_wrong_scale() -> None:
    depth = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    assert depth_model.distance(depth, depth) < 1e-2
    scaled, noisy = depth_model.distance(1.1 * depth, depth), depth_model.distance(depth.flip(1), depth)
    assert scaled < noisy


def test_the_page_is_that_of_the_committed_figures() -> None:
    figures = json.loads(run_whole.RESULTS.read_text(encoding="utf-8"))
    assert run_whole.PAGE.read_text(encoding="utf-8") == render(figures)
