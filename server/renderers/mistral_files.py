"""Finds Mistral's own tokenizer file in a model's folder by its name; standard library only, so that anyone may ask."""

import re
from pathlib import Path

_TEKKEN = re.compile(r"tekken.*\.json")
_SENTENCEPIECE = re.compile(r".+\.model\.v(\d+)(?:m(\d+))?")
_UNVERSIONED = "tokenizer.model"
"""Version 1; other models' SentencePiece files have this name too."""


def find_mistral_file(path: Path) -> Path | None:
    """The newest of the folder's files that mistral-common reads, or the path itself where it is such a file.

    Tekken goes before SentencePiece and `tekken.json` before names with a date; a plain `tokenizer.model` comes last.
    """
    files = path.iterdir() if path.is_dir() else [path]
    ranks = {file: rank for file in files if file.is_file() and (rank := _rank(file)) is not None}
    return max(ranks, key=ranks.__getitem__, default=None)


def is_mistral_format(path: Path) -> bool:
    """Whether the folder is one of Mistral's own releases: vLLM's condition for `--tokenizer-mode auto`."""
    if not any(path.glob("consolidated*.safetensors")):
        return False
    return (path / "tekken.json").is_file() or any(path.glob("tokenizer.model.v*"))


def _rank(file: Path) -> tuple[int, int, int, str] | None:
    """What files are sorted by, newest last; None for those that are no tokenizer of Mistral's."""
    if file.name == "tekken.json":
        return (3, 0, 0, "")
    if _TEKKEN.fullmatch(file.name):
        return (2, 0, 0, file.name)
    if match := _SENTENCEPIECE.fullmatch(file.name):
        return (1, int(match[1]), int(match[2] or 0), file.name)
    return (0, 0, 0, "") if file.name == _UNVERSIONED else None
