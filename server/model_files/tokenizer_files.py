"""Reads the small files of a tokenizer's folder; standard library only."""

from pathlib import Path
from typing import Any

from base.errors import ServerError
from base.json_depth import read_json


class TokenizerLoadError(ServerError):
    """The tokenizer cannot be loaded; the message is one line that names the folder and the fault."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file; an empty one if there is no such file.

    Raises:
        TokenizerLoadError: the file is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise TokenizerLoadError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(content, dict):
        raise TokenizerLoadError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def mistral_problem(path: Path) -> str | None:
    """Why the folder's tokenizer needs vLLM; None if transformers may be able to load it."""
    if any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    own = next((file.name for pattern in ("tekken*.json", "*.model.v*") for file in path.glob(pattern)), None)
    return own and f"{path} has no tokenizer.json, only Mistral's own {own}: serve it with --engine vllm"
