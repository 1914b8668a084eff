"""Recognises processes of this program by their command lines."""

import contextlib
from pathlib import Path
from typing import Any


def command_words(process: Any, command: str) -> list[str] | None:
    """The words after the command if the process is `vllm-cli COMMAND ...`, else None."""
    import psutil

    try:
        words = process.cmdline()
    except (psutil.Error, OSError):
        return None
    if not words or not _program(process, words).name.startswith("python"):
        return None
    for index, word in enumerate(words[1:-1], start=1):
        is_ours = Path(word).name == "vllm-cli" or (word == "vllm_cli" and words[index - 1] == "-m")
        if is_ours:
            return words[index + 2 :] if words[index + 1] == command else None
        if word == "-c" or not (word.startswith("-") or words[index - 1] in ("-X", "-W")):
            return None
    return None


def _program(process: Any, words: list[str]) -> Path:
    """The executable; for other users' processes, the first word of their command line."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.exe() or words[0])
    return Path(words[0])
