"""Process 1 of a container reaps orphans and forwards signals. Untested builds of Python are reported."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from startup.embedded.installed import require_embedded_engine
from startup.errors import CommandLineError
from startup.processes import interpreter
from startup.vllm.launch.plain_start import plain_start_reason
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.installed import InstalledVllm
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
    reason = plain_start_reason(InstalledVllm("0.32.0", tmp_path), CommandLine.of(["model"]))
    assert "(free-threaded) is not supported" in reason.text


def test_this_python_is_tested():
    assert interpreter.is_tested()
    assert not interpreter.is_free_threaded()
