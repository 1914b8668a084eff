"""Runs vLLM's own code in the virtual environment .peers/vllm, or in .peers/NAME if PEER_VLLM is NAME.

The environment's interpreter runs the scripts `vllm_*.py` beside the tests as `SCRIPT QUESTION ANSWER
ARGUMENTS...`. QUESTION and ANSWER are JSON files.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ENVIRONMENT: Final = ROOT / ".peers" / os.environ.get("PEER_VLLM", "vllm")
BIN: Final = ENVIRONMENT / "bin"
PYTHON: Final = BIN / "python"

needs_vllm: Final = pytest.mark.skipif(not PYTHON.exists(), reason=f"vLLM is not installed in {ENVIRONMENT}")


def versions_of_make() -> list[str]:
    """The versions with which `make test-vllm-versions` runs, the oldest first."""
    [versions] = re.findall(r"^VERSIONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(versions).split()


def ask_vllm(script: Path, question: Any, folder: Path, *arguments: object, timeout_s: float = 280) -> Any:
    """Returns the script's answer. `folder` has both JSON files and is the script's working directory."""
    asked, answered = folder / "question.json", folder / "answer.json"
    asked.write_text(json.dumps(question))
    command = [PYTHON, "-E", script, asked, answered, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(answered.read_text())
