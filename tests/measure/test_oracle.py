"""The selection that knows what it does."""

import pytest
import torch

from tests.model.tiny_models import make_images, make_tosa
from tosa_cli.errors import ConfigError
from tosa_cli.measure.oracle import with_oracle
from tosa_cli.model.families import embed_with_places


@pytest.mark.parametrize("bypass", ["identity", "linear", "nearest", "nearest+linear"])
def test_the_oracle_skips_what_the_bypass_is_least_wrong_about(bypass: str) -> None:
    """In one layer, the tokens after it are nearer to the dense model's than after a random choice."""
    images = make_images(4)
    errors = {}
    for name, model in (("random", make_tosa(layers=(3,), selector="random", bypass=bypass)),):
        torch.manual_seed(0)
        dense = model.backbone.forward_intermediates(images, [2], output_fmt="NLC", intermediates_only=True)[0]
        for which, net in ((name, model), ("oracle", with_oracle(model))):
            outputs = net.run_layers(*embed_with_places(net.backbone, images), take=[3])
            errors[which] = (outputs.intermediates[0][:, 1:] - dense).norm(dim=-1).mean().item()
    assert errors["oracle"] < errors["random"]


def test_the_oracle_keeps_as_many_tokens_and_all_weights() -> None:
    model = make_tosa(layers=(2, 4), selector="similarity", bypass="nearest+linear")
    oracle = with_oracle(model)
    assert all(value.equal(oracle.state_dict()[name]) for name, value in model.state_dict().items())
    images = make_images()
    for layer, indices in model.forward_selection(images).items():
        assert oracle.forward_selection(images)[layer].shape == indices.shape


def test_the_oracle_does_not_stand_in_for_heads() -> None:
    with pytest.raises(ConfigError, match="per-head"):
        with_oracle(make_tosa(selection="per-head"))
