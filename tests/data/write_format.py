"""Write small model folders of the format of today, with what they compute, to be kept for good.

    python -m tests.data.write_format

For each model in `MODELS` it writes tests/data/format_<version>_<name>/ and, beside it, a .safetensors of the same name
with fixed images and what the model makes of them. Run it once when `FORMAT_VERSION` is raised, and commit what it
writes; folders of earlier versions stay as they were written.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import tosa_cli
from tests.model.tiny_models import make_vit, randomize_
from tosa_cli.config import TosaConfig
from tosa_cli.model.tosa_vit import TosaViT
from tosa_cli.provenance import FORMAT_VERSION, Provenance

DATA = Path(__file__).parent
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 6, "num_classes": 5}
MODELS: dict[str, dict[str, Any]] = {
    "paper": {"layers": (2, 4, 6), "keep_rate": 0.5},
    "calibrated": {
        "layers": (2, 3, 5, 6),
        "keep_rate": (0.8, 0.7, 0.6, 0.5),
        "selector": "similarity",
        "bypass": "nearest+affine",
    },
}


def make_images() -> Tensor:
    """Three images (3, 3, 32, 32) that no random generator has to be the same for."""
    places = torch.arange(3 * 3 * 32 * 32, dtype=torch.float64)
    return (places * 0.37).sin().add((places * 0.011).cos()).reshape(3, 3, 32, 32).float()


def make_model(settings: dict[str, Any]) -> TosaViT:
    """A model whose parts all matter, and that says it was distilled."""
    config = TosaConfig(**settings)
    model = TosaViT(make_vit("test_vit", **SIZE), config)
    randomize_(model.selectors, seed=1)
    randomize_(model.bypasses, seed=2)
    provenance = Provenance(source="test_vit", base_model="test_vit.r160_in1k", license="apache-2.0")
    provenance = provenance.after("converted", {"source": "test_vit", **config.to_dict()})
    model.provenance = provenance.after("distilled", {"data_dir": "photos", "epochs": 1, "lr": 0.01})
    return model.eval()


@torch.no_grad()
def run(model: TosaViT, images: Tensor) -> dict[str, Tensor]:
    """What a model makes of images: final tokens, logits, and the tokens that each layer selects."""
    selected = {f"layer_{layer}": indices for layer, indices in model.forward_selection(images).items()}
    return {"tokens": model.forward_features(images), "logits": model(images), **selected}


def main() -> None:
    """Write the folders of this format."""
    for name, settings in MODELS.items():
        folder = DATA / f"format_{FORMAT_VERSION}_{name}"
        model, images = make_model(settings), make_images()
        tosa_cli.save(model, folder)
        outputs = {key: value.contiguous() for key, value in run(model, images).items()}
        save_file({"images": images, **outputs}, folder.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
