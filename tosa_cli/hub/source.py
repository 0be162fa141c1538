"""From what a user names to a dense timm model: timm names, Hub ids, folders and weights files."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from tosa_cli.errors import CheckpointError, ConfigError, SourceError, TosaError
from tosa_cli.hub.adapters import check_no_adapter_beside
from tosa_cli.hub.assemble import build_from_transformers, build_with_weights, build_wrapped
from tosa_cli.hub.download import cached_commit, fetch_file
from tosa_cli.hub.files import WEIGHTS_FILES, Files, folder_files, hub_files
from tosa_cli.hub.folder import CONFIG, WEIGHTS_SUFFIXES, kind_of, read_json
from tosa_cli.hub.image_settings import assumed_images, set_images
from tosa_cli.hub.kind import is_transformers, is_wrapped
from tosa_cli.hub.names import from_anywhere
from tosa_cli.hub.positions import patch_kernel
from tosa_cli.hub.state_dict import is_named_by_transformers
from tosa_cli.hub.timm_models import build_planned, create, resolve_name, weights_names
from tosa_cli.hub.weights import check_finite, num_outputs, read_parts, read_weights
from tosa_cli.model.class_names import class_names, set_class_names
from tosa_cli.model.families import Backbone
from tosa_cli.provenance import Provenance
from tosa_cli.source_config import ImageSettings, PixelSettings


@dataclass(frozen=True)
class Source:
    """A dense model and where it comes from.

    Attributes:
        model: The timm model, in evaluation mode.
        name: What to call it: the timm name with its tag, the Hub id, or the folder.
        hub_id: Its id on the Hugging Face Hub, if it comes from there.
        revision: The commit that was read there, so that the very same weights can be read again.
        notes: What the user should know about how it was read, each a sentence.
        has_new_head: Whether its head is a new one, with random weights, as its own is of another number of classes.
        pretrained: Whether its weights were loaded; without, they are random.
    """

    model: Backbone
    name: str
    hub_id: str | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()
    has_new_head: bool = False
    pretrained: bool = True

    def provenance(self, named: str) -> Provenance:
        """What a model that is made of it remembers of it.

        Args:
            named: The source as the user named it; empty if it has no name.
        """
        cfg, kept = getattr(self.model, "pretrained_cfg", None) or {}, from_anywhere(named)
        if not self.pretrained:
            # Nothing of the weights that the source's name stands for is inside.
            return Provenance(source=kept, base_model=cfg.get("architecture") or self.name)
        return Provenance(
            source=kept,
            base_model=self.name,
            base_hub_id=self.hub_id,
            base_revision=self.revision,
            license=cfg.get("license"),
        )


def load_source(
    source: str,
    *,
    pretrained: bool = True,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    architecture: str | None = None,
    weights_key: str | None = None,
    images: PixelSettings | None = None,
) -> Source:
    """Load a dense model.

    Args:
        source: timm name (`deit_tiny` is short for `deit_tiny_patch16_224`), Hub id `org/name[@revision]`,
            `hf-hub:...`, `local-dir:...`, a folder, or a weights file. Folders and repositories may be in timm's or in
            transformers' format.
        pretrained: Load the weights; without, they are random.
        img_size: Image size in pixels, one number or (height, width); None keeps the source's.
        num_classes: Build a new head of so many classes; None keeps the source's.
        architecture: timm's name of the architecture, for a weights file whose name does not tell.
        weights_key: Which weights to take of a file that holds several, by what stands before their names.
        images: What images are put through, where it is not as the source says.

    Raises:
        SourceError: If the source cannot be found.
        CheckpointError: If it is broken or foreign, or weights are not finite.
        UnsupportedModelError: If it is of a kind that cannot be converted.
        ConfigError: If the image size is no whole number of patches, or an architecture is named of what has its own.
        HubError: If the Hub refuses or cannot be reached.
    """
    if not source.partition(":")[2 if source.startswith(("hf-hub:", "local-dir:")) else 0].partition("@")[0]:
        raise SourceError("The name of the model is empty: name a timm model such as deit_tiny, a folder or a Hub id.")
    args = {"img_size": img_size, "num_classes": num_classes}
    path = Path(source.removeprefix("local-dir:"))
    if architecture and path.is_dir():
        _check_config_is_there(path)
    if architecture and not path.is_file():
        raise ConfigError(
            f"{source} is no weights file, so its architecture is known: leave out --architecture {architecture}."
        )
    if weights_key and not path.exists():
        raise ConfigError(f"{source} is no file or folder of weights: leave out --weights-key {weights_key}.")
    if path.is_file():
        found = _from_file(path, architecture, weights_key, pretrained, args, images or ImageSettings())
    else:
        found = _from_name(source, path, weights_key, pretrained, args, images or ImageSettings())
        # timm leaves in the settings of a model how many classes its own head has.
        own_classes = found.model.pretrained_cfg.get("num_classes")
        found = dataclasses.replace(found, has_new_head=bool(num_classes) and num_classes != own_classes)
    if found.model.pretrained_cfg.get("label_names") and not class_names(found.model):
        set_class_names(found.model, None)  # they are of a head that is not there any more
    check_finite(found.model, source)
    set_images(found.model, images or ImageSettings())
    return dataclasses.replace(found, pretrained=pretrained)


def _from_name(
    source: str, path: Path, weights_key: str | None, pretrained: bool, args: dict[str, Any], images: PixelSettings
) -> Source:
    if path.is_dir():
        return _from_folder(path, weights_key, pretrained, args, images)
    if source.startswith("local-dir:") or _looks_like_path(source):
        raise SourceError(f"There is no folder or file {path}. Check the path, or name a timm model such as deit_tiny.")
    if source.startswith("hf-hub:") or "/" in source:
        return _from_hub(source, pretrained, args)
    name = resolve_name(source)
    model = create(name, source, pretrained, args)
    cfg: dict[str, Any] = model.pretrained_cfg
    tagged = ".".join(filter(None, [cfg.get("architecture", name), cfg.get("tag")]))
    hub_id = cfg.get("hf_hub_id") if pretrained else None
    return Source(model, tagged, hub_id, hub_id and cached_commit(hub_id, weights_names(cfg)))


def _from_hub(source: str, pretrained: bool, args: dict[str, Any]) -> Source:
    name = source.removeprefix("hf-hub:")
    hub_id, _, revision = name.partition("@")
    path = fetch_file(hub_id, CONFIG, revision=revision or None, shown=source)
    commit, values = path.parent.name, read_json(path, f"{CONFIG} of {name}")
    _check_dense(values, source)
    files = hub_files(hub_id, commit, name)
    check_no_adapter_beside(files)
    if is_transformers(values):
        model, _, notes = build_from_transformers(values, files, pretrained, args)
        return Source(model, hub_id, hub_id, commit, notes)
    _check_config(values, name)
    if is_wrapped(values):
        model, notes = build_wrapped(values, files, None, pretrained, args)
        return Source(model, hub_id, hub_id, commit, notes)
    address = f"hf-hub:{hub_id}@{commit}"
    # Refuse what cannot be converted before its weights are downloaded.
    build_planned(address, source, args)
    if not pretrained or not _has_weights(files):
        # timm finds weights under more names.
        return Source(create(address, source, pretrained, args), hub_id, hub_id, commit)
    weights = read_parts(lambda: files.weights(lambda _: False), None, name)
    model, notes = build_with_weights(address, values["architecture"], name, weights, args)
    return Source(model, hub_id, hub_id, commit, notes)


def _has_weights(files: Files) -> bool:
    try:
        return any(files.find(name) for name in WEIGHTS_FILES)
    except TosaError:
        return False


def _from_folder(
    path: Path, weights_key: str | None, pretrained: bool, args: dict[str, Any], images: PixelSettings
) -> Source:
    check_no_adapter_beside(folder_files(path))
    _check_config_is_there(path)
    config = read_json(path / CONFIG)
    _check_dense(config, str(path))
    if is_transformers(config):
        model, name, notes = build_from_transformers(config, folder_files(path), pretrained, args)
        return Source(model, name, notes=notes)
    _check_config(config, str(path))
    if is_wrapped(config):
        model, notes = build_wrapped(config, folder_files(path), weights_key, pretrained, args)
        return Source(model, config["architecture"], notes=notes)
    name, weights = f"local-dir:{path}", read_weights(path, weights_key) if pretrained else None
    model, notes = build_with_weights(name, config["architecture"], str(path), weights, args)
    if not (config.get("pretrained_cfg") or config).get("mean"):
        notes = (*notes, *assumed_images(model, images, str(path)))
    return Source(model, config["architecture"], notes=notes)


def _check_config_is_there(path: Path) -> None:
    """Check that a folder has a config.json, and name a file of weights that lies there without one."""
    files = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHTS_SUFFIXES)
    if files and not (path / CONFIG).exists():
        raise SourceError(
            f"{path} has no config.json, so it is not a model folder. To read a file of weights, name it and what it "
            f"is of: {path / files[0]} --architecture deit_tiny_patch16_224."
        )


def _check_dense(config: dict[str, Any], shown: str) -> None:
    """Check that a config.json is of no whole model that is converted already."""
    if kind_of(config) == "whole":
        raise SourceError(
            f"{shown} holds a whole model of transformers that is converted already: convert its source instead, or "
            f"run `tosa flops {shown}`."
        )


def _check_config(config: dict[str, Any], shown: str) -> None:
    """Check the config.json of a dense model in timm's format."""
    architecture, kind = config.get("architecture"), kind_of(config)
    if kind == "converted":
        raise SourceError(
            f"{shown} is already a converted model. Convert its source instead, or run `tosa flops {shown}`."
        )
    if kind == "predictor":
        raise SourceError(
            f"{shown} holds a model with a decoder: name the model that its encoder came from, or run `tosa flops "
            f"{shown}`."
        )
    if not isinstance(architecture, str):
        raise CheckpointError(
            f"In {shown}, {CONFIG} has no 'architecture', so it is not in timm's format: name a folder that timm or "
            f"transformers wrote."
        )
    if not timm.is_model(architecture):
        raise CheckpointError(
            f"{CONFIG} of {shown} names the architecture {architecture!r}, which timm does not know: update timm, or "
            f"correct it."
        )
    args = config.get("model_args")
    if isinstance(args, dict) and args.get("num_classes", config.get("num_classes")) != config.get("num_classes"):
        raise CheckpointError(
            f"{CONFIG} of {shown} names {config.get('num_classes')} classes at the top, but {args['num_classes']} "
            f"under model_args: they must be the same."
        )


def _from_file(
    path: Path,
    architecture: str | None,
    weights_key: str | None,
    pretrained: bool,
    args: dict[str, Any],
    images: PixelSettings,
) -> Source:
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise SourceError(f"{path} is not a weights file: expected one of {', '.join(WEIGHTS_SUFFIXES)}.")
    name = resolve_name(architecture) if architecture else _name_from_file(path)
    build_planned(name, str(path), args)
    weights = read_weights(path, weights_key)
    state = weights.tensors
    if is_named_by_transformers(state):
        raise CheckpointError(
            f"{path} is in transformers' naming: name the folder that holds it with its config.json instead."
        )
    own_classes, asked = num_outputs(state), args["num_classes"]
    num_classes = own_classes if asked is None else asked
    own: dict[str, Any] = {"num_classes": num_classes}
    if "fc_norm.weight" in state and "norm.weight" not in state:  # MAE finetuned
        own["global_pool"] = "avg"
    patches = patch_kernel(state)
    if patches is not None and patches.ndim == 4:
        own["in_chans"] = patches.shape[1]
    model, notes = build_with_weights(name, name, str(path), weights if pretrained else None, args, **own)
    notes = (*notes, *assumed_images(model, images, str(path)))
    # The license is that of timm's weights of this architecture.
    model.pretrained_cfg = {**model.pretrained_cfg, "license": None}
    return Source(model, name, notes=notes, has_new_head=num_classes not in (0, own_classes))


def _name_from_file(path: Path) -> str:
    known = [name for name in timm.list_models() if path.name.startswith(name)]
    if not known:
        raise SourceError(
            f"The name of {path} does not tell its architecture: add --architecture, as in "
            f"--architecture deit_tiny_patch16_224."
        )
    name = max(known, key=len)
    tags = [tagged for tagged in timm.list_models(f"{name}.*", pretrained=True) if path.name.startswith(tagged)]
    return max(tags, key=len, default=name)


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.endswith(WEIGHTS_SUFFIXES) or source.count("/") > 1
