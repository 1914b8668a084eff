"""tools/random_stops.py stops processes of a tree and returns the command's exit code."""

import random
import re
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from tests.support.waiting import wait_until
from tools.random_stops import _stop_one

_PROGRAM = """
import subprocess, sys, time

def state(process):
    return open(f"/proc/{process.pid}/stat").read().rpartition(")")[2].split()[0]

stop = "import os, signal; print(flush=True); os.kill(os.getpid(), signal.SIGSTOP); print('continued', flush=True)"
running = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
stopped = subprocess.Popen([sys.executable, "-S", "-c", stop], stdout=subprocess.PIPE, text=True)
stopped.stdout.readline()
for _ in range(3):
    while state(running) != "T":
        time.sleep(0.001)
    while state(running) == "T":
        time.sleep(0.001)
for process in (running, stopped):
    process.kill()
print(repr(stopped.communicate()[0]))
"""
"""The process that stays stopped stops itself. Another's signal may come just before the tool continues."""


def _run_with_stops(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.random_stops", "--most-ms", "100", "--every-ms", "5", "--", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_running_processes_are_stopped_and_continued_and_stopped_ones_stay_stopped():
    done = _run_with_stops(sys.executable, "-c", _PROGRAM)
    assert done.stdout == "''\n", done.stderr
    assert int(re.findall(r"random_stops: (\d+) stops", done.stderr)[0]) >= 3


def test_a_process_that_a_test_stops_during_a_stop_stays_stopped():
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"]) as process:
        stop = threading.Thread(target=_stop_one, args=(process.pid, random.Random(0), 2.0))
        stop.start()
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        process.send_signal(signal.SIGSTOP)
        stop.join()
        assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
        process.kill()


@pytest.mark.parametrize(
    ("program", "code"), [("raise SystemExit(7)", 7), (f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})", 143)]
)
def test_exit_code_is_that_of_the_command(program, code):
    assert _run_with_stops(sys.executable, "-S", "-c", program).returncode == code
