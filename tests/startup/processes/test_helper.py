"""A helper gets a job, sends events, ends by itself or by a kill. A death pipe ends it with the parent."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from envs.environment import snapshot
from startup.processes.back_off import BackOff
from startup.processes.group_signals import GROUP_SIGNALS
from startup.processes.helper import Helper, HelperEndedError
from tests.support.waiting import disturbing, is_gone, wait_until

FOREVER_S: Final = 60.0
HANG: Final = "import os, time; send(os.getpid()); time.sleep(600)"
THREADS: Final = """
from threading import Thread
threads = [Thread(target=lambda name=name: [send((name, n, bytes(100_000))) for n in range(9)]) for name in "abcd"]
[thread.start() for thread in threads] + [thread.join() for thread in threads]
"""
LEAVES_ITS_OUTPUT_OPEN: Final = """
import os, time
if pid := os.fork():
    send(pid)
time.sleep(600)
"""
CLOSED_CONNECTION: Final = """
import os, socket
ours, theirs = socket.socketpair()
theirs.close()
os.write(ours.fileno(), b"GET")
"""
PARENT: Final = f"""
import time
from startup.processes.helper import Helper
print(Helper("test", "tests.startup.processes.helper_jobs:run", {HANG!r}).receive(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., Helper]]:
    helpers: list[Helper] = []

    def start(code: str, **options: bool) -> Helper:
        helpers.append(Helper("test", "tests.startup.processes.helper_jobs:run", code, **options))
        return helpers[-1]

    yield start
    for helper in helpers:
        helper.close()


@pytest.fixture
def changing_variables() -> Iterator[None]:
    """Variables of this process that a thread changes all the time."""
    names = [f"VCLI_TEST_{number}" for number in range(400)]
    has_ended = threading.Event()

    def change() -> None:
        for number in itertools.count():
            if has_ended.is_set():
                return
            os.environ[names[number % 400]] = "x" * (number % 3000)
            os.environ.pop(names[number * 7 % 400], None)

    thread = threading.Thread(target=change)
    thread.start()
    yield
    has_ended.set()
    thread.join()
    for name in names:
        os.environ.pop(name, None)


@pytest.mark.thorough
def test_a_helper_starts_while_a_thread_changes_variables(start, changing_variables):
    for _ in range(500):
        assert "PATH" in snapshot()
    for number in range(20):
        assert start(f"send({number})").receive() == number


def end_of(helper: Helper) -> str:
    """How the helper has ended. Checks that it sends no more events."""
    with pytest.raises(HelperEndedError) as caught:
        helper.receive(FOREVER_S)
    return str(caught.value)


def test_a_job_arrives_whole_and_is_seen_nowhere(start, capfd):
    views = "{name: open(f'/proc/self/{name}').read() for name in ('comm', 'cmdline', 'environ')}"
    code = f"send(len(code)); print('by a library', flush=True); send({views}) # hf_secret {'x' * 1_000_000}"
    helper = start(code)
    assert helper.receive(FOREVER_S) == len(code)
    seen = helper.receive(FOREVER_S)
    assert isinstance(seen, dict)
    assert (seen["comm"], "helper_jobs" in seen["cmdline"]) == ("vllm-test\n", True)
    assert not any("hf_secret" in text for text in seen.values())
    assert end_of(helper) == "exit code 0"
    assert capfd.readouterr() == ("", "by a library\n")


def test_events_of_several_threads_arrive_whole_and_in_order(start):
    helper = start(THREADS)
    events = [helper.receive(FOREVER_S) for _ in range(36)]
    assert sorted(events, key=lambda event: event[0]) == [
        (name, n, bytes(100_000)) for name in "abcd" for n in range(9)
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("", "exit code 0", id="returns"),
        pytest.param("raise ValueError('no such model')", "ValueError: no such model", id="raises"),
        pytest.param("import os; os._exit(3)", "exit code 3", id="exits"),
        pytest.param("import os; os.kill(os.getpid(), 9)", "killed by signal 9", id="killed"),
        pytest.param(CLOSED_CONNECTION, "BrokenPipeError: [Errno 32] Broken pipe", id="closed-connection"),
    ],
)
def test_how_a_helper_ended_is_known_after_its_last_event(code, expected, start):
    helper = start(f"send('event')\n{code}")
    assert helper.receive(FOREVER_S) == "event"
    assert end_of(helper) == expected


def test_an_interpreter_that_cannot_be_started_is_an_error_and_leaves_nothing_open(start, tmp_path, monkeypatch):
    before = _open_descriptors()
    start(HANG).close()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(FileNotFoundError):
        start(HANG)
    assert _open_descriptors() <= before


def _open_descriptors() -> set[tuple[str, str]]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of the listing itself
            found.add((link.name, str(link.readlink())))
    return found


def test_a_silent_helper_delays_nobody_and_ends_although_it_is_stopped(start):
    helper = start(HANG)
    assert helper.receive(FOREVER_S) == helper.pid
    os.kill(helper.pid, signal.SIGSTOP)
    assert (helper.receive(0.0), helper.receive(0.3)) == (None, None)
    helper.close()
    assert is_gone(helper.pid)


@pytest.mark.thorough
def test_a_killed_helper_has_ended_for_its_receiver_although_its_output_is_open(start):
    """Another process keeps the output open, as if the kernel had not ended the helper yet."""
    helper = start(LEAVES_ITS_OUTPUT_OPEN)
    pid = helper.receive(FOREVER_S)
    assert isinstance(pid, int)
    helper.kill()
    assert end_of(helper) == "killed"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))


@pytest.mark.thorough
def test_the_helper_ends_when_its_launcher_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as launcher:
        pid = int(launcher.stdout.readline())
        launcher.kill()
    wait_until(lambda: is_gone(pid))


@pytest.mark.thorough
def test_the_helper_ends_when_nobody_can_receive(start):
    helper = start("while True: send('event')")
    assert helper.receive(FOREVER_S)
    helper._events.close()
    wait_until(lambda: is_gone(helper.pid))


def test_the_helper_ignores_group_signals_from_its_start_on(start):
    helper = start(HANG)
    status = Path(f"/proc/{helper.pid}/status")
    assert not disturbing(status.read_text(), GROUP_SIGNALS)
    assert helper.receive(FOREVER_S) == helper.pid
    assert not disturbing(status.read_text(), GROUP_SIGNALS)


@pytest.mark.thorough
@pytest.mark.parametrize(("is_idle", "expected"), [(False, (os.SCHED_OTHER, 0)), (True, (os.SCHED_IDLE, 19))])
def test_an_idle_helper_leaves_the_processors_to_others(is_idle, expected, start):
    policy, niceness = expected
    helper = start("import os; send((os.sched_getscheduler(0), os.nice(0)))", is_idle=is_idle)
    assert helper.receive(FOREVER_S) == (policy, max(niceness, os.nice(0)))


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
