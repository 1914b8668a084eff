"""The environment of the client libraries: made once in build/, again when the requirements change."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
FOLDER: Final = ROOT / "build" / "frameworks"
CLAUDE_CODE: Final = "@anthropic-ai/claude-code@2.1.197"


def install_clients() -> Path:
    """The environment's interpreter; skips the test if the libraries cannot be installed."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        _install([python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS])
        stamp.write_text(wanted)
    return python


def install_claude_code() -> Path:
    """The command `claude`; skips the test if it cannot be installed."""
    folder = ROOT / "build" / "claude-code"
    command = folder / "node_modules" / ".bin" / "claude"
    if not command.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        _install([npm, "install", "--silent", "--prefix", folder, CLAUDE_CODE])
    return command


def _install(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the clients cannot be installed: {done.stderr[-500:]}")
