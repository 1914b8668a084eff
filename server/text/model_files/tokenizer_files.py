"""Reads the small files of a tokenizer's folder, and chooses the renderer. Standard library only."""

import re
from pathlib import Path
from typing import Any, Final

from base.errors import ServerError
from base.json_depth import read_json
from server.text.model_files.sentence_files import read_object

_TEKKEN: Final = re.compile(r"tekken.*\.json")
_SENTENCEPIECE: Final = re.compile(r".+\.model\.v(\d+)(?:m(\d+))?")


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
    """Returns the newest of the folder's files that mistral-common can read.

    The best file is tekken.json. Then come Tekken files with a date in the name, SentencePiece files with a
    version, and finally tokenizer.model.
    """
    ranks = {file: rank for file in folder.glob("*") if (rank := _rank(file.name)) is not None}
    return max(ranks, key=ranks.__getitem__, default=None)


def _rank(name: str) -> tuple[int, int, int, str] | None:
    """Returns a sort key that is largest for the best file. None if mistral-common cannot read the file."""
    if name == "tekken.json":
        return (3, 0, 0, "")
    if _TEKKEN.fullmatch(name):
        return (2, 0, 0, name)
    if match := _SENTENCEPIECE.fullmatch(name):
        return (1, int(match[1]), int(match[2] or 0), name)
    return (0, 0, 0, "") if name == "tokenizer.model" else None


def _is_for_mistral(folder: Path) -> bool:
    """Whether to use the folder's Mistral tokenizer.

    vLLM uses it if the folder has consolidated weights. Here, it is also used if there is no other tokenizer.
    """
    if (file := find_mistral_file(folder)) is None or file.name == "tokenizer.model":
        return False
    has_other = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return not has_other or any(folder.glob("consolidated*.safetensors"))


RENDERERS: Final = {
    "mistral": "server.text.renderers.mistral:MistralRenderer",
    "hf": "server.text.renderers.hf:HfRenderer",
}
"""`--tokenizer-mode` -> module and class of the renderer. Each uses its own library of tokenizers."""


def find_tokenizer_mode(folder: Path, wanted: str) -> str:
    """Returns the tokenizer mode for a folder. For `auto`, only file names and JSON files are read."""
    if wanted != "auto":
        return wanted
    return "mistral" if _is_for_mistral(folder) else "hf"


def foreign_problem(folder: Path, mode: str) -> str | None:
    """Returns why only vLLM can use the folder's tokenizer. None if there is no such reason.

    Always None if the operator has chosen a mode.
    """
    if mode != "auto":
        return None
    if any(folder.glob("tokenizer*.tok.json")) and not (folder / "tokenizer.json").exists():
        return f"{folder} has Grok-2's tokenizer, which the embedded engine does not read: serve it with --engine vllm"
    if read_object(folder / "config.json").get("model_type") == "deepseek_v32":
        return (
            f"{folder}: the embedded engine does not write DeepSeek-V3.2's conversations. Serve it with --engine vllm, "
            "or with --tokenizer-mode hf for completions alone"
        )
    return None
