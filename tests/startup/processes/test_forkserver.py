"""Processes of multiprocessing are forks of the forkserver, and behave like new programs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from startup.processes.forkserver import ForkedPopen
from startup.processes.messages import send

ROOT = Path(__file__).parents[3]
_PROGRAM = "tests.startup.processes.forkserver_program"


def _run(question: str) -> tuple[Any, str]:
    """Runs a function of the program. Returns its answer, and the warnings."""
    command = [sys.executable, "-m", _PROGRAM, question]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_exit_codes_and_signals_are_those_of_the_processes():
    answer, errors = _run("ends")
    assert answer == {"returns": 0, "exits with 7": 7, "raises": 1, "is killed": -signal.SIGKILL}
    assert errors.count("Traceback") == 1


def test_a_process_runs_its_own_exit_functions():
    assert _run("exit_functions") == (["its own", False, 0], "")


def test_a_process_and_its_children_are_forks_of_one_forkserver():
    answer, errors = _run("family")
    assert answer["parents"] == [answer["forkserver"]] * 2
    assert answer["words"] == ["a word"], "sys.argv of the parent"
    assert answer["stdin"] == os.devnull
    assert errors == ""


def test_every_context_but_fork_uses_the_forkserver():
    """Since Python 3.14, `forkserver` is the default method of `ProcessPoolExecutor` and `Pool`."""
    answer, errors = _run("contexts")
    assert answer["forkserver"] == answer["spawn"] == answer["pool"] == answer["server"]
    assert answer["programs"] == ["forkserver", "resource_tracker"]
    assert errors == ""


def test_queues_locks_and_shared_memory_are_shared_and_nothing_is_left():
    answer, errors = _run("shared")
    assert answer == {"from the queue": [3, 3], "counter": 20, "memory": 5}
    assert errors == ""


def test_files_of_imports_have_no_numbers_that_programs_use_and_if_they_do_a_new_program_starts():
    (number, text), errors = _run("file_numbers")
    assert number > 200
    assert text == "text"
    assert f"instead of forked: file descriptor {number} is in use by a library" in errors


def test_processes_outlive_the_forkserver_and_later_ones_are_new_programs():
    answer, errors = _run("killed")
    assert answer == {"running": True, "later": [0, 0]}
    assert errors.count("is started as a new program instead of forked: the forkserver has exited") == 1


def test_a_forkserver_that_does_not_answer_is_named_once():
    answer, errors = _run("does_not_answer")
    assert answer == [7, 7]
    assert errors.count("instead of forked") == errors.count("the forkserver was stopped, and was killed") == 1


def test_processes_are_new_programs_where_forks_cannot_use_the_gpu():
    """On other threads, they cannot be new programs, so they are forks in spite of the risk."""
    answer, errors = _run("refused")
    assert answer == {"on the main thread": False, "on another thread": True}
    assert errors.count("instead of forked: an import has initialized a driver") == 1


def test_the_forkserver_ends_when_no_process_can_ask_it():
    assert _run("alone") == ("ended", "")


def test_a_dormant_forkserver_is_used_unless_it_has_been_killed():
    assert _run("dormant") == ([[True, 7], [False, 7]], "")


def test_an_untested_python_is_tried_first():
    assert _run("untested") == ([7, 2], ""), "the forkserver and the resource tracker"


def test_an_untested_python_whose_trial_fails_has_no_forkserver():
    (error, code, num_children), errors = _run("untested_and_broken")
    assert "is not tested, and a trial process fails: TypeError(" in error
    assert (code, num_children, errors) == (7, 1, "")


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
