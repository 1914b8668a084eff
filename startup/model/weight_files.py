"""Finds the weight files of a model folder, in the order in which transformers loads them."""

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

_CHOICES: Final = (
    ("model.safetensors", None),
    (r"model-\d+-of-\d+\.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", None),
    (r"pytorch_model-\d+-of-\d+\.bin", "pytorch_model.bin.index.json"),
    (r".*\.safetensors", None),
    (r"pytorch_model.*\.bin", None),
)
"""File names of weights with the index that lists them, in order of preference."""

_MAX_SHARDS: Final = 10_000
_NUMBERED: Final = re.compile(r"(.+-)(\d+)-of-(\d+)(\.\w+)")


class WeightFiles(NamedTuple):
    """The weights of a folder in one format; copies in other formats are ignored."""

    index_path: Path | None
    """The file that maps tensors to shards."""
    shard_of: dict[str, str]
    """The index's content: names of tensors and their files; empty without a readable index."""
    present: tuple[Path, ...]
    """Existing files in load order; a dangling link does not count."""
    missing: tuple[str, ...]
    """Shards that the index or the numbers of the other shards require."""


def find_weight_files(folder: Path) -> WeightFiles:
    """Reads only file names and the index.

    Raises:
        OSError: the folder cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for pattern, index in _CHOICES:
        found = [name for name in names if re.fullmatch(pattern, name)]
        shard_of = _read_index(folder / index) if index in names else {}
        wanted = set(shard_of.values()) or {name for shard in found for name in _siblings(shard)}
        if found or wanted:
            index_path = folder / index if index in names else None
            present = tuple(folder / name for name in sorted(wanted & set(names)))
            return WeightFiles(index_path, shard_of, present, tuple(sorted(wanted - set(names))))
    return WeightFiles(None, {}, (), ())


def _read_index(path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        return {}
    return {str(tensor): name for tensor, name in weight_map.items() if isinstance(name, str)}


def _siblings(name: str) -> set[str]:
    """All shards of a numbered shard's set; for any other file only the file itself."""
    match = _NUMBERED.fullmatch(name)
    if not match or int(match[3]) > _MAX_SHARDS:
        return {name}
    stem, number, total, suffix = match.groups()
    return {f"{stem}{i:0{len(number)}}-of-{total}{suffix}" for i in range(1, int(total) + 1)}
