"""Tokenizers that this process has loaded in advance: a template process loads them, its forks use them.

Standard library only.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FileStamp(NamedTuple):
    """What changes when a file is written or replaced."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    device: int


Stamps = frozenset[FileStamp]

_kept: dict[Path, tuple[Stamps, "PreTrainedTokenizerBase"]] = {}


def read_stamps(folder: Path) -> Stamps:
    """The stamps of all files in a folder and its subfolders, since any of them may influence a tokenizer."""
    return frozenset(_stamp(Path(parent, name)) for parent, _, names in os.walk(folder.resolve()) for name in names)


def keep(folder: Path, stamps: Stamps, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Keeps a tokenizer for `take`.

    Args:
        folder: where it was loaded from.
        stamps: the folder's, read before the tokenizer was loaded.
        tokenizer: one that was loaded without a model's own code.
    """
    _kept[folder.resolve()] = (stamps, tokenizer)


def take(folder: Path) -> "PreTrainedTokenizerBase | None":
    """The kept tokenizer if the folder has not changed; only once, since its user changes it."""
    if not _kept:
        return None
    kept = _kept.pop(folder.resolve(), None)
    return kept[1] if kept is not None and kept[0] == read_stamps(folder) else None


def _stamp(path: Path) -> FileStamp:
    try:
        found = path.stat()
    except OSError:  # a broken link
        return FileStamp(str(path), -1, 0, 0, 0)
    return FileStamp(str(path), found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)
