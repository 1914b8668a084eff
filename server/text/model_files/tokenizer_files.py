"""Reads the small files of a tokenizer's folder. Standard library only."""

import re
from pathlib import Path
from typing import Any, Final

from base.errors import ServerError
from base.json_depth import read_json
from server.text.model_files.sentence_files import read_object

_OF_MISTRAL: Final = re.compile(r"tekken.*\.json|.+\.model\.v\d+(m\d+)?")


class TokenizerLoadError(ServerError):
    """The tokenizer cannot be loaded. The message is one line that names the folder and the fault."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the file's JSON object, or an empty dict if there is no such file.

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


def find_mistral_file(folder: Path) -> Path | None:
    """Returns a tokenizer of the folder that only mistral-common reads, and so only vLLM."""
    return next((file for file in sorted(folder.glob("*")) if _OF_MISTRAL.fullmatch(file.name)), None)


def foreign_problem(folder: Path, mode: str) -> str | None:
    """Returns why only vLLM can use the folder's tokenizer. None if there is no such reason.

    Always None if the operator has chosen a mode.
    """
    if mode != "auto":
        return None
    has_usual = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    if any(folder.glob("tokenizer*.tok.json")) and not (folder / "tokenizer.json").exists():
        return f"{folder} has Grok-2's tokenizer, which the embedded engine does not read: serve it with --engine vllm"
    if not has_usual and (file := find_mistral_file(folder)) is not None:
        return f"{folder} has only {file.name}, which the embedded engine does not read: serve it with --engine vllm"
    if read_object(folder / "config.json").get("model_type") == "deepseek_v32":
        return (
            f"{folder}: the embedded engine does not write DeepSeek-V3.2's conversations. Serve it with --engine vllm, "
            "or with --tokenizer-mode hf for completions alone"
        )
    return None
