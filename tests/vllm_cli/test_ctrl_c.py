"""Ctrl-C ends a command without a traceback at any moment between the program's first line and its end.

SIGINT comes at chosen audit events (sys.addaudithook): imports, opened files, compiled and executed code.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_HOOK = """
import atexit, os, signal, sys

pid, point, count = os.getpid(), int(os.environ.pop("POINT")), None

def hook(event, args):
    global count
    if os.getpid() != pid:
        return
    if count is not None:
        count += 1
        if count == point:
            os.kill(pid, signal.SIGINT)
    elif event == "exec" and getattr(args[0], "co_filename", "").endswith("vllm_cli/__main__.py"):
        count = 0

sys.addaudithook(hook)
if point == 0:
    atexit.register(lambda: print(count, file=sys.stderr))
"""


@pytest.fixture
def run_to(tmp_path: Path):
    """A function that runs a command with a SIGINT at this event. 0: no SIGINT, and events are counted."""
    (tmp_path / "sitecustomize.py").write_text(_HOOK)

    def run(point: int, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).with_name("vllm-cli")), *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "POINT": str(point)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


def _assert_interrupted(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode in (130, -signal.SIGINT), done
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.parametrize("point", [1, 3, 9, 27])
def test_at_the_beginning(point, run_to):
    _assert_interrupted(run_to(point, "--version"))


@pytest.mark.thorough
@pytest.mark.parametrize("words", [("doctor", "--env"), ("serve", "MODEL", "--preflight-only")], ids=" ".join)
def test_at_any_point(words, run_to, tiny_llama):
    words = tuple(word.replace("MODEL", str(tiny_llama)) for word in words)
    whole = run_to(0, *words)
    assert whole.returncode == 0, whole.stderr
    num_events = int(whole.stderr.splitlines()[-1])
    for point in range(1, num_events * 9 // 10, num_events // 12):  # their number varies
        _assert_interrupted(run_to(point, *words))
