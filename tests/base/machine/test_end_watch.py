"""An exiting process is detected while its files are still open."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from base.machine.processes import EndWatch
from tests.waiting import wait_until


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
        started.kill()


def test_an_exit_is_detected_before_and_after_the_process_is_reaped(process):
    watch = EndWatch(process.pid)
    assert not watch.is_exiting()
    process.kill()
    wait_until(watch.is_exiting)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert watch.is_exiting()  # it has exited, but is not reaped yet
    process.wait()
    assert watch.is_exiting()
    watch.close()
    watch.close()


def test_a_stopped_process_is_not_exiting(process):
    watch = EndWatch(process.pid)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert not watch.is_exiting()
    watch.close()


def test_a_process_that_was_reaped_before_is_not_watched(process):
    process.kill()
    process.wait()
    watch = EndWatch(process.pid)
    assert not watch.is_exiting()
    watch.close()
