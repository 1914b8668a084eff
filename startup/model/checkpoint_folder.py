"""Checks whether a folder contains a model that can be served, by file names and small JSON files."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

_WEIGHTS: Final = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken*.json",
    "tokenizer*.tok.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "spiece.model",
)


def model_problem(folder: Path) -> str | None:
    """Why the folder's model cannot be served; None if it can."""
    try:
        names = {entry.name for entry in folder.iterdir() if entry.exists()}  # links in the hub's cache may dangle
    except OSError as err:
        return f"{folder} cannot be read: {err.strerror}"
    if "config.json" not in names:
        return f"{folder} has no config.json, so it is not a model folder"
    return _json_problem(folder / "config.json") or _weights_problem(folder, names)


def tokenizer_problem(folder: Path) -> str | None:
    """Why the folder's tokenizer cannot be used; None if it can."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern)):
        return f"{folder} has no tokenizer; name one with --tokenizer"
    return None


def _weights_problem(folder: Path, names: set[str]) -> str | None:
    for index in _INDEXES:
        if index in names:
            return _json_problem(folder / index) or _shards_problem(folder / index, names)
    if not any(fnmatchcase(name, pattern) for pattern in _WEIGHTS for name in names):
        return f"{folder} has no weights: no *.safetensors and no pytorch_model*.bin"
    return None


def _shards_problem(index: Path, names: set[str]) -> str | None:
    weight_map = _read_json(index).get("weight_map", {})
    missing = sorted(set(weight_map.values()) - names)
    return f"{index} names weights that are not there: {', '.join(missing)}" if missing else None


def _json_problem(path: Path) -> str | None:
    try:
        content = _read_json(path)
    except OSError as err:
        return f"{path} cannot be read: {err.strerror}"
    except UnicodeDecodeError:
        return f"{path} is not JSON: it is not text"
    except json.JSONDecodeError as err:
        return f"{path} is not JSON: {err.msg} at line {err.lineno}, column {err.colno}"
    return None if isinstance(content, dict) else f"{path} is not a JSON object"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
