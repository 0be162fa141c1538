"""Images in folders, tables and shards, and what commands read of them."""

import io
import json
import tarfile
from pathlib import Path

import pytest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def write_shards(folder: Path, images: Path, shards: int = 2, broken: bool = False) -> None:
    """Shards of a tree's splits `train` and `validation`, with timm's _info.json; a label is its folder's place."""
    splits = {}
    folder.mkdir()
    for split in ("train", "validation"):
        paths = sorted((path for path in (images / split).rglob("*") if path.is_file()), key=lambda path: path.stem)
        classes = sorted(path.name for path in (images / split).iterdir())
        names, lengths = [], []
        for shard in range(shards):
            names.append(f"{split}-{shard:03d}.tar")
            mine = paths[shard::shards]
            lengths.append(len(mine))
            with tarfile.open(folder / names[-1], "w") as tar:
                for number, path in enumerate(mine):
                    content = path.read_bytes()
                    if broken and number == 3:
                        content = content[:60]
                    label = str(classes.index(path.parent.name)).encode()
                    suffix = "png" if path.suffix == ".png" else "jpg"
                    for name, data in ((f"{path.stem}.{suffix}", content), (f"{path.stem}.cls", label)):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        splits[split] = {"name": split, "num_samples": len(paths), "filenames": names, "shard_lengths": lengths}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))


@pytest.fixture(name="converted")
def share_converted(short: Path) -> Path:
    """The model folder `dense-tosa`, of two layers."""
    return short
