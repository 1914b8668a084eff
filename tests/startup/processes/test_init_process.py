"""Process 1 of a container reaps orphans and forwards signals. Forks are like new programs."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from startup.embedded.installed import require_embedded_engine
from startup.errors import CommandLineError
from startup.processes import interpreter
from startup.processes.forkserver import ForkedPopen
from startup.processes.messages import send
from startup.vllm.launch.plain_start import plain_start_reason
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_line import VllmLine
from tests.support.waiting import wait_until

_SOON_S = 60

_BECOME = "import os, signal, sys, time; from startup.processes.init_process import become_init; become_init()\n"
_SUBREAPER = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
"""Makes this process the parent of orphans, like process 1 (PR_SET_CHILD_SUBREAPER)."""
_STAY = "while True: time.sleep(0.05)"
"""Replaces `signal.pause()`, which misses a signal that arrives just before the call."""


@contextmanager
def _start(code: str, *, before: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _SUBREAPER + before + _BECOME + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            for child in psutil.Process(process.pid).children() if process.poll() is None else ():
                with suppress(psutil.NoSuchProcess):
                    child.kill()


def _line(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
    ],
)
def test_init_exits_with_the_programs_code(code, expected):
    with _start(code) as process:
        assert process.wait(_SOON_S) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_forwarded(number):
    code = f"signal.signal({number:d}, lambda *_: sys.exit(7))\nprint('ready', flush=True)\n{_STAY}"
    with _start(code) as process:
        assert _line(process) == "ready"
        process.send_signal(number)
        assert process.wait(_SOON_S) == 7


def test_orphans_are_reaped():
    code = (
        "if os.fork() == 0:\n"
        "    pid = os.fork()\n"
        "    if pid:\n        print(pid, flush=True)\n        os._exit(0)\n"
        "    os._exit(0)\n"
        "os.wait()\nprint('waited', flush=True)\nsignal.pause()"
    )
    with _start(code) as process:
        orphan = int(_line(process))
        assert _line(process) == "waited"
        wait_until(lambda: not psutil.pid_exists(orphan))
        assert process.poll() is None
        process.terminate()
        process.wait(_SOON_S)


def test_the_service_managers_variables_for_process_1_refer_to_the_program():
    code = (
        "from envs.registry import env\n"
        "print(env.LISTEN_PID.get() == env.WATCHDOG_PID.get() == os.getpid() != os.getppid(), flush=True)"
    )
    set_here = 'os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())\n'
    with _start(code, before=f"import os\n{set_here}") as process:
        assert _line(process) == "True"
        assert process.wait(_SOON_S) == 0
    with _start(
        "print(os.environ['LISTEN_PID'], flush=True)", before="import os\nos.environ['LISTEN_PID'] = '7'\n"
    ) as other:
        assert _line(other) == "7"


def test_exit_functions_run_and_objects_are_not_freed():
    program = textwrap.dedent(
        """
        import atexit, sys, threading
        from startup.processes.quick_end import end_without_finalizing

        class Reports:
            def __del__(self):
                print("freed")

        kept = Reports()
        atexit.register(print, "exit function")
        threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
        code = end_without_finalizing(7)
        print("afterwards", end="")
        sys.exit(code)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "exit function\nafterwardsthread\n"


def test_the_free_threaded_build_is_refused_by_name_and_starts_vllm_plain(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "abiflags", "t")
    with pytest.raises(CommandLineError, match=r"Python 3\.\S+ \(free-threaded\) is not supported: use the build"):
        require_embedded_engine()
    reason = plain_start_reason(InstalledVllm("0.32.0", tmp_path), VllmLine.of(["model"]))
    assert "(free-threaded) is not supported" in reason.text


def test_this_python_is_tested():
    assert interpreter.is_tested()
    assert not interpreter.is_free_threaded()


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
@pytest.mark.parametrize(
    ("case", "warning"),
    [
        ("file_numbers", "is in use by a library"),
        ("killed", "the forkserver has exited"),
        ("does_not_answer", "the forkserver was stopped, and was killed"),
        ("refused", "an import has initialized a driver"),
        *((case, "") for case in ("alone", "dormant", "untested", "untested_and_broken")),
    ],
)
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
