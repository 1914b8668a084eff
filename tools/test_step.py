"""A step of the Makefile is one line with its seconds. What a failed command has printed follows."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]


def _run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tools.step", "Doing it", *command]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False, **options)


def test_a_step_that_succeeds_is_one_line_with_seconds():
    done = _run("sh", "-c", "echo 67 packages; echo a warning >&2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Doing it \.\.\.\nDoing it: \d+ s\n", done.stdout)


@pytest.mark.parametrize(
    ("command", "code", "shown"),
    [
        (["sh", "-c", "echo out; echo why >&2; exit 4"], 4, "out\nwhy\n"),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM, "failed after"),
        (["/no/such/program"], 127, "/no/such/program: No such file or directory"),
    ],
    ids=["exit", "signal", "missing"],
)
def test_a_step_that_fails_shows_the_output_and_has_its_exit_code(command, code, shown):
    done = _run(*command)
    assert done.returncode == code
    assert shown in done.stdout
    assert "Traceback" not in done.stderr


def test_on_a_terminal_the_line_counts_the_seconds():
    ours, terminal = pty.openpty()
    arguments = [sys.executable, "-m", "tools.step", "Doing it", "sleep", "1.2"]
    subprocess.run(arguments, stdout=terminal, cwd=ROOT, check=True)
    os.close(terminal)
    text = os.read(ours, 4096).decode()
    os.close(ours)
    assert re.fullmatch(r"Doing it \.\.\.(\rDoing it \.\.\. \d+ s)+\rDoing it: \d+ s\x1b\[K\r\n", text)
