"""Finds Mistral's own tokenizer file in a model's folder by its name; standard library only."""

import re
from pathlib import Path

_TEKKEN = re.compile(r"tekken.*\.json")
_SENTENCEPIECE = re.compile(r".+\.model\.v(\d+)(?:m(\d+))?")
_UNVERSIONED = "tokenizer.model"
"""Mistral's version 1; SentencePiece files of other models have this name too."""


def find_mistral_file(path: Path) -> Path | None:
    """The newest of the folder's files that mistral-common reads, or the path itself if it is such a file.

    Tekken is preferred to SentencePiece and `tekken.json` to names with a date; `tokenizer.model` comes last.
    """
    files = path.iterdir() if path.is_dir() else [path]
    ranks = {file: rank for file in files if file.is_file() and (rank := _rank(file)) is not None}
    return max(ranks, key=ranks.__getitem__, default=None)


def is_mistral_format(path: Path) -> bool:
    """Whether the folder has the format of Mistral's releases, by vLLM's rule for `--tokenizer-mode auto`."""
    if not any(path.glob("consolidated*.safetensors")):
        return False
    return (path / "tekken.json").is_file() or any(path.glob("tokenizer.model.v*"))


def _rank(file: Path) -> tuple[int, int, int, str] | None:
    """The sort key of a file, newest last; None if it is not a Mistral tokenizer."""
    if file.name == "tekken.json":
        return (3, 0, 0, "")
    if _TEKKEN.fullmatch(file.name):
        return (2, 0, 0, file.name)
    if match := _SENTENCEPIECE.fullmatch(file.name):
        return (1, int(match[1]), int(match[2] or 0), file.name)
    return (0, 0, 0, "") if file.name == _UNVERSIONED else None
