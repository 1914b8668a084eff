"""A process ends with its logical parent. A failed step is tried again after a pause."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from startup.processes.back_off import BackOff

_SOON_S = 60

_STUCK = "import ctypes; os.write(1, b'stuck\\n'); ctypes.PyDLL(None).sleep(600)"
"""Code that holds the interpreter's lock inside C, so that no handler and no Python thread runs."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The read end and the write end of a pipe. Tests may close the write end."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


@contextmanager
def _start(code: str, *fds: int) -> Iterator[subprocess.Popen[str]]:
    script = f"import os, signal; from startup.processes import death_pipe\n{code}"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=fds) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def test_a_process_stuck_in_c_ends_when_the_write_end_is_closed(pipe):
    with _start(f"death_pipe.arm({pipe[0]})\n{_STUCK}", pipe[0]) as process:
        assert _line(process) == "stuck"
        assert process.poll() is None
        os.close(pipe[1])
        assert process.wait(_SOON_S) == -signal.SIGKILL


def test_a_process_of_another_parent_ends_too(pipe):
    forks = "if os.fork():\n    os.wait()\n    print('child has ended', flush=True)\n    os._exit(0)\n"
    with _start(f"{forks}death_pipe.arm({pipe[0]})\n{_STUCK}", pipe[0]) as process:
        assert _line(process) == "stuck"
        os.close(pipe[1])
        assert _line(process) == "child has ended"
        assert process.wait(_SOON_S) == 0


@pytest.mark.parametrize("call", ["arm({})", "follow_parent(os.getpid())"], ids=["pipe", "parent"])
def test_a_process_whose_parent_has_exited_before_ends_at_once(call, pipe):
    os.close(pipe[1])
    with _start(f"death_pipe.{call.format(pipe[0])}\nprint('still running')", pipe[0]) as process:
        assert process.communicate(timeout=_SOON_S)[0] == ""
        assert process.returncode == -signal.SIGKILL


def test_a_process_ends_with_the_one_that_forked_it():
    code = (
        f"parent = os.getpid()\nif os.fork() == 0:\n    death_pipe.follow_parent(parent)\n    {_STUCK}\nsignal.pause()"
    )
    with _start(code) as process:
        assert _line(process) == "stuck"
        process.kill()
        assert _line(process) == ""  # no process holds standard output any more


def test_what_fails_again_pauses_for_longer_and_what_has_worked_goes_on_at_once():
    back_off = BackOff()
    assert [back_off.take_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [back_off.take_s(10.0), back_off.take_s(9.9), back_off.take_s(0.1)] == [0, 1, 2]
    assert back_off.num_failures == 3, "in a row"
    assert BackOff().take_s(0.1) == 0, "the first failure of what has worked"
