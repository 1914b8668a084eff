"""Runs vLLM's own code in the virtual environment .peers/vllm.

Its interpreter runs the scripts named `vllm_*.py` beside the tests: `SCRIPT QUESTION ANSWER WORDS...`, where
QUESTION and ANSWER are JSON files.
"""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[1]
BIN: Final = ROOT / ".peers" / "vllm" / "bin"
PYTHON: Final = BIN / "python"

needs_vllm: Final = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed in .peers/vllm")


def ask_vllm(script: Path, question: Any, folder: Path, *words: object, timeout_s: float = 280) -> Any:
    """The script's answer to the question; `folder` holds both files and is its working directory."""
    asked, answered = folder / "question.json", folder / "answer.json"
    asked.write_text(json.dumps(question))
    command = [PYTHON, "-E", script, asked, answered, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(answered.read_text())
