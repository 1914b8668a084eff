"""Processes of multiprocessing are forks of the forkserver, and behave like new programs."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from startup.processes.forkserver import ForkedPopen
from startup.processes.messages import send

ROOT = Path(__file__).parents[3]


def _run(case: str) -> str:
    """Runs a function of the program, which checks what it finds. Returns its warnings."""
    command = [sys.executable, "-m", "tests.startup.processes.forkserver_program", case]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_processes_are_forks_that_behave_like_new_programs():
    errors = _run("healthy")
    assert (errors.count("Traceback"), errors.splitlines()[-1]) == (1, "ValueError")


@pytest.mark.thorough
@pytest.mark.parametrize(("case", "warning"), [
    ("file_numbers", "is in use by a library"),
    ("killed", "the forkserver has exited"),
    ("does_not_answer", "the forkserver was stopped, and was killed"),
    ("refused", "an import has initialized a driver"),
    *((case, "") for case in ("alone", "dormant", "untested", "untested_and_broken")),
])  # fmt: skip
def test_processes_are_forks_or_else_new_programs_with_one_warning(case, warning):
    """`forkserver_program.py` has the cases."""
    errors = _run(case)
    assert (warning in errors, errors.count("instead of forked")) == (True, bool(warning))
    assert warning or errors == ""


class _EndedPopen(ForkedPopen):
    """A fake process that has ended, and that the forkserver has forked."""

    def __init__(self, sentinel: int, connection: socket.socket) -> None:
        self.pid = os.getpid()
        self.returncode = None
        self.sentinel = sentinel
        self._connection = connection
        self._reading = threading.Lock()


def test_threads_that_ask_at_once_learn_the_same_exit_code():
    """vLLM's shutdown joins its engine while its monitor polls the same process."""
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            for _ in range(300):
                assert _poll_in(threads) == [7, 7]
    finally:
        sys.setswitchinterval(switch_s)


def _poll_in(threads: ThreadPoolExecutor) -> list[int | None]:
    """Polls an ended process in both threads. Returns both exit codes."""
    ended, other_end = os.pipe()
    os.close(other_end)
    connection, forkserver = socket.socketpair()
    popen = _EndedPopen(ended, connection)
    meeting = threading.Barrier(2)

    def poll(_: int) -> int | None:
        meeting.wait()
        return popen.poll()

    with forkserver:
        send(forkserver, [b"ended", b"7"])
        codes = list(threads.map(poll, range(2)))
    os.close(ended)
    return codes
