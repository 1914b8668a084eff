"""A signal during the change from a warm start to a cold start ends the start at any moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.stop_point import StopPoint
from tests.support.waiting import is_gone, wait_until

_FRONT: Final = """
import os, signal, socket, sys
from startup.processes import messages
from startup.standby.forwarding import follow_server
ours, theirs = socket.socketpair()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in the server, as if it ended just then
pid = os.fork()
if pid == 0:
    ours.close()
    messages.send(theirs, [b"again", b"ASKED", b"cold"])
    sys.stdin.read()
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
theirs.close()
sys.orig_argv[:] = [sys.executable, "-S", "-c", "import os; print(os.environ['ASKED'], flush=True)"]
print(pid, flush=True)
sys.exit(follow_server(ours, pid, os.pidfd_open(pid), os.pipe()[1], None))
"""
"""A front process that follows a server. The server requests a cold start. It ends with standard input."""


@contextmanager
def _front(environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    words = [sys.executable, "-c", _FRONT]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment}
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True) as front:
        server_pid = int(front.stdout.readline())
        try:
            yield front, server_pid
        finally:
            front.kill()
    wait_until(lambda: is_gone(server_pid))


def _finish(front: "subprocess.Popen[str]") -> str:
    """Ends the server. Returns the output of the program that has replaced the front process."""
    return front.communicate(timeout=60)[0]


def test_without_a_signal_the_start_goes_on_cold():
    with _front({}) as (front, _):
        assert _finish(front) == "cold\n"
        assert front.returncode == 0


def test_a_signal_that_the_ending_server_did_not_act_on():
    with _front({}) as (front, _):
        wait_until(lambda: _catches(front.pid, signal.SIGCONT))  # the last one
        front.send_signal(signal.SIGTERM)
        assert (_finish(front), front.returncode) == ("", -signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_just_before_the_program_is_executed_again(tmp_path, number):
    stop = StopPoint(tmp_path, "os.exec", "")
    environment = {"PYTHONPATH": os.pathsep.join([*stop.environment.values(), str(Path(__file__).parents[3])])}
    with _front(environment) as (front, _):
        front.stdin.close()
        stopped = stop.wait_stopped()
        assert stopped.pid == front.pid
        front.send_signal(number)
        stopped.resume()
        front.stdin = None
        assert (_finish(front), front.returncode) == ("", -number)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_just_before_a_cold_start_is_executed_again(number, tmp_path):
    """A Python handler would only record the signal, and the new program would not have the record."""
    stop = StopPoint(tmp_path, "os.exec", "")
    code = "import os, signal; from startup.vllm.launch.plain_start import exec_again; "
    code += f"signal.signal({int(number)}, lambda *_: None); exec_again('VCLI_PLAIN_VLLM', '1', os.environ)"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **stop.environment}) as process:
        stopped = stop.wait_stopped()
        is_caught = _catches(process.pid, number)
        process.send_signal(number)
        stopped.resume()
        assert process.wait(60) == -number
    assert not is_caught


def _catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)
