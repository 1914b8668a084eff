"""What shakes the tests stops processes, all of the tree, and leaves the command's result alone."""

import re
import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import signal, subprocess, sys, time

def state(process):
    return open(f"/proc/{process.pid}/stat").read().rpartition(")")[2].split()[0]

def wait_stopped(process):
    while state(process) != "T":
        time.sleep(0.001)

shaken, stopped = (subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"]) for _ in range(2))
stopped.send_signal(signal.SIGSTOP)
wait_stopped(stopped)
for _ in range(3):
    wait_stopped(shaken)
    while state(shaken) == "T":
        time.sleep(0.001)
print(state(stopped))
for process in (shaken, stopped):
    process.kill()
    process.wait()
"""


def _shake(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.shake", "--most-ms", "100", "--every-ms", "5", "--", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_processes_are_stopped_for_a_moment_but_not_those_that_are_stopped_already() -> None:
    done = _shake(sys.executable, "-c", _PROGRAM)
    assert done.stdout == "T\n", done.stderr
    assert int(re.findall(r"shaken: (\d+) stops", done.stderr)[0]) >= 3


@pytest.mark.parametrize(
    ("program", "code"), [("raise SystemExit(7)", 7), (f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})", 143)]
)
def test_result_is_the_commands(program: str, code: int) -> None:
    assert _shake(sys.executable, "-S", "-c", program).returncode == code
