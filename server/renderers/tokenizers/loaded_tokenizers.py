"""Tokenizers that this process has loaded in advance: a template process loads them, its forks use them.

Standard library only.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from server.machine.file_stamps import FolderStamps, read_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_kept: dict[Path, tuple[FolderStamps, "PreTrainedTokenizerBase"]] = {}


def keep(folder: Path, stamps: FolderStamps, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Keeps a tokenizer for `take`.

    Args:
        folder: where it was loaded from.
        stamps: the folder's, read before the tokenizer was loaded: any of its files may influence one.
        tokenizer: one that was loaded without a model's own code.
    """
    _kept[folder.resolve()] = (stamps, tokenizer)


def take(folder: Path) -> "PreTrainedTokenizerBase | None":
    """The kept tokenizer if the folder has not changed; only once, since its user changes it."""
    if not _kept:
        return None
    kept = _kept.pop(folder.resolve(), None)
    return kept[1] if kept is not None and kept[0] == read_folder(folder) else None
