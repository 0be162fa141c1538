"""What is made of a model is named after it."""

import pytest

from tosa_cli.hub.names import stem_of


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("deit_tiny", "deit_tiny"),
        ("org/name@main", "name"),
        ("hf-hub:org/name@refs/pr/1", "name"),
        ("local-dir:models/vit/", "vit"),
        ("./weights/vit_tiny.safetensors", "vit_tiny"),
        ("vit.pth", "vit"),
        (".", "model"),
    ],
)
def test_a_stem_is_the_last_part_of_a_name_without_revision_and_ending(name: str, stem: str) -> None:
    assert stem_of(name) == stem
