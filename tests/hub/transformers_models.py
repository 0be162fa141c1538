"""Models as transformers' users hold them: the published configurations, and small ones with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from timm.data import ImageNetInfo
from torch import Tensor, nn

from tests.model.tiny_models import randomize_

PUBLISHED = Path(__file__).parent.parent / "fixtures" / "transformers"
NAMES = tuple(sorted(folder.name.replace("--", "/") for folder in PUBLISHED.iterdir() if folder.is_dir()))

SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 160}
SMALL_DECODER = {f"decoder_{key}": value for key, value in SMALL.items()}
SMALL_TEXT = {**SMALL, "num_hidden_layers": 1, "vocab_size": 20}

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def published(name: str, file: str = "config.json") -> dict[str, Any]:
    """A repository's file, with the class names that the copies here leave out."""
    values = json.loads((PUBLISHED / name.replace("/", "--") / file).read_text())
    if "ForImageClassification" in values.get("architectures", [""])[0]:
        info = ImageNetInfo("imagenet-1k")
        names = [info.index_to_description(index) for index in range(info.num_classes())]
        values["id2label"] = {str(index): name for index, name in enumerate(names)}
        values["label2id"] = {name: index for index, name in enumerate(names)}
    return values


def small(config: dict[str, Any], patches: int = 4) -> dict[str, Any]:
    """A configuration with small layers and few patches, and else as it was."""
    config = json.loads(json.dumps(config))
    vision = config.get("vision_config", config)
    vision.update(SMALL)
    vision["image_size"] = patches * vision.get("patch_size", 16)
    for key in ("out_features", "out_indices", "stage_names"):
        config.pop(key, None)
    if config["model_type"] == "vit_mae":
        config.update(SMALL_DECODER)
    if "text_config" in config:
        config["text_config"].update(SMALL_TEXT)
    return config


def build(config: dict[str, Any], kind: str = "", **changes: Any) -> nn.Module:
    """transformers' model of a configuration.

    Args:
        config: The configuration.
        kind: Name of the class; empty for the one that was published.
        changes: Values of the configuration that are others.
    """
    model_class = getattr(transformers, kind or config["architectures"][0])
    values = {key: value for key, value in {**config, **changes}.items() if value is not None}
    if config["model_type"] in ("clip", "siglip") and model_class.config_class.model_type.endswith("vision_model"):
        values = {**values["vision_config"], **changes}
    return model_class(model_class.config_class.from_dict(values)).eval()


def make(config: dict[str, Any], kind: str = "", seed: int = 0, **changes: Any) -> nn.Module:
    """A small model of a configuration, with random weights that make every layer matter."""
    return randomize_(build(small(config), kind, **changes), seed)


def save(model: Any, folder: Path, processor: dict[str, Any] | None = None, **how: Any) -> Path:
    """Write a model as the Hub has it."""
    model.save_pretrained(folder, **how)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def make_pixels(model: Any, size: int | None = None, batch: int = 2) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = size or config.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens_of(model: Any, images: Tensor) -> Tensor:
    """The last hidden state."""
    if hasattr(model, "vision_model"):
        model = model.vision_model
    return _encode(model, images).last_hidden_state


@torch.no_grad()
def output_of(model: Any, images: Tensor) -> Tensor:
    """What a user takes from the model: logits, image features, or the class token."""
    if hasattr(model, "get_image_features"):
        return model.get_image_features(images).pooler_output
    outputs = _encode(model, images)
    for name in ("logits", "image_embeds"):
        if getattr(outputs, name, None) is not None:
            return getattr(outputs, name)
    if type(model).__name__.startswith(("CLIP", "Siglip")) and outputs.pooler_output is not None:
        return outputs.pooler_output
    if type(model).__name__ == "DeiTModel":
        return outputs.last_hidden_state[:, :2].mean(dim=1)  # timm's features, of class and distillation token
    return outputs.last_hidden_state[:, 0]


def _encode(model: Any, images: Tensor) -> Any:
    if not type(model).__name__.startswith("ViTMAE"):
        return model(images)
    encoder = getattr(model, "vit", model)
    # It would leave tokens out, and shuffle the others.
    encoder.config.mask_ratio = 0.0
    length = encoder.embeddings.patch_embeddings.num_patches
    return encoder(images, noise=torch.arange(float(length)).expand(len(images), -1))
